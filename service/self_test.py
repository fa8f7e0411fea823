"""Self-test: detect an engine that returns wrong outputs, before it is used and at intervals.

The expected outputs are those that the export recorded in the package or, in a package without
them, those of ONNX Runtime in fp32 on the CPU for a synthetic image.

Scores are compared after sorting: near ties may change their order between backends and
precisions, while sorted scores hardly change.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.output_agreement import (
    AGREEMENT_LIMITS,
    SCORE_TOLERANCES,
    Agreement,
    AgreementLimits,
    combine_agreements,
    compare_outputs,
)
from labels.outputs import Outputs
from model_package import InputSpec, ModelManifest, ModelPackage, PackageInvalidError
from service.cpu_cores import available_cores
from service.engines import Engine, EngineUnavailableError, open_engine
from service.engines.precision import ComputePrecision

MAX_REFERENCES_BYTES = 256 * 1024 * 1024
"""Limit on the recorded images and outputs in memory."""

_SEED = 7
_SHAPE_COUNT = 40


class SelfTest:
    """Images of one model, and the outputs that a reference engine gives for them.

    ``images``: uint8 RGB (n, height, width, 3); ``outputs`` by name, (n, ...). ``is_recorded``:
    whether they are from the package; then detections are compared, in lower precisions from
    ``score_threshold``, that of the model.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        outputs: Mapping[str, NDArray[Any]],
        *,
        is_recorded: bool = False,
        score_threshold: float = 0.0,
    ) -> None:
        self.pixels = images[0]
        """The image of the periodic self-test."""
        self.is_recorded = is_recorded
        self._score_threshold = score_threshold
        self._images = images
        self._rows = [_row(outputs, index) for index in range(len(images))]

    @classmethod
    def from_engine(cls, spec: InputSpec, reference: Engine) -> "SelfTest":
        """Run the reference engine on a synthetic image."""
        images = draw_test_image(spec.height_px, spec.width_px)[np.newaxis]
        return cls(images, reference.run(images))

    def error_of(
        self, outputs: Mapping[str, NDArray[Any]], precision: ComputePrecision
    ) -> str | None:
        """Compare the first outputs of a batch, those for :attr:`pixels`, with the reference.

        Returns a description of the error, or None if the scores agree within the tolerance of
        ``precision``.
        """
        return _score_error(self._rows[0], _row(outputs, 0), SCORE_TOLERANCES[precision])

    def check(self, engine: Engine) -> None:
        """Run the engine on every image.

        Raises :class:`EngineUnavailableError` if a score differs by more than the tolerance of the
        engine's precision or, with recorded outputs, if too few detections match within its limits.
        """
        # The detections of fp16 files were compared when the package was made.
        compares_detections = self.is_recorded and engine.precision != "fp16"
        limits = AGREEMENT_LIMITS[engine.precision]
        agreements = []
        for image, reference in zip(self._images, self._rows, strict=True):
            outputs = _row(engine.run(image[np.newaxis]), 0)
            if error := _score_error(reference, outputs, SCORE_TOLERANCES[engine.precision]):
                raise EngineUnavailableError(f"{engine.description}: {error}")
            if compares_detections:
                agreements.append(
                    compare_outputs(reference, outputs, limits, self._score_threshold)
                )
        if compares_detections:
            _check_agreement(combine_agreements(agreements), limits, engine)


def _check_agreement(agreement: Agreement, limits: AgreementLimits, engine: Engine) -> None:
    if agreement.is_within(limits):
        return
    keypoints = ""
    if agreement.keypoints:
        keypoints = (
            f", and {agreement.keypoints_matched} of {agreement.keypoints} of their keypoints"
        )
    needed = f"at least {limits.min_share:.0%} must"
    if agreement.compared < limits.min_count:
        needed = (
            f"at least {limits.min_count} are needed. Record images with more objects with "
            "centernet-export references"
        )
    raise EngineUnavailableError(
        f"{engine.description}: {agreement.matched} of {agreement.compared} detections in the "
        f"recorded images match the references of the package{keypoints}; {needed}."
    )


def make_self_test(package: ModelPackage, engine: Engine) -> SelfTest:
    """Create the self-test from the recorded references, or with the fp32 file on the CPU.

    ``engine`` is used if it is the reference engine.
    """
    manifest = package.manifest
    if manifest.references is not None:
        return _read_references(package.directory / manifest.references.file, manifest)
    if engine.is_reference:
        return SelfTest.from_engine(manifest.input, engine)
    reference = open_engine(package, "onnxruntime-cpu", available_cores())
    try:
        return SelfTest.from_engine(manifest.input, reference)
    finally:
        reference.close()


def _read_references(path: Path, manifest: ModelManifest) -> SelfTest:
    """Read recorded images and outputs; raises :class:`PackageInvalidError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            expanded_bytes = sum(member.file_size for member in archive.infolist())
        if expanded_bytes > MAX_REFERENCES_BYTES:
            raise ValueError(f"it expands to more than {MAX_REFERENCES_BYTES} bytes")
        with np.load(path) as file:
            images = file["images"]
            outputs = {output.name: file[output.name] for output in manifest.decoder.outputs()}
        # Rows are compared pairwise, so that their number must be bounded.
        _check_array("images", images, "uint8", (len(images), *images.shape[1:3], 3))
        for output in manifest.decoder.outputs():
            shape = (len(images), *output.shape)
            _check_array(output.name, outputs[output.name], output.dtype, shape)
        threshold = manifest.decoder.score_threshold
        return SelfTest(images, outputs, is_recorded=True, score_threshold=threshold)
    except Exception as error:  # NumPy raises any exception for a damaged file
        raise PackageInvalidError(
            f"{path} does not contain references of this model: {error}. "
            "Record them again with centernet-export references."
        ) from error


def _check_array(name: str, array: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> None:
    if (array.dtype, array.shape) != (np.dtype(dtype), shape):
        raise ValueError(f"{name} is {array.dtype} {array.shape} instead of {dtype} {shape}")


def _row(outputs: Mapping[str, NDArray[Any]], index: int) -> Outputs:
    return {name: values[index] for name, values in outputs.items()}


def _score_error(reference: Outputs, outputs: Outputs, tolerance: float) -> str | None:
    scores = _sorted_scores(outputs)
    if not np.isfinite(scores).all():
        return "a score of the self-test image is not a finite number"
    max_error = float(np.abs(scores - _sorted_scores(reference)).max())
    if max_error > tolerance:
        return (
            f"a score of the self-test image differs by {max_error:.3g} from its reference; "
            f"at most {tolerance} is accepted"
        )
    return None


def _sorted_scores(outputs: Outputs) -> NDArray[np.float64]:
    return np.sort(outputs["scores"].astype(np.float64))


def draw_test_image(height_px: int, width_px: int) -> NDArray[np.uint8]:
    """Draw discs on a colour gradient, uint8 RGB (height, width, 3), identical on every run."""
    random = np.random.default_rng(_SEED)
    rows, columns = np.mgrid[0:height_px, 0:width_px].astype(np.float32)
    image = np.stack([rows / height_px, columns / width_px, 1 - rows / height_px], 2) * 200
    for _ in range(_SHAPE_COUNT):
        y, x = random.uniform(0, height_px), random.uniform(0, width_px)
        radius = random.uniform(0.02, 0.1) * min(height_px, width_px)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image[inside] = random.uniform(0, 255, 3)
    return image.astype(np.uint8)
