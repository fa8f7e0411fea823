"""Do two files find the same? Detections of one, side by side with those of the other.

    python -m benchmarks.same_detections models/blood_cells/model.onnx \
        models/blood_cells/model_fp16.onnx --images ../shared/data/bccd/images

Both are ONNX files of packages; a package's directory stands for its ``model.onnx``. Images go
through the service's own code, and what a client would get is compared: of everything that either
file finds with at least ``--score`` (the package's threshold), how much does the other find too,
with the same class, an IoU of at least 0.99 and a score within 0.01? Nothing is excused. Of those
that match: keypoints within a pixel or a hundredth of the box's longer side, whichever is more; depth
and dimensions within 1 %, rotation within 1 degree (for 3D boxes, with the package's own camera).

A file in half precision runs twice: as it is, and with its rounding made explicit, which is what a GPU
does at most (``model_export/verification/fp16_rounding.py``). Prints Markdown; the exit status is 1 where a share is
below 99 %, or nothing was found.
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

from evaluation.detections import Answer
from evaluation.ground_truth import LabelledImage
from evaluation.local_model import OfflinePackage
from evaluation.metrics.matching import overlaps_of_boxes
from model_export.pipeline import ONNX_FILE
from model_export.verification.fp16_rounding import with_explicit_rounding
from model_package import OnnxArtifact, draft_package, load_package

ENOUGH = 0.99
SAME_IOU, SAME_SCORE = 0.99, 0.01
SAME_OBJECT_IOU = 0.5
"""Less than that are two things, one that only the first file finds and one of the second."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Quantity:
    """One row of the table: ``errors`` of what was compared, and whether each is small enough."""

    errors: NDArray[np.float64]
    same: NDArray[np.bool_]


def compare(reference: Answer, candidate: Answer, score: float) -> dict[str, Quantity]:
    """Compare the answers to one image; a row per thing that either finds with ``score``."""
    local, upstream = pair(reference, candidate)
    scores = reference.scores[local], candidate.scores[upstream]
    wanted = np.maximum(*scores) >= score
    local, upstream = local[wanted], upstream[wanted]
    iou, _ = overlaps_of_boxes(reference.boxes_xyxy[local], candidate.boxes_xyxy[upstream])
    overlap_errors = 1 - iou.diagonal()
    score_errors = np.abs(reference.scores[local] - candidate.scores[upstream])
    same = (overlap_errors <= 1 - SAME_IOU) & (score_errors <= SAME_SCORE)
    alone = _shown_alone(reference, local, score) + _shown_alone(candidate, upstream, score)
    missing = np.ones(alone)
    return {
        "detections": Quantity(
            np.concatenate([overlap_errors, missing]), np.concatenate([same, missing == 0])
        ),
        "their scores": Quantity(score_errors, score_errors <= SAME_SCORE),
        **_further(reference[local[same]], candidate[upstream[same]]),
    }


def pair(reference: Answer, candidate: Answer) -> tuple[Rows, Rows]:
    """Give each detection, best first, the free one of its class that it overlaps most."""
    iou, _ = overlaps_of_boxes(reference.boxes_xyxy, candidate.boxes_xyxy)
    iou[reference.class_ids[:, None] != candidate.class_ids] = 0
    pairs = []
    for row in range(len(reference)):
        other = int(iou[row].argmax()) if len(candidate) else 0
        if len(candidate) and iou[row, other] >= SAME_OBJECT_IOU:
            pairs.append((row, other))
            iou[:, other] = 0  # taken
    local, upstream = np.array(pairs, np.int64).reshape(-1, 2).T
    return local, upstream


def _shown_alone(answer: Answer, paired: Rows, score: float) -> int:
    alone = answer.scores >= score
    alone[paired] = False
    return int(alone.sum())


def _further(reference: Answer, candidate: Answer) -> dict[str, Quantity]:
    """What poses and 3D boxes have besides, of detections that are the same."""
    found = {}
    if reference.keypoints.shape[1]:
        apart = np.subtract(reference.keypoints[..., :2], candidate.keypoints[..., :2])
        distances = np.linalg.norm(apart, axis=2)
        sides = (reference.boxes_xyxy[:, 2:] - reference.boxes_xyxy[:, :2]).max(axis=1)
        limits = np.maximum(1.0, sides / 100)[:, None]
        found["keypoints, px"] = Quantity(distances.ravel(), (distances <= limits).ravel())
    if reference.space.shape[1]:
        relative = np.abs(candidate.space / reference.space - 1)
        turned = np.degrees(np.abs(candidate.space[:, 6] - reference.space[:, 6]))
        for name, errors, limit in (
            ("depth, relative", relative[:, 5], 0.01),
            ("dimensions, relative", relative[:, :3].ravel(), 0.01),
            ("rotation, degrees", np.minimum(turned, 360 - turned), 1.0),
        ):
            found[name] = Quantity(errors, errors <= limit)
    return found


