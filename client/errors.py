"""Exceptions of the client."""

from collections.abc import Mapping
from typing import Any


class ClientError(RuntimeError):
    """An image could not be processed; the message says why.

    ``retryable``: whether the same request may succeed later. ``retry_after_s``: the seconds after
    which the service asked to send it again, or None.
    """

    retryable: bool = False
    retry_after_s: float | None = None


class ImageInputError(ClientError):
    """The image cannot be read, or its type is not supported; nothing was sent."""


class InvalidUrlError(ClientError):
    """The URL of the service is not valid."""


class InvalidResponseError(ClientError):
    """The response is not one of a CenterNet service."""


class ConnectionFailedError(ClientError):
    """The service cannot be reached, or closed the connection before the end of the response."""

    retryable = True


class ResponseTimeoutError(ClientError):
    """The response did not arrive in time."""

    retryable = True


class ResponseError(ClientError):
    """The service responded with an error.

    Attributes:
        status: HTTP status.
        problem: the problem document (RFC 9457); empty if the response has none, which is the case
            for errors of a proxy.
        code: stable name of the error, such as ``queue_full``; empty without a problem document.
        detail: what was received, what is accepted and what to do.
    """

    def __init__(
        self,
        status: int,
        problem: Mapping[str, Any],
        detail: str,
        *,
        retryable: bool,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status
        self.problem = problem
        self.code = str(problem.get("code", ""))
        self.detail = detail
        self.retryable = retryable
        self.retry_after_s = retry_after_s
