"""A model behind a running service."""

from collections.abc import Callable, Sequence

from client.http_client import ClientError, ServiceClient
from evaluation.detections import ImageDetections
from evaluation.errors import EvaluationError
from evaluation.ground_truth import LabelledImage
from evaluation.model_under_test import (
    DetectionRun,
    ModelUnderTest,
    Stopwatch,
    read_image,
    run_detection,
)


class HttpModel:
    """The model ``name`` of the service at ``url``, or its default model.

    Raises :class:`EvaluationError` if the service cannot be reached or is not ready, and for an
    unknown model.
    """

    def __init__(self, url: str, name: str | None) -> None:
        self._url = url
        try:
            with ServiceClient(url) as client:
                if name is None:
                    name = next(m["name"] for m in client.list_models() if m["default"])
                metadata = client.get_model(name)
        except ClientError as error:
            raise EvaluationError(f"{url}: {error}") from error
        self.model = ModelUnderTest(
            name=metadata["name"],
            version=metadata["version"],
            kind=metadata["task"],
            classes=tuple(metadata["classes"]),
            score_threshold=metadata["score_threshold"],
            top_k=metadata["top_k"],
            engine=metadata["engine"],
            reached="over HTTP",
            keypoints=tuple(metadata.get("keypoints", ())),
            skeleton=tuple((start, end) for start, end in metadata.get("skeleton", ())),
        )

    def detect(
        self, images: Sequence[LabelledImage], on_result: Callable[[], object]
    ) -> DetectionRun:
        """Send all images; see :meth:`evaluation.model_under_test.DetectionSource.detect`."""
        with ServiceClient(self._url) as client:
            return run_detection(lambda image: self._request(client, image), images, on_result)

    def _request(
        self, client: ServiceClient, image: LabelledImage
    ) -> tuple[ImageDetections, float]:
        body = read_image(image)
        stopwatch = Stopwatch()
        try:
            response = client.detect(body, model=self.model.name, options=self.model.options(image))
        except ClientError as error:
            raise EvaluationError(f"{image.path}: {error}") from error
        return self.model.read_detections(response["detections"]), stopwatch.seconds