def together(parts: Sequence[Mapping[str, Quantity]]) -> dict[str, Quantity]:
    """All images."""
    return {
        name: Quantity(
            np.concatenate([part[name].errors for part in parts]),
            np.concatenate([part[name].same for part in parts]),
        )
        for name in parts[0]
    }


def detect(file: Path, images: Sequence[LabelledImage], rounded: bool) -> list[Answer]:
    """Everything that ``file`` finds in the images; ``rounded``: with its rounding made explicit."""
    with _alone(file, rounded) as package:
        model = OfflinePackage(package)
        name = f"{file}{', rounding made explicit' if rounded else ''}"
        print(f"{name}: {model.model.kind} on {model.model.engine}", file=sys.stderr)
        return model.detect(images, lambda: None).all_answers()


@contextmanager
def _alone(file: Path, rounded: bool) -> Iterator[Path]:
    """Put one file of a package into a package of its own, as one that every backend takes."""
    manifest = load_package(file.parent).manifest
    with tempfile.TemporaryDirectory() as directory, draft_package(Path(directory, "one")) as draft:
        target = draft.directory / file.name
        content = file.read_bytes()
        if rounded:
            content = with_explicit_rounding(onnx.load(file)).SerializeToString()
        target.write_bytes(content)
        artifact = draft.describe_artifact(file.name)
        yield draft.publish(manifest.model_copy(update={"artifacts": (artifact,)})).directory


def find_file(path: Path) -> tuple[Path, OnnxArtifact]:
    """Find what the command line names. Raises ``SystemExit`` with what is accepted."""
    file = path / ONNX_FILE if path.is_dir() else path
    package = load_package(file.parent)
    for artifact in package.manifest.artifacts:
        if artifact.file == file.name and isinstance(artifact, OnnxArtifact):
            return file, artifact
    sys.exit(f"{path} is no ONNX file of a package. Name one, like models/NAME/model_fp16.onnx.")


def table(quantities: Mapping[str, Quantity]) -> str:
    """Markdown; errors of detections are 1 - IoU."""
    lines = []
    for name, quantity in quantities.items():
        errors = quantity.errors
        if not errors.size:
            lines.append(f"| {name} | 0 | 0 | | | | |")
            continue
        middle, most, worst = np.quantile(errors, [0.5, 0.99, 1])
        lines.append(
            f"| {name} | {errors.size} | {quantity.same.sum()} | {quantity.same.mean():.2%} | "
            f"{middle:.2g} | {most:.2g} | {worst:.2g} |"
        )
    head = "| | compared | the same | share | median error | 99 % | worst |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reference", type=Path, help="ONNX file of a package, or the package")
    parser.add_argument("candidate", type=Path, help="the same, to be compared with it")
    parser.add_argument("--images", type=Path, required=True, help="directory of images")
    parser.add_argument("--max-images", type=int, help="only the first so many, by name")
    parser.add_argument("--score", type=float, help="the package's threshold unless given")
    given = parser.parse_args(arguments)
    reference, _ = find_file(given.reference)
    candidate, artifact = find_file(given.candidate)
    decoder = load_package(reference.parent).manifest.decoder
    score = decoder.score_threshold if given.score is None else given.score
    paths = sorted(path for path in given.images.glob("*") if path.suffix.lower() in SUFFIXES)
    images = [LabelledImage(index, path) for index, path in enumerate(paths[: given.max_images])]
    if not images:
        sys.exit(f"{given.images} holds no image.")
    wanted = detect(reference, images, rounded=False)
    enough = True
    for rounded in (False, True) if artifact.precision == "fp16" else (False,):
        found = detect(candidate, images, rounded)
        pairs = zip(wanted, found, strict=True)
        quantities = together([compare(*answers, score) for answers in pairs])
        how = ", with its rounding made explicit" if rounded else ""
        print(f"\n{decoder.kind}: `{given.candidate}`{how} against `{given.reference}`")
        print(f"{len(images)} images, scores from {score:g}\n\n{table(quantities)}", flush=True)
        shares = [one.same.mean() for one in quantities.values() if one.same.size]
        enough &= quantities["detections"].same.size > 0 and min(shares) >= ENOUGH
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
