"""An asynchronous client of the service."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from client.errors import ClientError
from client.http_client import DEFAULT_CONCURRENCY, default_model
from client.images import ImageInput, encode_image
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


class AsyncClient:
    """The asynchronous counterpart of :class:`client.Client`, with the same methods and retries.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            result = await client.detect("image.jpg")
            async for result in client.detect_many(["one.jpg", "two.jpg"]):
                ...

    Images are read and encoded in threads. A call that is cancelled closes its connection, and
    the service stops working on it.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, retry: RetryPolicy | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._retry = retry or RetryPolicy()
        try:
            self._http = httpx.AsyncClient(**http_settings(url, api_key))
        except httpx.InvalidURL as error:
            raise invalid_url(url, error) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def detect(
        self, image: ImageInput, *, model: str | None = None, **options: Unpack[DetectOptions]
    ) -> DetectionResult:
        """Return the detections of one image; see :meth:`client.Client.detect`."""
        encoded = await asyncio.to_thread(encode_image, image)
        return parse_result(await self._send(detect_call(encoded, model, options)))

    async def detect_many(
        self,
        images: Iterable[ImageInput],
        *,
        model: str | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[DetectOptions],
    ) -> AsyncIterator[DetectionResult | ClientError]:
        """Yield the result of each image, or its error; see :meth:`client.Client.detect_many`."""

        async def detect_one(image: ImageInput) -> DetectionResult | ClientError:
            try:
                return await self.detect(image, model=model, **options)
            except ClientError as error:
                return error

        pending: deque[asyncio.Task[DetectionResult | ClientError]] = deque()
        try:
            for image in images:
                if len(pending) == concurrency:
                    yield await pending.popleft()
                pending.append(asyncio.create_task(detect_one(image)))
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def list_models(self) -> tuple[Model, ...]:
        """Return the loaded models."""
        return parse_models(await self._send(list_models_call()))

    async def get_model(self, name: str | None = None) -> Model:
        """Return the description of one model, by default of the default one."""
        if name is None:
            name = default_model(await self.list_models())
        return parse_model(await self._send(get_model_call(name)))

    async def _send(self, call: Call) -> dict[str, Any]:
        attempts = Attempts(self._retry)
        while True:
            try:
                return await self._attempt(call, attempts.timeout_s())
            except ClientError as error:
                delay_s = attempts.delay_s(error)
            await asyncio.sleep(delay_s)

    async def _attempt(self, call: Call, timeout_s: float) -> dict[str, Any]:
        with translated_errors(f"{self._url}{call.path}", timeout_s):
            response = await self._http.request(**http_arguments(call, timeout_s))
        return read_response(response)
