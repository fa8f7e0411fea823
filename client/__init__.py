"""Client of the service: detections as typed objects, drawing, and ``centernet-detect``.

    from client import Client

    with Client("http://127.0.0.1:8000", api_key=None) as client:
        result = client.detect("image.jpg", score_threshold=0.5)
        print(result.detections[0].class_name, result.boxes_xyxy)

:class:`AsyncClient` is the asynchronous counterpart; :mod:`client.drawing` draws detections. Only
httpx is needed: Pillow for arrays and drawing, NumPy for the arrays of a result.
"""

from client.errors import (
    ClientError,
    ConnectionFailedError,
    ImageInputError,
    InvalidResponseError,
    InvalidUrlError,
    ResponseError,
    ResponseTimeoutError,
)
from client.http_client import Client
from client.protocol import DetectOptions
from client.results import Box3D, Detection, DetectionResult, Keypoint, Model
from client.retries import RetryPolicy

__all__ = [
    "AsyncClient",
    "Box3D",
    "Client",
    "ClientError",
    "ConnectionFailedError",
    "DetectOptions",
    "Detection",
    "DetectionResult",
    "ImageInputError",
    "InvalidResponseError",
    "InvalidUrlError",
    "Keypoint",
    "Model",
    "ResponseError",
    "ResponseTimeoutError",
    "RetryPolicy",
]


def __getattr__(name: str) -> object:
    # asyncio takes a quarter of the time of importing this package, and few programs need it.
    if name == "AsyncClient":
        from client.async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
