"""Verification of an ONNX file in ONNX Runtime against its network in PyTorch."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labels.outputs import Outputs, add_exceptions, measure, split_kinds
from model_export.detection_graph import DetectionGraph
from model_export.errors import VerificationError
from model_export.verification.comparison import TOLERANCES, Comparison, Heatmap, compare, match
from model_package import Verification
from model_package.onnxruntime import load_onnxruntime

ort = load_onnxruntime()

MIN_MATCHED_FRACTION = 0.5
"""Share of the detections that must match; if nearly all are ties, nothing is verified."""

MAX_BATCH = 4
"""Images in the batch that is compared in addition; enough to detect mixed-up rows."""

ROUNDING_MARGIN = 5.0
"""Tolerance for two float32 runtimes, as a multiple of the error of one against float64."""

MAX_WIDENING = 50.0
"""Largest factor by which the tolerances are widened; networks that need more are rejected."""

_ROUNDING_RADIUS_CELLS = 0.1  # of one detection between float32 and float64

Image = NDArray[np.uint8]
Run = Callable[[NDArray[np.uint8]], list[Outputs]]


@dataclass(frozen=True)
class Reference:
    """Outputs of the network in one image, and the heatmap of the centers, if there is one."""

    detections: Outputs
    heatmap: Heatmap | None


@dataclass(frozen=True)
class VerifiedImage:
    """The detections of one image.

    ``image``: uint8 RGB (height, width, 3); ``reference``: of the network; ``found``: of the file;
    ``worst_error``: the largest difference as a fraction of its tolerance.
    """

    image: Image
    reference: Outputs
    found: Outputs
    worst_error: float


def verify(
    graph: DetectionGraph, onnx_file: Path, output_names: Sequence[str], images: Sequence[Image]
) -> Verification:
    """Compare ``onnx_file`` in ONNX Runtime with ``graph`` in PyTorch on ``images``.

    ``images`` are uint8 RGB (height, width, 3) of accepted input sizes. Every image runs alone, and
    the first few of one size also run as one batch. Deformable convolutions amplify rounding
    errors, in some networks beyond :data:`~model_export.verification.comparison.TOLERANCES`; only
    if the comparison fails, they are widened to five times the error of float32 against float64.
    Raises :class:`VerificationError` if a detection is missing or differs by more.
    """
    return verify_images(graph, onnx_file, output_names, images)[0]


def verify_images(
    graph: DetectionGraph, onnx_file: Path, output_names: Sequence[str], images: Sequence[Image]
) -> tuple[Verification, list[VerifiedImage]]:
    """Do the same as :func:`verify`; also return the detections of each image, run alone."""
    run_file = onnx_runner(onnx_file, output_names)
    references = [_run_reference(graph, output_names, image) for image in images]
    found = run_on_all(run_file, images)
    tolerances: Mapping[str, float] = TOLERANCES
    try:
        verification, comparisons = _compare_all(references, found, tolerances)
    except VerificationError:
        if not any(True for _ in graph.parameters()):  # an imported network has no float64 version
            raise
        tolerances = _tolerances_for_rounding(graph, output_names, images, references)
        if tolerances == TOLERANCES:
            raise
        verification, comparisons = _compare_all(references, found, tolerances)
    verified = [
        VerifiedImage(
            image,
            reference.detections,
            detections,
            max(error / tolerances[name] for name, error in comparison.worst_errors.items()),
        )
        for image, reference, (_, _, detections), comparison in zip(
            images, references, found, comparisons, strict=False
        )  # the images that ran alone come first
    ]
    return verification, verified


def _run_reference(graph: DetectionGraph, output_names: Sequence[str], image: Image) -> Reference:
    with torch.inference_mode():
        maps = graph.maps(torch.from_numpy(image[np.newaxis]))
        (detections,) = _rows(output_names, [output.numpy() for output in graph.decode(maps)])
    name = graph.task.centers_heatmap
    return Reference(detections, None if name is None else maps[name][0].numpy())


def torch_runner(graph: nn.Module, output_names: Sequence[str]) -> Run:
    """Return a function from a batch of images to the detections of each, run in PyTorch."""

    def run(images: NDArray[np.uint8]) -> list[Outputs]:
        with torch.inference_mode():
            outputs = [output.numpy() for output in graph(torch.from_numpy(images))]
        return _rows(output_names, outputs)

    return run


def onnx_runner(onnx_file: Path | bytes, output_names: Sequence[str]) -> Run:
    """Return a function from a batch of images to the detections of each, run in ONNX Runtime.

    ``onnx_file`` is a path or the serialized model.
    """
    model = onnx_file if isinstance(onnx_file, bytes) else str(onnx_file)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda images: _rows(output_names, session.run(list(output_names), {"images": images}))


def _rows(names: Sequence[str], outputs: Sequence[NDArray[np.generic]]) -> list[Outputs]:
    return [dict(zip(names, rows, strict=True)) for rows in zip(*outputs, strict=True)]


def run_on_all(run_file: Run, images: Sequence[Image]) -> list[tuple[int, str, Outputs]]:
    """Run every image alone and some as a batch: image index, description and detections."""
    alone = [
        (index, f"image {index}", run_file(image[np.newaxis])[0])
        for index, image in enumerate(images)
    ]
    alike = [index for index, image in enumerate(images) if image.shape == images[0].shape]
    alike = alike[:MAX_BATCH]
    batch = run_file(np.stack([images[index] for index in alike]))
    return alone + [
        (index, f"image {index} in a batch", detections)
        for index, detections in zip(alike, batch, strict=True)
    ]


def _compare_all(
    references: Sequence[Reference],
    outputs: Sequence[tuple[int, str, Outputs]],
    tolerances: Mapping[str, float],
) -> tuple[Verification, list[Comparison]]:
    comparisons = [
        compare(
            references[index].detections, detections, where, tolerances, references[index].heatmap
        )
        for index, where, detections in outputs
    ]
    return summarise(comparisons, len(references), tolerances), comparisons


def summarise(
    comparisons: Sequence[Comparison],
    inputs: int,
    tolerances: Mapping[str, float] = TOLERANCES,
) -> Verification:
    """Combine the comparisons of ``inputs`` images for the manifest.

    Raises :class:`VerificationError` if too few detections matched.
    """
    matched = sum(comparison.matched for comparison in comparisons)
    total = sum(comparison.total for comparison in comparisons)
    if matched == 0 or matched < MIN_MATCHED_FRACTION * total:
        raise VerificationError(
            f"only {matched} of {total} detections could be matched, because their scores hardly "
            "differ: there are no distinct detections to compare. Train the network further."
        )
    names = comparisons[0].worst_errors
    return Verification(
        reference=f"PyTorch {torch.__version__}, float32, CPU",
        inputs=inputs,
        tolerances={name: tolerances[name] for name in names},
        worst_errors={
            name: max(comparison.worst_errors[name] for comparison in comparisons) for name in names
        },
        matched_fraction=matched / total,
        detections=total,
        matched=matched,
        exceptions=add_exceptions(comparison.exceptions for comparison in comparisons),
    )


def merge_verifications(verifications: Sequence[Verification]) -> Verification:
    """Combine the verifications of several files of one package.

    Keeps the worst of each value, and the sum of each count.
    """
    first = verifications[0]
    return first.model_copy(
        update={
            "tolerances": {
                name: max(one.tolerances[name] for one in verifications)
                for name in first.tolerances
            },
            "worst_errors": {
                name: max(one.worst_errors[name] for one in verifications)
                for name in first.worst_errors
            },
            "matched_fraction": min(one.matched_fraction for one in verifications),
            "detections": sum(one.detections or 0 for one in verifications),
            "matched": sum(one.matched or 0 for one in verifications),
            "exceptions": add_exceptions(one.exceptions for one in verifications),
        }
    )


def _tolerances_for_rounding(
    graph: nn.Module,
    output_names: Sequence[str],
    images: Sequence[Image],
    references: Sequence[Reference],
) -> dict[str, float]:
    """Return tolerances widened to the rounding errors of this network."""
    run = torch_runner(copy.deepcopy(graph).double(), output_names)
    tolerances = dict(TOLERANCES)
    for image, reference in zip(images, references, strict=True):
        (exact,) = run(image[np.newaxis])
        for kinds in zip(split_kinds(exact), split_kinds(reference.detections), strict=True):
            for name, error in _rounding_errors(*kinds).items():
                tolerances[name] = max(tolerances[name], ROUNDING_MARGIN * error)
    for name, tolerance in tolerances.items():
        if tolerance > MAX_WIDENING * TOLERANCES[name]:
            raise VerificationError(
                f"{name} change by {tolerance / ROUNDING_MARGIN:.2g} between float32 and float64: "
                "this network is too sensitive to rounding to be verified. Train it further."
            )
    return tolerances


def _rounding_errors(exact: Outputs, reference: Outputs) -> dict[str, float]:
    """Return the worst error of each output over the matched detections of one kind."""
    pairs = match(exact, reference, _ROUNDING_RADIUS_CELLS)
    worst = {}
    for name, errors in measure(exact, pairs[0], reference, pairs[1]).items():
        # Keypoints that were assigned to another peak are not rounding errors.
        quantile = 0.99 if name.startswith("keypoint") else 1.0
        worst[name] = float(np.quantile(errors, quantile)) if errors.size else 0.0
    return worst
