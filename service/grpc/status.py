"""Errors as gRPC statuses."""

from collections.abc import Mapping
from http import HTTPStatus

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from service.errors import ServiceError

DOMAIN = "centernet-serving"
"""The domain of the reasons in ``google.rpc.ErrorInfo``."""
STATUS_DETAILS_KEY = "grpc-status-details-bin"

_CODES: Mapping[int, StatusCode] = {
    HTTPStatus.BAD_REQUEST: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: StatusCode.UNAUTHENTICATED,
    HTTPStatus.NOT_FOUND: StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.CONFLICT: StatusCode.FAILED_PRECONDITION,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNPROCESSABLE_ENTITY: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.TOO_MANY_REQUESTS: StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.INTERNAL_SERVER_ERROR: StatusCode.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: StatusCode.UNIMPLEMENTED,
    HTTPStatus.SERVICE_UNAVAILABLE: StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
}


def status_code(error: ServiceError) -> StatusCode:
    """Return the gRPC status code of an error, which follows from its HTTP status."""
    return _CODES[error.status]


def status_details(error: ServiceError, detail: str, request_id: str) -> bytes:
    """Return the serialized ``google.rpc.Status`` of an error with the text ``detail``.

    It has an ``ErrorInfo`` with the code of the error in upper case and the id of the request, and
    a ``RetryInfo`` if the same request may succeed after a known time.
    """
    status = Status(code=status_code(error).value[0], message=detail)
    info = ErrorInfo(reason=error.code.upper(), domain=DOMAIN, metadata={"request_id": request_id})
    details: list[ErrorInfo | RetryInfo] = [info]
    if error.retry_after_s is not None:
        details.append(RetryInfo(retry_delay=Duration(seconds=error.retry_after_s)))
    for message in details:
        packed = Any()
        packed.Pack(message)
        status.details.append(packed)
    serialized: bytes = status.SerializeToString()
    return serialized
