"""Frames of HTTP/2, as gRPC uses them, and with any content."""

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0, 1, 3, 4, 6, 7, 8, 9),
)
END_STREAM, END_HEADERS = 1, 4
STREAM_WINDOW_BYTES = 65_535
"""Bytes of data that a connection, and a stream, may send before the receiver allows more."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def rpc_headers(path: bytes, stream: int, fields: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return the HEADERS frame of an RPC; the fields are literals that are not indexed."""
    every = [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", path)),
        *((b":authority", b"localhost"), (b"te", b"trailers")),
        (b"content-type", b"application/grpc"),
        *fields,
    ]
    block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in every)
    return frame(HEADERS, END_HEADERS, stream, block)


def message_prefix(size: int, *, is_compressed: bool = False) -> bytes:
    """Return the five bytes before a message of gRPC."""
    return struct.pack(">BI", is_compressed, size)


def _literal(text: bytes) -> bytes:
    """Return a string of HPACK: its length, with a prefix of seven bits, and its bytes."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, size = len(text) - 127, bytearray([127])
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*size, rest]) + text
