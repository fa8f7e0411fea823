"""A package in this process, run by the service's own code."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.detections import Answer
from evaluation.errors import EvaluationError
from evaluation.ground_truth import LabelledImage
from evaluation.model_under_test import IN_FLIGHT, ModelUnderTest, Run, Stopwatch, read_image
from model_package import ModelManifest, PackageError, load_package
from service.batching.batcher import SchedulingOptions
from service.decoders import Decoder
from service.decoders.types import DetectionOptions
from service.engines import EngineUnavailableError
from service.errors import ServiceError
from service.http.query_parameters import DetectParameters
from service.http.schemas import to_json, to_response
from service.model_registry import load_models
from service.observability.metrics import Metrics
from service.options import RequestOptions
from service.settings import Settings

AskFor = Callable[[LabelledImage, DetectionOptions], DetectionOptions]


class OfflinePackage:
    """A package as the service would load it here; ``CENTERNET_*`` variables hold as they do there.

    ``decoder`` replaces the package's own; ``ask_for`` then changes what each image's decoding
    is given. Raises :class:`EvaluationError` for what cannot be loaded.
    """

    def __init__(
        self, package: Path, decoder: Decoder | None = None, ask_for: AskFor | None = None
    ) -> None:
        try:
            load_package(package)  # a directory of several packages would be loaded, too
            chosen: dict[str, Any] = {"models": package, "default_model": None}
            settings = Settings(**chosen)
            self._models = load_models(settings, Metrics(), lambda _: None)
        except (PackageError, EngineUnavailableError) as error:
            raise EvaluationError(str(error)) from error
        self._predictor = self._models.get(None)
        if decoder is not None:
            self._predictor.decoder = decoder
        self._ask_for = ask_for
        self.model = _describe(self._predictor.manifest, self._predictor.engine_description)

    def detect(self, images: Sequence[LabelledImage], answered: Callable[[], object]) -> Run:
        """Evaluate all images; this can be done once, because the engine is closed at the end."""
        return asyncio.run(self._detect(images, answered))

    async def _detect(self, images: Sequence[LabelledImage], answered: Callable[[], object]) -> Run:
        run = Run([None] * len(images))
        waiting = iter(enumerate(images))

        async def work() -> None:
            for index, image in waiting:
                answer, seconds = await self._ask(image)
                run.answers[index] = answer
                run.latencies_s.append(seconds)
                answered()

        self._models.start(None)
        try:
            await self._ask(images[0])
            began = Stopwatch()
            async with asyncio.TaskGroup() as workers:
                for _ in range(IN_FLIGHT):
                    workers.create_task(work())
            run.wall_s = began.seconds
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._models.stop()
        return run

    async def _ask(self, image: LabelledImage) -> tuple[Answer, float]:
        body = read_image(image)
        options = self._options(image)
        began = Stopwatch()
        try:
            prediction = await self._predictor.predict(body, options, SchedulingOptions())
        except ServiceError as error:
            raise EvaluationError(f"{image.path}: {error}") from error
        seconds = began.seconds
        # By way of the wire: the numbers are rounded as a client would get them.
        answer = json.loads(to_json(to_response(self._predictor.manifest, prediction, "")))
        return self.model.read(answer["detections"]), seconds

    def _options(self, image: LabelledImage) -> RequestOptions:
        options = self._predictor.options(DetectParameters(**self.model.options(image)))
        if self._ask_for is None:
            return options
        return replace(options, detection=self._ask_for(image, options.detection))


def _describe(manifest: ModelManifest, engine: str) -> ModelUnderTest:
    decoder = manifest.decoder
    return ModelUnderTest(
        name=manifest.name,
        version=manifest.version,
        kind=decoder.kind,
        classes=manifest.classes,
        score_threshold=decoder.score_threshold,
        top_k=decoder.top_k,
        engine=engine,
        reached="offline",
        keypoints=getattr(decoder, "keypoints", ()),
        skeleton=getattr(decoder, "skeleton", ()),
    )
