"""The detector as a library: a loaded model package that turns images into detections.

    from service.detector import load_detector

    detector = load_detector("models/blood_cells")
    prediction = detector.detect(Path("image.jpg").read_bytes(), score_threshold=0.5)
    prediction.detections.boxes_xyxy

:class:`service.async_detector.AsyncDetector` is the asynchronous counterpart, with batching.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest, ModelPackage, load_package
from service.batching.types import BatchInput, Trigger
from service.cpu_cores import available_cores
from service.decoders import ModelOutput, make_decoder
from service.decoders.types import DetectionOptions, Detections
from service.engines import (
    Engine,
    EngineOptions,
    EngineUnavailableError,
    select_engine,
)
from service.engines.output_check import check_outputs
from service.errors import EngineError
from service.imaging.geometry import ImageTransform
from service.imaging.image_decoding import ArrayImage, DecodedImage, OpenedImage, open_image
from service.imaging.resize import InputPlanner
from service.imaging.types import DecodingCost, InputOptions
from service.imaging.warp import choose_reduction, warp_to_input
from service.option_rules import OptionRules
from service.options import DetectParameters, RequestOptions, validate_options
from service.self_test import SelfTest, make_self_test
from service.settings import Settings

_log = logging.getLogger(__name__)

DEFAULT_GPU_BATCH_SIZE = 16
"""Maximum batch size that GPU engines allocate memory for, unless one is configured."""
LONG_RUN_S = 0.25
"""Seconds. A model whose run takes longer in one thread uses all cores for each run, because its
latency matters more than its throughput."""


class InputPlan(NamedTuple):
    """How the network inputs of an image are made.

    ``reduction``: fraction of its sides, 1, 2, 4 or 8, at which a JPEG is decoded.
    """

    transforms: tuple[ImageTransform, ...]
    reduction: int
    flip: bool


@dataclass(frozen=True)
class PreprocessedImage:
    """Network inputs of one image, each with its transform, and the size of the upright image."""

    inputs: tuple[BatchInput, ...]
    transforms: tuple[ImageTransform, ...]
    width_px: int
    height_px: int
    orientation_applied: bool
    cost: ClassVar[DecodingCost] = DecodingCost(0, 0)


Image = bytes | NDArray[np.uint8] | PreprocessedImage
"""One encoded image (see README.md for the formats), uint8 RGB pixels (height, width, 3), or the
network inputs of an image, made by the same model with the same options."""


@dataclass(frozen=True)
class Prediction:
    """Detections of one image.

    ``orientation_applied``: whether the EXIF orientation changed the image. ``stage_s``: seconds
    per stage (prepare, infer, postprocess; with batching also decode_queue before prepare, and
    queue before infer). ``batch_size`` and ``trigger`` are those of the largest batch that
    an input of the image was part of.
    """

    detections: Detections
    image_width_px: int
    image_height_px: int
    orientation_applied: bool
    stage_s: dict[str, float]
    batch_size: int = 1
    trigger: Trigger = "idle"


class Detector(AbstractContextManager["Detector"]):
    """One loaded model. Thread-safe.

    ``manifest``: the description in ``model.json``; ``engine``: the runtime that executes the
    model; ``rules``: the options that :meth:`detect` accepts for this model. As a context manager,
    it closes the engine at the end of the block.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        engine: Engine,
        *,
        max_image_pixels: int,
        scaled_decoding: bool = True,
    ) -> None:
        self.manifest = manifest
        self.engine = engine
        self.rules = OptionRules(manifest)
        self.decoder = make_decoder(manifest)
        self._max_image_pixels = max_image_pixels
        self._scaled_decoding = scaled_decoding
        self._planner = InputPlanner(manifest, max_image_pixels)
        self._runs = threading.Semaphore(engine.concurrency)

    def detect(self, image: Image, **options: Any) -> Prediction:
        """Return the detections of one image.

        ``options`` are the fields of :class:`service.options.DetectParameters`, such as
        ``score_threshold``, ``top_k``, ``classes``, ``flip`` and ``scales``; the defaults are those
        of the model.

        Raises :class:`service.errors.InvalidOptionError`, the image errors of
        :mod:`service.errors`, and :class:`service.errors.EngineError`.
        """
        return self.run(image, self.rules.complete(validate_options(DetectParameters, options)))

    def run(self, image: Image, options: RequestOptions) -> Prediction:
        """Detect with options that :attr:`rules` has completed; each network input runs alone."""
        began_at = time.perf_counter()
        prepared = self.preprocess(self.open_image(image), options.inputs)
        prepared_at = time.perf_counter()
        outputs = [self._run_engine(network_input) for network_input in prepared.inputs]
        ran_at = time.perf_counter()
        detections = self.postprocess(outputs, prepared, options.detection)
        stage_s = {
            "prepare": prepared_at - began_at,
            "infer": ran_at - prepared_at,
            "postprocess": time.perf_counter() - ran_at,
        }
        return Prediction(
            detections,
            prepared.width_px,
            prepared.height_px,
            prepared.orientation_applied,
            stage_s,
        )

    def _run_engine(self, network_input: BatchInput) -> dict[str, NDArray[Any]]:
        try:
            with self._runs:
                batch = self.engine.run(network_input.pixels[np.newaxis], network_input.flip)
        except Exception as error:  # each runtime raises its own exceptions
            raise EngineError(f"The model could not be run on the image: {error}") from error
        outputs = {name: values[0] for name, values in batch.items()}
        if not np.isfinite(outputs["scores"]).all():
            raise EngineError("The model returned a score that is not finite.")
        return outputs

    def open_image(self, image: Image) -> OpenedImage | ArrayImage | PreprocessedImage:
        """Read the header of an image; raises the image errors of :mod:`service.errors`."""
        if isinstance(image, PreprocessedImage):
            return image
        if isinstance(image, np.ndarray):
            return ArrayImage(image, self._max_image_pixels)
        return open_image(image, self._max_image_pixels)

    def preprocess(
        self, opened: OpenedImage | ArrayImage | PreprocessedImage, options: InputOptions
    ) -> PreprocessedImage:
        """Decode an image and compute its network inputs.

        Raises the image errors of :mod:`service.errors`.
        """
        if isinstance(opened, PreprocessedImage):
            return opened
        plan = self.plan_inputs(opened, options)
        return self.make_inputs(opened, opened.decode(plan.reduction), plan)

    def plan_inputs(self, opened: OpenedImage | ArrayImage, options: InputOptions) -> InputPlan:
        """Return how the network inputs of an image are made."""
        transforms = self._planner.plan_inputs(opened.width_px, opened.height_px, options)
        reduction = choose_reduction(transforms) if self._scaled_decoding else 1
        return InputPlan(transforms, reduction, options.flip)

    def make_inputs(
        self, opened: OpenedImage | ArrayImage, decoded: DecodedImage, plan: InputPlan
    ) -> PreprocessedImage:
        """Compute network inputs from an image that was decoded with the plan's reduction."""
        inputs = tuple(
            BatchInput(pixels, plan.flip, self._relative_work(pixels, plan.flip))
            for pixels in (warp_to_input(decoded, transform) for transform in plan.transforms)
        )
        return PreprocessedImage(
            inputs, plan.transforms, opened.width_px, opened.height_px, opened.orientation_applied
        )

    def postprocess(
        self,
        outputs: Sequence[Mapping[str, NDArray[Any]]],
        prepared: PreprocessedImage,
        options: DetectionOptions,
    ) -> Detections:
        """Decode the outputs (without batch axis) of the inputs of one image, in their order."""
        model_outputs = [
            ModelOutput(tensors, transform)
            for tensors, transform in zip(outputs, prepared.transforms, strict=True)
        ]
        return self.decoder.decode(model_outputs, options)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def _relative_work(self, pixels: NDArray[np.uint8], flip: bool) -> float:
        """Return the cost of an input; one of the default size without ``flip`` costs 1."""
        spec = self.manifest.input
        return (1 + flip) * pixels.size / (3 * spec.height_px * spec.width_px)


