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
from model_export.verification.comparison import (
    TOLERANCES,
    Comparison,
    Heatmap,
    check_finite,
    compare,
    match,
)
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
"""Largest factor by which the tolerances are widened; images that need more are left out."""

MIN_COMPARED_IMAGES = 2
"""Images that must not be left out."""

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
    """The detections of one image that was not left out.

    ``index``: its position in the images of the verification; ``image``: uint8 RGB (height, width,
    3); ``reference``: of the network; ``found``: of the file, run alone; ``worst_error``: the
    largest difference as a fraction of its tolerance.
    """

    index: int
    image: Image
    reference: Outputs
    found: Outputs
    worst_error: float


class _SensitiveError(Exception):
    """The network itself depends on rounding in an image; the message says how."""


def verify(
    graph: DetectionGraph, onnx_file: Path, output_names: Sequence[str], images: Sequence[Image]
) -> Verification:
    """Compare ``onnx_file`` in ONNX Runtime with ``graph`` in PyTorch on ``images``.

    ``images`` are uint8 RGB (height, width, 3) of accepted input sizes. Every image runs alone, and
    the first few of one size also run as one batch. Deformable convolutions amplify rounding
    errors, in some networks and images beyond
    :data:`~model_export.verification.comparison.TOLERANCES`. If the comparison of an image fails,
    the network runs on it in float64: the tolerances are widened to five times the difference to
    float32, and an image in which float32 and float64 do not find the same detections says nothing
    about the file and is left out. Raises :class:`VerificationError` if a detection in another
    image is missing or differs by more, or if too few images remain.
    """
    return verify_images(graph, onnx_file, output_names, images)[0]


def verify_images(
    graph: DetectionGraph, onnx_file: Path, output_names: Sequence[str], images: Sequence[Image]
) -> tuple[Verification, list[VerifiedImage]]:
    """Do the same as :func:`verify`; also return the detections of each image that was compared."""
    run_file = onnx_runner(onnx_file, output_names)
    references = [_run_reference(graph, output_names, image) for image in images]
    found = run_on_all(run_file, images)
    for index, reference in enumerate(references):
        check_finite(reference.detections, f"image {index}")
    # An imported network has no float64 version.
    has_parameters = any(True for _ in graph.parameters())
    exact = _ExactNetwork(graph, output_names) if has_parameters else None
    tolerances = dict(TOLERANCES)
    comparisons: list[Comparison] = []
    verified: list[VerifiedImage] = []
    left_out: list[str] = []
    for index, (image, reference) in enumerate(zip(images, references, strict=True)):
        runs = [(where, detections) for of_image, where, detections in found if of_image == index]
        try:
            accepted, compared = _compare_runs(image, reference, runs, exact)
        except _SensitiveError as error:
            left_out.append(f"image {index}: {error}")
            continue
        comparisons += compared
        tolerances = {name: max(value, accepted[name]) for name, value in tolerances.items()}
        alone, (_, detections) = compared[0], runs[0]
        worst_error = max(error / accepted[name] for name, error in alone.worst_errors.items())
        verified.append(VerifiedImage(index, image, reference.detections, detections, worst_error))
    if len(verified) < min(MIN_COMPARED_IMAGES, len(images)):
        raise VerificationError(
            f"this network is too sensitive to rounding to be verified with {len(images)} images. "
            f"{left_out[0]}. Verify with images of the objects that it detects (--verify-images), "
            "or train it further."
        )
    return summarise(comparisons, len(verified), tolerances, left_out), verified


class _ExactNetwork:
    """The network in float64, which is made when it first runs."""

    def __init__(self, graph: nn.Module, output_names: Sequence[str]) -> None:
        self._graph, self._output_names = graph, output_names
        self._run: Run | None = None

    def detections(self, image: Image) -> Outputs:
        """Return the detections of one image."""
        if self._run is None:
            self._run = torch_runner(copy.deepcopy(self._graph).double(), self._output_names)
        return self._run(image[np.newaxis])[0]


def _compare_runs(
    image: Image,
    reference: Reference,
    runs: Sequence[tuple[str, Outputs]],
    exact: _ExactNetwork | None,
) -> tuple[Mapping[str, float], list[Comparison]]:
    """Compare the runs of one image; return the tolerances and the comparisons.

    Raises :class:`VerificationError`, and :class:`_SensitiveError` for an image to leave out.
    """

    def compare_all(tolerances: Mapping[str, float]) -> list[Comparison]:
        return [
            compare(reference.detections, detections, where, tolerances, reference.heatmap)
            for where, detections in runs
        ]

    try:
        return TOLERANCES, compare_all(TOLERANCES)
    except VerificationError:
        if exact is None:
            raise
        for where, detections in runs:
            check_finite(detections, where)
        tolerances = _tolerances_for_rounding(exact.detections(image), reference)
        return tolerances, compare_all(tolerances)


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


def summarise(
    comparisons: Sequence[Comparison],
    inputs: int,
    tolerances: Mapping[str, float] = TOLERANCES,
    left_out: Sequence[str] = (),
) -> Verification:
    """Combine the comparisons of ``inputs`` images for the manifest.

    ``left_out``: which other images were left out, and why. Raises :class:`VerificationError` if
    too few detections matched.
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
        left_out=tuple(left_out),
    )


def merge_verifications(by_file: Mapping[str, Verification]) -> Verification:
    """Combine the verifications of the files of one package, by file name.

    Keeps the worst of each value, and the sum of each count.
    """
    first, *_ = verifications = list(by_file.values())
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
            "inputs": min(one.inputs for one in verifications),
            "left_out": tuple(
                f"{file}, {text}" for file, one in by_file.items() for text in one.left_out
            ),
        }
    )


def _tolerances_for_rounding(exact: Outputs, reference: Reference) -> dict[str, float]:
    """Return tolerances widened to the rounding errors of the network in one image.

    ``exact``: its detections in float64. Raises :class:`_SensitiveError` if those of ``reference``
    are not the same.
    """
    tolerances = dict(TOLERANCES)
    kinds = list(zip(split_kinds(exact), split_kinds(reference.detections), strict=True))
    for pair in kinds:
        for name, error in _rounding_errors(*pair).items():
            tolerances[name] = max(tolerances[name], ROUNDING_MARGIN * error)
    shared = sum(len(match(*pair, _ROUNDING_RADIUS_CELLS)[0]) for pair in kinds)
    total = sum(int((of_reference["scores"] > 0).sum()) for _, of_reference in kinds)
    sharing = f"the network finds {shared} of {total} detections in both float32 and float64"
    for name, tolerance in tolerances.items():
        if tolerance > MAX_WIDENING * TOLERANCES[name]:
            error = tolerance / ROUNDING_MARGIN
            raise _SensitiveError(f"{sharing}, whose {name} differ by up to {error:.2g}")
    try:
        compare(exact, reference.detections, "float64", tolerances, reference.heatmap)
    except VerificationError:
        raise _SensitiveError(sharing) from None
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
