"""HTTP/2 connections on which a test writes every byte, as no client library does."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.hostile_inputs.http2_frames import HEADERS, PREFACE, SETTINGS, frame


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
