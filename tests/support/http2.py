"""HTTP/2 frames as an attacker writes them: a client library sends only valid, whole messages."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def request_headers(path: str, stream: int, *fields: tuple[str, str]) -> bytes:
    """Return the HEADERS frame of an RPC; the fields are literals that are not indexed."""
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "tests")]
    grpc = [("te", "trailers"), ("content-type", "application/grpc")]
    block = b"".join(
        b"\0" + _text(name) + _text(value) for name, value in [*pseudo, *grpc, *fields]
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def message_prefix(size: int, *, is_compressed: bool = False) -> bytes:
    """Return the five bytes before a message of gRPC."""
    return struct.pack(">BI", is_compressed, size)


class Http2Connection:
    """A connection on which the test writes every byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._connection.sendall(data)

    def trailers(self, stream: int) -> bytes:
        """Return the payload of the frame that ends an RPC: trailers, of which texts are plain."""
        return next(
            payload
            for kind, number, payload in self.frames()
            if (kind, number) == (HEADERS, stream) and b"grpc-status" in payload
        )

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, stream and payload of each frame until the connection is closed."""
        while True:
            try:
                part = self._connection.recv(65536)
            except ConnectionResetError:
                return
            if not part:
                return
            self._received += part
            while len(self._received) >= 9:
                size = int.from_bytes(self._received[:3], "big")
                if len(self._received) < 9 + size:
                    break
                kind, _, stream = struct.unpack(">BBI", self._received[3:9])
                payload, self._received = self._received[9 : 9 + size], self._received[9 + size :]
                yield kind, stream, payload


@contextmanager
def http2_connection(address: str, timeout_s: float = 30) -> Iterator[Http2Connection]:
    """Connect, and send the preface and empty settings."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        yield Http2Connection(connection)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, size = len(data) - 127, bytearray([127])
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*size, rest]) + data
