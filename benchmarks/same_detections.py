"""Compare the detections of two ONNX files of packages.

    python -m benchmarks.same_detections models/blood_cells/model.onnx \
        models/blood_cells/model_fp16.onnx --images data/bccd/images

A package's directory stands for its ``model.onnx``. Images are processed by the service's own code,
and detections are compared as a client receives them. Of all detections of either file with a score
of at least ``--score`` (default: the threshold of the package), the benchmark counts those that the
other file has, too, with the same class, an IoU of at least 0.99 and a score within 0.01, without
exceptions. For matched detections it also compares keypoints (within a pixel or a hundredth of the
longer side of the box, whichever is more), depth and dimensions (within 1 %) and rotation (within 1
degree; 3D boxes use the camera of the package).

An FP16 file runs twice: as it is, and with explicit rounding, which is the most that a GPU rounds
(``model_export/verification/fp16_rounding.py``). Prints Markdown; the exit status is 1 if a share
is below 99 % or nothing was detected.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from evaluation.detections import ImageDetections
from evaluation.ground_truth import LabelledImage
from evaluation.local_model import LocalModel
from evaluation.report import Cell, markdown_table
from labels.matching import Indices, box_iou, match_boxes
from model_export.pipeline import ONNX_FILE
from model_export.verification.fp16_rounding import with_explicit_rounding
from model_package import OnnxArtifact, draft_package, load_package

MIN_SHARE = 0.99
MIN_IOU, MAX_SCORE_DIFFERENCE = 0.99, 0.01
MIN_OBJECT_IOU = 0.5
"""Boxes with a lower IoU are different objects."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Quantity:
    """One row of the table: the errors of a quantity, and which of them are within tolerance."""

    errors: NDArray[np.float64]
    same: NDArray[np.bool_]


def compare(
    reference: ImageDetections, candidate: ImageDetections, score: float
) -> dict[str, Quantity]:
    """Compare the detections of one image, one element per detection of either with ``score``."""
    first, second = match_boxes(
        *(reference.boxes_xyxy, reference.class_ids),
        *(candidate.boxes_xyxy, candidate.class_ids),
        min_iou=MIN_OBJECT_IOU,
    )
    is_compared = np.maximum(reference.scores[first], candidate.scores[second]) >= score
    first, second = first[is_compared], second[is_compared]
    iou = box_iou(reference.boxes_xyxy[first], candidate.boxes_xyxy[second])
    iou_errors = 1 - iou.diagonal()
    score_errors = np.abs(reference.scores[first] - candidate.scores[second])
    same = (iou_errors <= 1 - MIN_IOU) & (score_errors <= MAX_SCORE_DIFFERENCE)
    unmatched = _count_unmatched(reference, first, score) + _count_unmatched(
        candidate, second, score
    )
    return {
        "detections": Quantity(
            np.concatenate([iou_errors, np.ones(unmatched)]),
            np.concatenate([same, np.zeros(unmatched, np.bool_)]),
        ),
        "scores": Quantity(score_errors, score_errors <= MAX_SCORE_DIFFERENCE),
        **_compare_poses_and_boxes_3d(reference[first[same]], candidate[second[same]]),
    }


def _count_unmatched(detections: ImageDetections, matched: Indices, score: float) -> int:
    is_unmatched = detections.scores >= score
    is_unmatched[matched] = False
    return int(is_unmatched.sum())


def _compare_poses_and_boxes_3d(
    reference: ImageDetections, candidate: ImageDetections
) -> dict[str, Quantity]:
    """Compare the keypoints and 3D boxes of matched detections, as far as the model has them."""
    quantities = {}
    if reference.keypoints.shape[1]:
        differences = np.subtract(reference.keypoints[..., :2], candidate.keypoints[..., :2])
        distances = np.linalg.norm(differences, axis=2)
        sides = (reference.boxes_xyxy[:, 2:] - reference.boxes_xyxy[:, :2]).max(axis=1)
        limits = np.maximum(1.0, sides / 100)[:, None]
        has_keypoints = ~np.isnan(distances)
        quantities["keypoints, px"] = Quantity(
            distances[has_keypoints], (distances <= limits)[has_keypoints]
        )
    if reference.boxes_3d.shape[1]:
        relative = np.abs(candidate.boxes_3d / reference.boxes_3d - 1)
        rotations = np.degrees(np.abs(candidate.boxes_3d[:, 6] - reference.boxes_3d[:, 6]))
        for name, errors, limit in (
            ("depth, relative", relative[:, 5], 0.01),
            ("dimensions, relative", relative[:, :3].ravel(), 0.01),
            ("rotation, degrees", np.minimum(rotations, 360 - rotations), 1.0),
        ):
            quantities[name] = Quantity(errors, errors <= limit)
    return quantities


