"""A model behind a running service."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from client.detect import ask_service, request_detections
from evaluation.detections import Answer
from evaluation.errors import EvaluationError
from evaluation.ground_truth import LabelledImage
from evaluation.model_under_test import IN_FLIGHT, ModelUnderTest, Run, Stopwatch, read_image


class ServedModel:
    """The model of that name behind ``url``; the default one for None.

    Raises :class:`EvaluationError` when there is no service, when it is not ready, and when it
    has no such model.
    """

    def __init__(self, url: str, name: str | None) -> None:
        self._url = url.rstrip("/")
        try:
            if name is None:
                listing = ask_service(f"{self._url}/models", "models")["models"]
                name = next(one["name"] for one in listing if one["default"])
            facts = ask_service(f"{self._url}/models/{quote(name, safe='')}", "manifest")
        except (OSError, RuntimeError, ValueError) as error:
            raise EvaluationError(f"{url}: {error}") from error
        self.model = ModelUnderTest(
            name=facts["name"],
            version=facts["version"],
            kind=facts["task"],
            classes=tuple(facts["classes"]),
            score_threshold=facts["score_threshold"],
            top_k=facts["top_k"],
            engine=facts["engine"],
            reached="over HTTP",
            keypoints=tuple(facts.get("keypoints", ())),
            skeleton=tuple((start, end) for start, end in facts.get("skeleton", ())),
        )

    def detect(self, images: Sequence[LabelledImage], answered: Callable[[], object]) -> Run:
        """Send all images, several at a time; the first refusal ends it."""
        self._ask(images[0])
        run = Run([None] * len(images))
        began = Stopwatch()
        with ThreadPoolExecutor(IN_FLIGHT) as clients:
            try:
                for index, (answer, seconds) in enumerate(clients.map(self._ask, images)):
                    run.answers[index] = answer
                    run.latencies_s.append(seconds)
                    answered()
            except BaseException:
                clients.shutdown(cancel_futures=True)
                raise
        run.wall_s = began.seconds
        return run

    def _ask(self, image: LabelledImage) -> tuple[Answer, float]:
        body = read_image(image)
        began = Stopwatch()
        try:
            answer = request_detections(
                self._url, body, model=self.model.name, options=self.model.options(image)
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise EvaluationError(f"{image.path}: {error}") from error
        return self.model.read(answer["detections"]), began.seconds
