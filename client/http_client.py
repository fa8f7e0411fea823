"""A synchronous client of the service."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from client.errors import ClientError
from client.images import ImageInput, encode_image
from client.ordered_map import ordered_map
from client.protocol import (
    Call,
    DetectOptions,
    detect_call,
    get_model_call,
    http_arguments,
    http_settings,
    invalid_url,
    list_models_call,
    read_response,
    translated_errors,
)
from client.results import DetectionResult, Model, parse_model, parse_models, parse_result
from client.retries import Attempts, RetryPolicy

DEFAULT_CONCURRENCY = 32
"""Requests in flight of :meth:`Client.detect_many`: enough for two batches of 16 images, and a
quarter of the service's default queue."""


class Client:
    """A client of the service at ``url``; one instance may be used by several threads.

        with Client("http://127.0.0.1:8000") as client:
            result = client.detect("image.jpg", score_threshold=0.5)
            for detection in result.detections:
                print(detection.class_name, detection.score, detection.bbox)

    ``api_key``: sent as ``Authorization: Bearer``. ``retry``: time-outs, and the limits of
    retries. A request is sent again after a temporary failure (the connection is refused or
    closed, no response in time, 408, 429, 5xx), unless the problem document says that it cannot
    succeed; see :class:`client.RetryPolicy`. Every method raises :class:`client.ClientError`.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, retry: RetryPolicy | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._retry = retry or RetryPolicy()
        self._stopping = threading.Event()
        try:
            self._http = httpx.Client(**http_settings(url, api_key))
        except httpx.InvalidURL as error:
            raise invalid_url(url, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def stop_retries(self) -> None:
        """Let calls in other threads that fail, or wait for a retry, raise their last error."""
        self._stopping.set()

    def close(self) -> None:
        """Close the connections, after the last call in any thread."""
        self._http.close()

    def detect(
        self, image: ImageInput, *, model: str | None = None, **options: Unpack[DetectOptions]
    ) -> DetectionResult:
        """Return the detections of one image, by ``model`` or the service's default model.

        ``image``: see :func:`client.images.encode_image`; ``options``: see
        :class:`client.DetectOptions`.
        """
        return parse_result(self._send(detect_call(encode_image(image), model, options)))

    def detect_many(
        self,
        images: Iterable[ImageInput],
        *,
        model: str | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[DetectOptions],
    ) -> Iterator[DetectionResult | ClientError]:
        """Yield the result of each image in their order, or the error in its place.

            for result in client.detect_many(Path("images").glob("*.jpg")):
                if isinstance(result, ClientError):
                    ...

        Up to ``concurrency`` images are sent at a time, each in its own request, from which the
        service forms batches. ``images`` may be a generator: at most ``concurrency`` images and
        results are held in memory.
        """

        def detect_one(image: ImageInput) -> DetectionResult | ClientError:
            try:
                return self.detect(image, model=model, **options)
            except ClientError as error:
                return error

        with ThreadPoolExecutor(concurrency) as threads:
            yield from ordered_map(threads, detect_one, images, concurrency)

    def list_models(self) -> tuple[Model, ...]:
        """Return the loaded models."""
        return parse_models(self._send(list_models_call()))

    def get_model(self, name: str | None = None) -> Model:
        """Return the description of one model, by default of the default one."""
        if name is None:
            name = default_model(self.list_models())
        return parse_model(self._send(get_model_call(name)))

    def _send(self, call: Call) -> dict[str, Any]:
        attempts = Attempts(self._retry)
        while True:
            try:
                return self._attempt(call, attempts.timeout_s())
            except ClientError as error:
                delay_s = attempts.delay_s(error)
                if self._stopping.wait(delay_s):
                    raise

    def _attempt(self, call: Call, timeout_s: float) -> dict[str, Any]:
        with translated_errors(f"{self._url}{call.path}", timeout_s):
            response = self._http.request(**http_arguments(call, timeout_s))
        return read_response(response)


def default_model(models: Iterable[Model]) -> str:
    """Return the name of the default model. Raises :class:`ClientError` if there is none."""
    name = next((model.name for model in models if model.is_default), None)
    if name is None:
        raise ClientError("The service has no default model that is loaded: name the model.")
    return name