def concatenate(images: Sequence[Mapping[str, Quantity]]) -> dict[str, Quantity]:
    """Concatenate the quantities of all images."""
    return {
        name: Quantity(
            np.concatenate([image[name].errors for image in images]),
            np.concatenate([image[name].same for image in images]),
        )
        for name in images[0]
    }


def detect(file: Path, images: Sequence[LabelledImage], rounded: bool) -> Sequence[ImageDetections]:
    """Return all detections of ``file`` in the images; ``rounded``: with explicit rounding."""
    with _single_file_package(file, rounded) as package:
        model = LocalModel(package)
        name = f"{file}{', with explicit rounding' if rounded else ''}"
        print(f"{name}: {model.model.kind} on {model.model.engine}", file=sys.stderr)
        return model.detect(images, lambda: None).detections


@contextmanager
def _single_file_package(file: Path, rounded: bool) -> Iterator[Path]:
    """Create a package with this file only, as its float32 file, which every backend accepts."""
    manifest = load_package(file.parent).manifest
    with tempfile.TemporaryDirectory() as directory, draft_package(Path(directory, "one")) as draft:
        target = draft.directory / file.name
        content = file.read_bytes()
        if rounded:
            content = with_explicit_rounding(onnx.load(file)).SerializeToString()
        target.write_bytes(content)
        artifact = draft.describe_artifact(file.name)
        changes = {"artifacts": (artifact,), "references": None}
        yield draft.publish(manifest.model_copy(update=changes)).directory


def find_file(path: Path) -> tuple[Path, OnnxArtifact]:
    """Return the ONNX file for a command line argument. Raises ``SystemExit``."""
    file = path / ONNX_FILE if path.is_dir() else path
    package = load_package(file.parent)
    for artifact in package.manifest.artifacts:
        if artifact.file == file.name and isinstance(artifact, OnnxArtifact):
            return file, artifact
    sys.exit(
        f"{path} is not an ONNX file of a package. Name one, for example "
        "models/NAME/model_fp16.onnx."
    )


def table(quantities: Mapping[str, Quantity]) -> str:
    """Format a Markdown table; errors of detections are 1 - IoU."""
    rows: list[list[Cell]] = []
    for name, quantity in quantities.items():
        errors = quantity.errors
        if not errors.size:
            rows.append([name, 0, 0, "", "", "", ""])
            continue
        quantiles = [f"{value:.2g}" for value in np.quantile(errors, [0.5, 0.99, 1])]
        same = quantity.same
        rows.append([name, errors.size, int(same.sum()), f"{same.mean():.2%}", *quantiles])
    columns = ["", "compared", "the same", "share", "median error", "99 %", "worst"]
    return markdown_table(columns, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reference", type=Path, help="ONNX file of a package, or the package")
    parser.add_argument("candidate", type=Path, help="ONNX file or package to compare")
    parser.add_argument("--images", type=Path, required=True, help="directory of images")
    parser.add_argument("--max-images", type=int, help="use only the first images, by name")
    parser.add_argument("--score", type=float, help="default: the threshold of the package")
    args = parser.parse_args(arguments)
    reference, _ = find_file(args.reference)
    candidate, artifact = find_file(args.candidate)
    decoder = load_package(reference.parent).manifest.decoder
    score = decoder.score_threshold if args.score is None else args.score
    paths = sorted(path for path in args.images.glob("*") if path.suffix.lower() in SUFFIXES)
    images = [LabelledImage(index, path) for index, path in enumerate(paths[: args.max_images])]
    if not images:
        sys.exit(f"{args.images} contains no images.")
    expected = detect(reference, images, rounded=False)
    is_same = True
    for rounded in (False, True) if artifact.precision == "fp16" else (False,):
        found = detect(candidate, images, rounded)
        pairs = zip(expected, found, strict=True)
        quantities = concatenate([compare(*pair, score) for pair in pairs])
        how = ", with explicit rounding" if rounded else ""
        print(f"\n{decoder.kind}: `{args.candidate}`{how} against `{args.reference}`")
        print(f"{len(images)} images, scores from {score:g}\n\n{table(quantities)}", flush=True)
        shares = [one.same.mean() for one in quantities.values() if one.same.size]
        is_same &= quantities["detections"].same.size > 0 and min(shares) >= MIN_SHARE
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
