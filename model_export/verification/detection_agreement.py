"""Verification of fp16 and int8 files against the fp32 file, on detections.

:mod:`labels.output_agreement` has the comparison and the limits.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from labels.output_agreement import (
    AGREEMENT_LIMITS,
    SCORE_TOLERANCES,
    Agreement,
    combine_agreements,
    compare_outputs,
    squared_errors,
)
from labels.outputs import Outputs, add_exceptions
from model_export.errors import Fp16Error, QuantizationError
from model_export.verification.fp16_rounding import with_explicit_rounding
from model_export.verification.onnx_vs_torch import Image, Run, onnx_runner, run_on_all
from model_package import Decoder, Verification
from model_package.onnxruntime import load_onnxruntime

ort = load_onnxruntime()

MIN_COMPARED_FRACTION = 0.5
"""Share of the fp32 file's detections that must match in fp16; ties alone verify nothing."""


def verify_fp16(
    fp16_file: Path, fp32_file: Path, output_names: Sequence[str], images: Sequence[Image]
) -> Verification:
    """Compare the detections of both files in ONNX Runtime on ``images``.

    The fp16 file runs twice: unchanged, and with explicit rounding, an upper bound of the rounding
    on a GPU (see :mod:`model_export.verification.fp16_rounding`). Raises :class:`Fp16Error` if too
    few detections match in either run.
    """
    run = onnx_runner(fp32_file, output_names)
    references = [run(image[np.newaxis])[0] for image in images]
    del run  # large networks: only one session in memory
    agreements = []
    for run_fp16 in _fp16_runners(fp16_file, output_names):
        agreements.append(_compare_all(references, run_fp16, images))
        _check_fp16(agreements[-1])
    worst = min(agreements, key=lambda agreement: agreement.matched_fraction)
    names = worst.worst_errors
    tolerances = AGREEMENT_LIMITS["fp16"].tolerances()
    return Verification(
        reference=_reference(fp32_file),
        inputs=len(images),
        tolerances={name: tolerances[name] for name in names},
        worst_errors={name: max(one.worst_errors[name] for one in agreements) for name in names},
        matched_fraction=worst.matched_fraction,
        detections=worst.found,
        matched=worst.matched,
        exceptions=_exceptions(worst),
    )


class Int8Error:
    """Measures how far the detections of int8 files are from those of the fp32 file.

    Raises :class:`QuantizationError` if the fp32 file finds nothing in ``images`` from the score
    threshold.
    """

    def __init__(self, fp32_file: Path, decoder: Decoder, images: Sequence[Image]) -> None:
        self._decoder, self._images = decoder, images
        self._output_names = [output.name for output in decoder.outputs()]
        self._references = self._run(fp32_file)
        if not self._errors(self._references).size:
            raise QuantizationError(
                f"the fp32 file finds nothing with a score from {decoder.score_threshold:g} in "
                f"{len(images)} of the images. Calibrate with images of the objects that the "
                "network detects."
            )

    def __call__(self, int8_file: bytes) -> float:
        """Return the mean squared error of the detections relative to the limits, from 0 to 1."""
        return float(self._errors(self._run(int8_file)).mean())

    def _run(self, file: Path | bytes) -> list[Outputs]:
        run = onnx_runner(file, self._output_names)
        return [run(image[np.newaxis])[0] for image in self._images]

    def _errors(self, candidates: Sequence[Outputs]) -> NDArray[np.float64]:
        limits, threshold = AGREEMENT_LIMITS["int8"], self._decoder.score_threshold
        return np.concatenate(
            [
                squared_errors(reference, candidate, limits, threshold)
                for reference, candidate in zip(self._references, candidates, strict=True)
            ]
        )


