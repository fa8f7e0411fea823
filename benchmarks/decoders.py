"""Time per image of all steps after the engine, by decoder, on one core.

    python -m benchmarks.decoders

Random output tensors with the shapes of the released models: 100 peaks; for corner models
1,000 pairs for the image and as many for its flipped copy, of 80 classes or of a single
one, and 70 centers each; for extreme points 40 peaks a side, also where all points of different
sides fit each other, which makes the most groups. Decoding goes from output tensors to detections
in pixels of the image; the response fields, timed separately, from there to values for JSON. Prints
a Markdown table, and one of the grouping of extreme points alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.report import markdown_row, markdown_table
from labels.extreme_points import group_extreme_points
from model_package import (
    CenterBoxes3DDecoder,
    CenterBoxesDecoder,
    CenterPosesAndBoxes3DDecoder,
    CenterPosesDecoder,
    CornerPairsDecoder,
    CornerTripletsDecoder,
    Decoder,
    ExtremePointsDecoder,
)
from service.decoders import DECODERS, ModelOutput
from service.decoders.types import DetectionOptions, Detections
from service.http.responses import RESPONSE_FIELDS
from service.imaging.geometry import AffineTransform, ImageTransform

K, PAIRS, CENTERS, CELLS = 100, 1000, 70, 128
CAMERA = (707.0, 0, 604, 45, 0, 707, 180, 0, 0, 0, 1, 0)


@dataclass(frozen=True)
class Case:
    """One row of the table: a decoder, the number of classes and the request's options."""

    name: str
    config: Decoder
    classes: int
    scales: tuple[float, ...] = (1.0,)
    soft_nms: bool = False
    all_fit: bool = False
    """Of extreme points: each lies beyond those of the other sides."""


CENTER: dict[str, Any] = {"output_stride": 4, "top_k": K, "score_threshold": 0.0}
CORNER: dict[str, Any] = {**CENTER, "pairs": PAIRS}
KEYPOINTS = tuple(f"keypoint {index}" for index in range(17))
BOXES, POSES = CenterBoxesDecoder(**CENTER), CenterPosesDecoder(**CENTER, keypoints=KEYPOINTS)
POSES_3D = CenterPosesAndBoxes3DDecoder(**CENTER, keypoints=KEYPOINTS, projection=CAMERA)
PAIR_BOXES = CornerPairsDecoder(**CORNER)
TRIPLETS = CornerTripletsDecoder(**CORNER, centers=CENTERS)
EXTREME_POINTS = ExtremePointsDecoder(
    output_stride=4, peaks=40, columns=CELLS, agnostic=False, top_k=K, score_threshold=0.0
)
CASES = (
    Case("2D boxes", BOXES, 80),
    Case("2D boxes, soft-NMS", BOXES, 80, soft_nms=True),
    Case("2D boxes, 5 test scales", BOXES, 80, (0.5, 0.75, 1, 1.25, 1.5), soft_nms=True),
    Case("poses", POSES, 1),
    Case("poses, soft-NMS", POSES, 1, soft_nms=True),
    Case("3D boxes", CenterBoxes3DDecoder(**CENTER, projection=CAMERA), 3),
    Case("poses and 3D boxes", POSES_3D, 1),
    Case("corner pairs", PAIR_BOXES, 80, soft_nms=True),
    Case("corner pairs, single class", PAIR_BOXES, 1, soft_nms=True),
    Case("corner triplets", TRIPLETS, 80, soft_nms=True),
    Case("corner triplets, single class", TRIPLETS, 1, soft_nms=True),
    Case("extreme points, two classes", EXTREME_POINTS, 2, soft_nms=True),
    Case("extreme points, single class", EXTREME_POINTS, 1, soft_nms=True),
    Case("extreme points, all fit", EXTREME_POINTS, 1, soft_nms=True, all_fit=True),
)


