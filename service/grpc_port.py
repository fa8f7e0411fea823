"""Reservation of the port of the gRPC server; needs no gRPC library."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from service.settings import Settings


@contextmanager
def reserved_grpc_port(settings: Settings) -> Iterator[Settings]:
    """Hold the port for the gRPC servers of this service until the block ends.

    Yields the settings with the number of the port, if they have a port. Each server listens on it
    itself (``SO_REUSEPORT``), because gRPC cannot be given a listening socket. The socket that
    holds the port does not listen, so no connection is assigned to it.

    Raises :class:`OSError` if another program uses the port.
    """
    if settings.grpc_port is None:
        yield settings
        return
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.grpc_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # Without SO_REUSEPORT, so that another instance of the service is noticed.
    with socket.create_server(address[:2], family=family) as probe:
        address = probe.getsockname()
    with socket.socket(family, kind, protocol) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        yield settings.model_copy(update={"grpc_port": address[1]})
