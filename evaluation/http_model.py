"""A model behind a running service."""

from collections.abc import Callable, Sequence

from client import Client, ClientError, RetryPolicy
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

    ``api_key``: sent with each request where it is not None. Raises :class:`EvaluationError` if the
    service cannot be reached or is not ready, and for an unknown model.
    """

    def __init__(self, url: str, name: str | None, api_key: str | None = None) -> None:
        self._url = url
        self._api_key = api_key
        try:
            # An unreachable service is reported at once; later it may be restarting.
            with Client(url, api_key=api_key, retry=RetryPolicy(retries=0)) as client:
                model = client.get_model(name)
        except ClientError as error:
            raise EvaluationError(f"{url}: {error}") from error
        self.model = ModelUnderTest(
            name=model.name,
            version=model.version,
            kind=model.task,
            classes=model.classes,
            score_threshold=model.score_threshold,
            top_k=model.top_k,
            engine=model.engine,
            reached="over HTTP",
            keypoints=model.keypoints,
            skeleton=model.skeleton,
        )

    def detect(
        self, images: Sequence[LabelledImage], on_result: Callable[[], object]
    ) -> DetectionRun:
        """Send all images; see :meth:`evaluation.model_under_test.DetectionSource.detect`."""
        with Client(self._url, api_key=self._api_key) as client:
            return run_detection(lambda image: self._request(client, image), images, on_result)

    def _request(self, client: Client, image: LabelledImage) -> tuple[ImageDetections, float]:
        body = read_image(image)
        stopwatch = Stopwatch()
        try:
            result = client.detect(body, model=self.model.name, **self.model.options(image))
        except ClientError as error:
            raise EvaluationError(f"{image.path}: {error}") from error
        return self.model.read_detections(result.raw["detections"]), stopwatch.seconds