def random_tensors(case: Case, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Return the output tensors of one input: in [0, 1] except positions, sizes and class ids."""
    tensors: dict[str, NDArray[Any]] = {}
    for spec in case.config.outputs():
        if spec.dtype == "int32":
            tensors[spec.name] = rng.integers(0, case.classes, spec.shape, np.int32)
        else:
            tensors[spec.name] = rng.random(spec.shape, np.float32)
    for name in {"centers", "keypoints"} & set(tensors):
        tensors[name] *= CELLS
    if "sizes" in tensors:
        tensors["sizes"] *= 30
    if "boxes" in tensors:
        corners = tensors["boxes"] * CELLS
        tensors["boxes"] = np.hstack([corners[:, :2], corners[:, :2] + 2 + corners[:, 2:] / 3])
    if "cells" in tensors:
        _arrange_extreme_points(tensors, rng, all_fit=case.all_fit)
        return tensors
    if "depths" in tensors:
        tensors["depths"] = tensors["depths"] * 60 + 5
    tensors["scores"] = -np.sort(-tensors["scores"])
    return tensors


def _arrange_extreme_points(
    tensors: dict[str, NDArray[Any]], rng: np.random.Generator, *, all_fit: bool
) -> None:
    """Sort the scores, place the peaks, and set impossible centers to 0."""
    tensors["scores"] = -np.sort(-tensors["scores"])
    cells = rng.integers(0, CELLS, tensors["cells"].shape, np.int32)
    if all_fit:
        quarter = CELLS // 4
        for side, axis in ((0, 1), (1, 0)):  # top and left; bottom and right are opposite
            cells[side, :, axis] %= quarter
            cells[side + 2, :, axis] = CELLS - 1 - cells[side + 2, :, axis] % quarter
            cells[side::2, :, 1 - axis] = quarter + cells[side::2, :, 1 - axis] % (CELLS // 2)
    tensors["cells"] = cells
    tensors["points"] += cells
    (top, _, bottom, _), class_ids = cells[..., 1], tensors["class_ids"]
    is_pair = (class_ids[0][:, None] == class_ids[2]) & (top[:, None] <= bottom)
    tensors["center_scores"] *= is_pair[..., None]


def model_outputs(case: Case, rng: np.random.Generator) -> list[ModelOutput]:
    """Return the outputs for all network inputs of a request."""
    flips = (False, True) if any(case.config.flipped_input) else (False,)
    side_px = 511 if "corner" in case.config.kind else 512
    transform = ImageTransform(480, 400, side_px, side_px, AffineTransform(1.0, 16.0, 56.0))
    return [
        ModelOutput(
            random_tensors(case, rng), replace(transform, test_scale=scale, flipped=flipped)
        )
        for scale in case.scales
        for flipped in flips
    ]


def milliseconds(work: Callable[[], Any], rounds: int) -> list[float]:
    """Return the duration of each of ``rounds`` calls."""
    durations = []
    for _ in range(rounds):
        started_at = time.perf_counter()
        work()
        durations.append(1000 * (time.perf_counter() - started_at))
    return durations


def row(case: Case, rounds: int) -> str:
    """Return one line of the table."""
    outputs = model_outputs(case, np.random.default_rng(0))
    decoder = DECODERS[case.config.kind](case.config)
    options = DetectionOptions(0.0, K, soft_nms=case.soft_nms)
    detections: Detections = decoder.decode(outputs, options)
    decoding = milliseconds(lambda: decoder.decode(outputs, options), rounds)
    fields = milliseconds(lambda: list(RESPONSE_FIELDS[type(detections)](detections)), rounds)
    columns = (
        *(statistics.median(decoding), np.percentile(decoding, 95), min(decoding)),
        statistics.median(fields),
    )
    times = (f"{number:.2f}" for number in columns)
    return markdown_row([case.name, len(outputs), len(detections), *times])


def grouping_row(case: Case, rounds: int) -> str:
    """Return the line of the grouping of the extreme points of one network input."""
    tensors = model_outputs(case, np.random.default_rng(0))[0].tensors
    durations = milliseconds(lambda: group_extreme_points(tensors), rounds)
    times = (statistics.median(durations), np.percentile(durations, 95), min(durations))
    return markdown_row([case.name, *(f"{number:.2f}" for number in times)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    columns = ("decoding, ms: median", "p95", "min", "response fields, ms")
    print(markdown_table(["decoder", "inputs", "detections", *columns]))
    for case in CASES:
        print(row(case, rounds))
    print()
    print(markdown_table(["grouping alone", "ms per input: median", "p95", "min"]))
    for case in CASES:
        if isinstance(case.config, ExtremePointsDecoder):
            print(grouping_row(case, rounds))


if __name__ == "__main__":
    main()
