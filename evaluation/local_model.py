"""A model package that runs in this process."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from model_package import ModelManifest, PackageError
from service.decoders import Decoder
from service.decoders.types import DetectionOptions
from service.detector import load_detector
from service.engines import EngineUnavailableError
from service.errors import ServiceError
from service.http.responses import to_json, to_response
from service.options import DetectParameters, RequestOptions, validate_options

ImageOptions = Callable[[LabelledImage, DetectionOptions], DetectionOptions]


class LocalModel:
    """A package, loaded by the service's library; ``CENTERNET_*`` variables apply as there.

    ``decoder_class`` replaces that of the package's decoder; ``image_options`` then maps an image
    and its decoding options to those that the decoder receives. ``settings`` are those of
    :func:`service.detector.load_detector`. Raises :class:`EvaluationError`.
    """

    def __init__(
        self,
        package: Path,
        decoder_class: Callable[[Any], Decoder] | None = None,
        image_options: ImageOptions | None = None,
        **settings: Any,
    ) -> None:
        try:
            self._detector = load_detector(package, **settings)
        except (PackageError, EngineUnavailableError) as error:
            raise EvaluationError(str(error)) from error
        if decoder_class is not None:
            self._detector.decoder = decoder_class(self._detector.manifest.decoder)
        self._image_options = image_options
        self.model = describe_model(self._detector.manifest, self._detector.engine.description)

    def detect(
        self, images: Sequence[LabelledImage], on_result: Callable[[], object]
    ) -> DetectionRun:
        """Process all images, then close the engine; can be called once."""
        with self._detector:
            return run_detection(self._detect_image, images, on_result)

    def _detect_image(self, image: LabelledImage) -> tuple[ImageDetections, float]:
        body = read_image(image)
        options = self._options(image)
        stopwatch = Stopwatch()
        try:
            prediction = self._detector.run(body, options)
        except ServiceError as error:
            raise EvaluationError(f"{image.path}: {error}") from error
        seconds = stopwatch.seconds
        # As a client receives them: with rounded numbers.
        response = json.loads(to_json(to_response(self._detector.manifest, prediction, "")))
        return self.model.read_detections(response["detections"]), seconds

    def _options(self, image: LabelledImage) -> RequestOptions:
        options = self._detector.rules.complete(
            validate_options(DetectParameters, self.model.options(image))
        )
        if self._image_options is None:
            return options
        return replace(options, detection=self._image_options(image, options.detection))


def describe_model(manifest: ModelManifest, engine: str) -> ModelUnderTest:
    """Return the model of ``manifest``, run by ``engine`` in this process."""
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