def load_detector(package: Path | str, **settings: Any) -> Detector:
    """Load one model package.

    ``settings`` are fields of :class:`service.settings.Settings`, such as ``backend``,
    ``engine_threads``, ``max_batch_size`` and ``max_image_pixels``; the others are read from the
    environment (``CENTERNET_*``) as the service does. The engine passes the self-test once; engines
    are not built (``build_engines``).

    Raises :class:`model_package.PackageError`, :class:`service.engines.EngineUnavailableError` and,
    for invalid settings, :class:`pydantic.ValidationError`.
    """
    fields: dict[str, Any] = {"models": Path(package), "default_model": None, **settings}
    return open_detector(load_package(Path(package)), Settings(**fields))[0]


def open_detector(package: ModelPackage, settings: Settings) -> tuple[Detector, SelfTest]:
    """Open the engine of a loaded package; see :func:`open_model_engine`."""
    engine, self_test = open_model_engine(package, settings)
    detector = Detector(
        package.manifest,
        engine,
        max_image_pixels=settings.max_image_pixels,
        scaled_decoding=settings.scaled_decoding,
    )
    return detector, self_test


def open_model_engine(package: ModelPackage, settings: Settings) -> tuple[Engine, SelfTest]:
    """Open the fastest engine that passes the self-test, and return both.

    On the CPU, the number of threads is chosen by the duration of one run. Raises
    :class:`service.engines.EngineUnavailableError`.
    """
    cores = available_cores()
    threads = settings.engine_threads or 1
    options = EngineOptions(
        threads,
        settings.engine_concurrency or max(1, cores // threads),
        settings.max_batch_size or DEFAULT_GPU_BATCH_SIZE,
    )
    self_tests: list[SelfTest] = []

    def accept(engine: Engine) -> None:
        check_outputs(engine, package.manifest, 1)
        if not self_tests:
            self_tests.append(make_self_test(package, engine))
        _accept(engine, self_tests[0], is_chosen=settings.precision == "auto")

    selection = select_engine(package, settings.backend, settings.precision, options, accept)
    _log.info("%s: %s", package.manifest.name, selection)
    engine, candidate = selection.engine, selection.candidate
    is_chosen = settings.engine_threads is None and settings.engine_concurrency is None
    if is_chosen and candidate.on_cpu and cores > 1:
        spec = package.manifest.input
        began_at = time.perf_counter()
        engine.run(np.zeros((1, spec.height_px, spec.width_px, 3), np.uint8))
        if time.perf_counter() - began_at > LONG_RUN_S:
            engine.close()
            options = EngineOptions(cores, 1, options.max_batch_size)
            engine = select_engine(
                package, candidate.backend, engine.precision, options, accept
            ).engine
    return engine, self_tests[0]


def _accept(engine: Engine, self_test: SelfTest, *, is_chosen: bool) -> None:
    """Raise :class:`EngineUnavailableError` if the engine does not pass the self-test.

    ``is_chosen``: the service chooses the precision, and not the user.
    """
    if is_chosen and engine.precision in ("bf16", "int8") and not self_test.is_recorded:
        raise EngineUnavailableError(
            f"the package has no recorded references to check {engine.precision} with. "
            "Add them with centernet-export references."
        )
    if not engine.is_reference:
        self_test.check(engine)
