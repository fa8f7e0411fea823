"""Everything that a request can fail with; each class is one stable ``code`` on the wire.

head     -> MalformedRequestError, SlowHeadError, RouterError, UnauthorizedError, RateLimitedError
body     -> EmptyBodyError, BodyTooLargeError, BadFormError, SlowBodyError,
            UnsupportedMediaTypeError
image    -> UnsupportedImageError, BadImageError, ImageSizeError
request  -> InvalidOptionError, UnknownModelError
queue    -> NotReadyError, QueueFullError, DeadlineUnreachableError, StoppingError,
            DeadlineExceededError
engine   -> EngineError, UnrecoverableError
us       -> InternalError
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar


class ServiceError(Exception):
    """A request that gets an error answer; the text says what was received and what to do."""

    status: int
    code: str
    title: str
    retryable: ClassVar[bool] = False
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class MalformedRequestError(ServiceError):
    """What arrived is not HTTP/1.1, or its head is too long."""

    status, code, title = 400, "malformed_request", "The request is not valid HTTP"
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class SlowHeadError(ServiceError):
    """The request's line and headers did not arrive in time."""

    status, code, title = 408, "slow_head", "The request's headers did not arrive in time"
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}
    retryable = True


class RouterError(ServiceError):
    """No such path or method; code and title are those of the status."""

    def __init__(self, detail: str, status: HTTPStatus) -> None:
        super().__init__(detail)
        self.status, self.code, self.title = status.value, status.name.lower(), status.phrase


class UnauthorizedError(ServiceError):
    """This service has API keys, and the request brought none of them."""

    status, code, title = 401, "unauthorized", "An API key is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="centernet-serving"'}


class RateLimitedError(ServiceError):
    """One client asks more often than a client may."""

    status, code, title = 429, "rate_limited", "This client sends too many requests"
    retryable = True


class EmptyBodyError(ServiceError):
    """There is no image in the request."""

    status, code, title = 400, "empty_body", "The request carries no image"


class BodyTooLargeError(ServiceError):
    """The body has more bytes than this service takes."""

    status, code, title = 413, "body_too_large", "The request body is too large"
    # The rest of the body is not worth reading.
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class BadFormError(ServiceError):
    """The multipart form is damaged or holds something else than one image."""

    status, code, title = 400, "bad_form", "The multipart form cannot be used"


class SlowBodyError(ServiceError):
    """The body did not arrive in time."""

    status, code, title = 408, "slow_body", "The request body did not arrive in time"
    retryable = True


class UnsupportedMediaTypeError(ServiceError):
    """The Content-Type announces something that is not an image."""

    status, code, title = 415, "unsupported_media_type", "The content type is not supported"


class UnsupportedImageError(ServiceError):
    """The bytes are not in an image format, or not of a kind, that this service decodes."""

    status, code, title = 415, "unsupported_image", "The image format is not supported"


class BadImageError(ServiceError):
    """The image is damaged."""

    status, code, title = 400, "bad_image", "The image cannot be decoded"


class ImageSizeError(ServiceError):
    """The image has too many pixels, or a side that is too short or too long."""

    status, code, title = 413, "image_size", "The image size is not supported"


class InvalidOptionError(ServiceError):
    """A request option is unknown or out of range."""

    status, code, title = 422, "invalid_option", "A request option is not valid"


class UnknownModelError(ServiceError):
    """No model of that name is loaded."""

    status, code, title = 404, "unknown_model", "The model does not exist"


class QueueFullError(ServiceError):
    """More requests are waiting than this service admits."""

    status, code, title = 429, "queue_full", "Too many requests are waiting"
    retryable = True


class DeadlineUnreachableError(ServiceError):
    """The queue is too long for the deadline that the request gave."""

    status, code, title = 429, "deadline_unreachable", "The deadline cannot be met"
    retryable = True


class NotReadyError(ServiceError):
    """The service is starting, or its models take no requests."""

    status, code, title = 503, "not_ready", "The service is not ready"
    retryable = True


class StoppingError(ServiceError):
    """The service is shutting down."""

    status, code, title = 503, "stopping", "The service is shutting down"
    retryable = True


class DeadlineExceededError(ServiceError):
    """The answer was not ready in time."""

    status, code, title = 504, "deadline_exceeded", "The answer was not ready in time"
    retryable = True


class EngineError(ServiceError):
    """The engine failed on a batch; the cause is in the log."""

    status, code, title = 500, "engine_failed", "The model failed on this batch"
    retryable = True


class UnrecoverableError(ServiceError):
    """The engine will not serve again in this process."""

    status, code, title = 503, "engine_broken", "The service must be restarted"


class InternalError(ServiceError):
    """A mistake of ours; the cause is in the log."""

    status, code, title = 500, "internal_error", "The service made a mistake"
