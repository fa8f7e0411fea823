"""Verification of an int8 file against the fp32 file, on detections."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labels.output_agreement import AGREEMENT_LIMITS, SCORE_TOLERANCES, count_agreeing
from model_export.errors import QuantizationError
from model_export.verification.comparison import Detections
from model_export.verification.onnx_vs_torch import Image, onnx_runner
from model_package import Verification
from model_package.onnxruntime import load_onnxruntime

_LIMITS = AGREEMENT_LIMITS["int8"]


def verify_int8(
    int8_file: bytes,
    fp32_file: Path,
    output_names: Sequence[str],
    recorded_images: Sequence[Image],
    more_images: Sequence[Image],
) -> Verification:
    """Compare the detections of both files in ONNX Runtime.

    ``int8_file`` is the serialized model. ``recorded_images`` are those of the package's
    references: they must pass the service's self-test, so that an accepted file is one that the
    service uses. With ``more_images``, the share of the detections that agree must be as large; the
    worst score is not compared there, because it grows with the number of images. Raises
    :class:`QuantizationError`.
    """
    run_fp32, run_int8 = onnx_runner(fp32_file, output_names), onnx_runner(int8_file, output_names)
    agreeing = counted = 0
    score_error = 0.0
    for index, image in enumerate([*recorded_images, *more_images]):
        reference, outputs = (run(image[np.newaxis])[0] for run in (run_fp32, run_int8))
        counts = count_agreeing(reference, outputs, _LIMITS)
        agreeing, counted = agreeing + counts[0], counted + counts[1]
        if index < len(recorded_images):
            score_error = max(score_error, _score_error(reference, outputs))
        if index == len(recorded_images) - 1:
            _check_share(agreeing, counted, len(recorded_images))
    _check_share(agreeing, counted, len(recorded_images) + len(more_images))
    if score_error > SCORE_TOLERANCES["int8"]:
        raise QuantizationError(
            f"a score in the recorded images differs by {score_error:.3g} between int8 and fp32; "
            f"at most {SCORE_TOLERANCES['int8']} is accepted."
        )
    return Verification(
        reference=f"{fp32_file.name}, fp32, ONNX Runtime {load_onnxruntime().__version__}, CPU",
        inputs=len(recorded_images) + len(more_images),
        tolerances={
            "overlap": _LIMITS.overlap,
            "scores": _LIMITS.score,
            "values": _LIMITS.value,
            "sorted_scores": SCORE_TOLERANCES["int8"],
        },
        worst_errors={"sorted_scores": score_error},
        matched_fraction=agreeing / counted,
        detections=counted,
        matched=agreeing,
    )


def _score_error(reference: Detections, outputs: Detections) -> float:
    """Return the largest difference of the sorted scores."""
    before, after = (np.sort(rows["scores"].astype(np.float64)) for rows in (reference, outputs))
    return float(np.abs(before - after).max())


def _check_share(agreeing: int, counted: int, images: int) -> None:
    if agreeing < _LIMITS.min_share * max(_LIMITS.min_count, counted):
        raise QuantizationError(
            f"{agreeing} of {counted} detections in {images} images agree between int8 and fp32; "
            f"at least {_LIMITS.min_share:.0%} of at least {_LIMITS.min_count} must."
        )
