"""Where the detections come from."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from client.command.sources import Content
from client.errors import ClientError, ImageInputError, ResponseError
from client.http_client import DEFAULT_CONCURRENCY, Client
from client.protocol import DetectOptions
from client.results import DetectionResult
from client.retries import RetryPolicy

JPEG_QUALITY = 95
_FIRST_CONTACT = RetryPolicy(retries=0)
# A restart of the service takes up to a minute, with the loading of its models.
_RUN = RetryPolicy(deadline_s=300, retries=12)


@dataclass(frozen=True)
class ModelDescription:
    """What the outputs need to know of the model."""

    name: str
    version: str
    classes: Sequence[str]
    keypoints: Sequence[str]
    skeleton: Sequence[tuple[int, int]]


class Backend(Protocol):
    """Detects in images; thread-safe. ``concurrency``: images at a time that it can use."""

    model: ModelDescription
    concurrency: int

    def detect(self, content: Content) -> DetectionResult:
        """Return the detections of one image. Raises :class:`ClientError`."""
        ...

    def stop(self) -> None:
        """End the waits of other threads in :meth:`detect`."""
        ...

    def close(self) -> None:
        """Release what the backend holds, after the last call of :meth:`detect`."""
        ...


class ServiceBackend:
    """A model of a service; frames are sent as JPEG of quality :data:`JPEG_QUALITY`."""

    concurrency = DEFAULT_CONCURRENCY

    def __init__(
        self, url: str, model: str | None, api_key: str | None, options: DetectOptions
    ) -> None:
        with Client(url, api_key=api_key, retry=_FIRST_CONTACT) as client:
            found = client.get_model(model)
        self.model = ModelDescription(
            found.name, found.version, found.classes, found.keypoints, found.skeleton
        )
        self._options = options
        self._client = Client(url, api_key=api_key, retry=_RUN)

    def detect(self, content: Content) -> DetectionResult:
        """Return the detections of one image. Raises :class:`ClientError`."""
        image = content if isinstance(content, bytes) else _encode_jpeg(content)
        return self._client.detect(image, model=self.model.name, **self._options)

    def stop(self) -> None:
        """End the waits for retries."""
        self._client.stop_retries()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def concerns_the_image(error: ClientError) -> bool:
    """Return whether other images may succeed although this one failed with ``error``."""
    if isinstance(error, ResponseError):
        return error.status in (400, 413, 415, 500)
    return isinstance(error, ImageInputError)


def _encode_jpeg(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
