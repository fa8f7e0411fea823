"""Errors of requests, by the stage that raises them; each class has a stable ``code``.

head     -> MalformedRequestError, SlowHeadError, RouterError, UnauthorizedError, RateLimitedError,
            NotAcceptableError
body     -> EmptyBodyError, BodyTooLargeError, BadFormError, BadJsonError, SlowBodyError,
            UnsupportedMediaTypeError
image    -> UnsupportedImageError, BadImageError, ImageSizeError, ImageAddressError,
            ImageFetchError
request  -> InvalidOptionError, InvalidInferenceRequestError, LabelingConfigError,
            UnsupportedOperationError, UnknownModelError, ModelUnavailableError
queue    -> NotReadyError, QueueFullError, DeadlineUnreachableError, StoppingError,
            DeadlineExceededError
engine   -> EngineError, RestartRequiredError
service  -> InternalError
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar


class ServiceError(Exception):
    """An error response; the message says what was received, what is accepted and what to do."""

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
    """The request is not HTTP/1.1, or its head is too long."""

    status, code, title = 400, "malformed_request", "The request is not valid HTTP"
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class SlowHeadError(ServiceError):
    """The head of the request did not arrive in time."""

    status, code, title = 408, "slow_head", "The request's headers did not arrive in time"
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}
    retryable = True


class NotAcceptableError(ServiceError):
    """The response has none of the formats that the client accepts."""

    status, code, title = 406, "not_acceptable", "The response format is not supported"


class RouterError(ServiceError):
    """The path or method does not exist; code and title are those of the HTTP status."""

    def __init__(self, detail: str, status: HTTPStatus) -> None:
        super().__init__(detail)
        self.status, self.code, self.title = status.value, status.name.lower(), status.phrase


class UnauthorizedError(ServiceError):
    """The service requires an API key, and the request has no valid one."""

    status, code, title = 401, "unauthorized", "An API key is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="centernet-serving"'}


class RateLimitedError(ServiceError):
    """The client exceeded its rate limit."""

    status, code, title = 429, "rate_limited", "This client sends too many requests"
    retryable = True


class EmptyBodyError(ServiceError):
    """The request contains no image."""

    status, code, title = 400, "empty_body", "The request carries no image"


class BodyTooLargeError(ServiceError):
    """The body exceeds the maximum size."""

    status, code, title = 413, "body_too_large", "The request body is too large"
    # The rest of the body is not read.
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class BadFormError(ServiceError):
    """The multipart form is invalid or has too many fields."""

    status, code, title = 400, "bad_form", "The multipart form cannot be used"


class BadJsonError(ServiceError):
    """The JSON body is invalid, or an image in it is not base64."""

    status, code, title = 400, "bad_json", "The JSON body cannot be used"


class SlowBodyError(ServiceError):
    """The body did not arrive in time."""

    status, code, title = 408, "slow_body", "The request body did not arrive in time"
    retryable = True


class UnsupportedMediaTypeError(ServiceError):
    """The body is neither an image nor of a Content-Type that can contain images."""

    status, code, title = 415, "unsupported_media_type", "The content type is not supported"


class UnsupportedImageError(ServiceError):
    """The image format, or a feature that the image uses, is not supported."""

    status, code, title = 415, "unsupported_image", "The image format is not supported"


class BadImageError(ServiceError):
    """The image is damaged."""

    status, code, title = 400, "bad_image", "The image cannot be decoded"


class ImageSizeError(ServiceError):
    """The image has too many pixels, or a side outside of the supported range."""

    status, code, title = 413, "image_size", "The image size is not supported"


class ImageAddressError(ServiceError):
    """The address of an image is not one that the service requests."""

    status, code, title = 422, "image_address", "The address of the image is not accepted"


class ImageFetchError(ServiceError):
    """An image could not be requested from Label Studio, or read from storage."""

    status, code, title = 502, "image_fetch_failed", "The image could not be requested"
    retryable = True


class TooManyInputsError(ServiceError):
    """The request needs more network inputs than the queue of the model holds."""

    status, code, title = 413, "too_many_inputs", "The request needs too many network inputs"


class InvalidOptionError(ServiceError):
    """An option is unknown, out of range or not supported by the model."""

    status, code, title = 422, "invalid_option", "A request option is not valid"


class InvalidInferenceRequestError(ServiceError):
    """A tensor or a parameter of an inference request is not one that the model accepts."""

    status, code, title = 400, "invalid_inference_request", "The inference request is not valid"


class UnsupportedOperationError(ServiceError):
    """The service does not have this part of a protocol."""

    status, code, title = 501, "unsupported_operation", "The operation is not supported"


class LabelingConfigError(ServiceError):
    """A labeling configuration of Label Studio is invalid or has nothing of the model."""

    status, code, title = 422, "labeling_config", "The labeling configuration cannot be used"


class UnknownModelError(ServiceError):
    """No model of the requested name is loaded."""

    status, code, title = 404, "unknown_model", "The model does not exist"


class QueueFullError(ServiceError):
    """The queue or the memory for request bodies is full."""

    status, code, title = 429, "queue_full", "Too many requests are waiting"
    retryable = True


class DeadlineUnreachableError(ServiceError):
    """The request cannot be completed by its deadline."""

    status, code, title = 429, "deadline_unreachable", "The deadline cannot be met"
    retryable = True


class NotReadyError(ServiceError):
    """The models are being loaded, or a model is not ready."""

    status, code, title = 503, "not_ready", "The service is not ready"
    retryable = True


class ModelUnavailableError(ServiceError):
    """The model could not be loaded; the cause is in the log."""

    status, code, title = 503, "model_unavailable", "The model could not be loaded"


class StoppingError(ServiceError):
    """The service is shutting down."""

    status, code, title = 503, "stopping", "The service is shutting down"
    retryable = True


class DeadlineExceededError(ServiceError):
    """The response was not ready by the deadline."""

    status, code, title = 504, "deadline_exceeded", "The response was not ready in time"
    retryable = True


class EngineError(ServiceError):
    """The engine failed on a batch; the cause is in the log."""

    status, code, title = 500, "engine_failed", "The model failed on this batch"
    retryable = True


class RestartRequiredError(ServiceError):
    """The engine cannot be used again in this process."""

    status, code, title = 503, "engine_broken", "The service must be restarted"


class InternalError(ServiceError):
    """An unexpected exception; the cause is in the log."""

    status, code, title = 500, "internal_error", "Internal server error"


DETECTION_ERRORS: tuple[type[ServiceError], ...] = (
    BadJsonError,
    BadImageError,
    UnknownModelError,
    SlowBodyError,
    BodyTooLargeError,
    ImageSizeError,
    TooManyInputsError,
    UnsupportedMediaTypeError,
    UnsupportedImageError,
    InvalidOptionError,
    QueueFullError,
    DeadlineUnreachableError,
    RateLimitedError,
    EngineError,
    NotReadyError,
    ModelUnavailableError,
    StoppingError,
    DeadlineExceededError,
)
"""Errors of every request that runs a model."""
MODEL_ERRORS: tuple[type[ServiceError], ...] = (
    UnknownModelError,
    # 422 cannot occur; unless it is declared, FastAPI documents a schema of its own for it.
    InvalidOptionError,
    NotReadyError,
    ModelUnavailableError,
)
"""Errors of requests that describe a model."""