def verify_int8(
    int8_file: bytes,
    fp32_file: Path,
    decoder: Decoder,
    recorded_images: Sequence[Image],
    more_images: Sequence[Image],
) -> Verification:
    """Compare the detections of both files in ONNX Runtime, from the score threshold.

    ``int8_file`` is the serialized model. ``recorded_images`` are those of the package's
    references: they must pass the service's self-test, so that an accepted file is one that the
    service uses. With ``more_images``, the share of the detections that match must be as large; the
    largest difference of a sorted score is not limited there, because it grows with the number of
    images. Raises :class:`QuantizationError`.
    """
    output_names = [output.name for output in decoder.outputs()]
    run_fp32, run_int8 = onnx_runner(fp32_file, output_names), onnx_runner(int8_file, output_names)
    limits = AGREEMENT_LIMITS["int8"]
    agreements = []
    score_error = 0.0
    for index, image in enumerate([*recorded_images, *more_images]):
        reference, outputs = (run(image[np.newaxis])[0] for run in (run_fp32, run_int8))
        agreements.append(compare_outputs(reference, outputs, limits, decoder.score_threshold))
        if index < len(recorded_images):
            score_error = max(score_error, _score_error(reference, outputs))
    total = combine_agreements(agreements)
    for agreement, inputs in (
        (combine_agreements(agreements[: len(recorded_images)]), len(recorded_images)),
        (total, len(agreements)),
    ):
        if not agreement.is_within(limits):
            raise QuantizationError(
                f"{agreement.matched} of {agreement.compared} detections with a score from "
                f"{decoder.score_threshold:g} match between int8 and fp32 in {inputs} images, with "
                f"{agreement.keypoints_matched} of {agreement.keypoints} keypoints; at least "
                f"{limits.min_share:.0%} of at least {limits.min_count} must."
            )
    if score_error > SCORE_TOLERANCES["int8"]:
        raise QuantizationError(
            f"a score in the recorded images differs by {score_error:.3g} between int8 and fp32; "
            f"at most {SCORE_TOLERANCES['int8']} is accepted."
        )
    tolerances = limits.tolerances()
    return Verification(
        reference=_reference(fp32_file),
        inputs=len(agreements),
        tolerances={
            **{name: tolerances[name] for name in total.worst_errors},
            "sorted_scores": SCORE_TOLERANCES["int8"],
        },
        worst_errors={**total.worst_errors, "sorted_scores": score_error},
        matched_fraction=total.matched_fraction,
        detections=total.found,
        matched=total.matched,
        exceptions=_exceptions(total),
    )


def _reference(fp32_file: Path) -> str:
    return f"{fp32_file.name}, fp32, ONNX Runtime {ort.__version__}, CPU"


def _exceptions(agreement: Agreement) -> dict[str, int]:
    keypoints = agreement.keypoints - agreement.keypoints_matched
    return add_exceptions([agreement.unmatched, {"keypoint_beyond_tolerance": keypoints}])


def _score_error(reference: Outputs, outputs: Outputs) -> float:
    """Return the largest difference of the sorted scores."""
    before, after = (np.sort(rows["scores"].astype(np.float64)) for rows in (reference, outputs))
    return float(np.abs(before - after).max())


def _fp16_runners(fp16_file: Path, output_names: Sequence[str]) -> Iterator[Run]:
    yield onnx_runner(fp16_file, output_names)
    rounding = with_explicit_rounding(onnx.load(fp16_file)).SerializeToString()
    yield onnx_runner(rounding, output_names)


def _compare_all(references: Sequence[Outputs], run: Run, images: Sequence[Image]) -> Agreement:
    """Compare every image alone, and some in one batch."""
    return combine_agreements(
        [
            compare_fp16(references[index], detections)
            for index, _, detections in run_on_all(run, images)
        ]
    )


def compare_fp16(reference: Outputs, candidate: Outputs) -> Agreement:
    """Compare the fp16 detections of one image (``candidate``) with the fp32 ones.

    Raises :class:`Fp16Error` for NaN or infinity.
    """
    if not all(np.isfinite(values).all() for values in candidate.values()):
        raise Fp16Error(
            "the fp16 detections contain NaN or infinity: the results of some layer exceed 65504, "
            "the largest fp16 value. Export with --precision fp32."
        )
    return compare_outputs(reference, candidate, AGREEMENT_LIMITS["fp16"], score_threshold=0.0)


def _check_fp16(agreement: Agreement) -> None:
    if agreement.matched < MIN_COMPARED_FRACTION * max(1, agreement.found):
        raise Fp16Error(
            f"only {agreement.matched} of {agreement.found} detections in fp16 could be matched "
            "with those in fp32. Verify with images of the objects that the network detects "
            "(--verify-images), or export with --precision fp32."
        )
    limits = AGREEMENT_LIMITS["fp16"]
    if not agreement.is_within(limits):
        raise Fp16Error(
            f"only {agreement.matched_fraction:.1%} of the detections or keypoints in fp16 match "
            f"those in fp32, at least {limits.min_share:.0%} must: this network is too "
            "sensitive to rounding. Export with --precision fp32."
        )
