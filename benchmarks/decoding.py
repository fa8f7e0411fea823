"""Milliseconds per image of everything after the engine, per task, on one core.

    python benchmarks/decoding.py

Random outputs of the shapes that the released models have: 100 peaks; for the corner systems 1,000
pairs each of the image and its flipped image, of 80 classes or all of one, and 70 centers each.
Decoding goes from the graph's outputs to detections in the image's pixels; the answer, printed
apart, from there to JSON. Prints Markdown.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import (
    CenterBoxes3DDecoder,
    CenterBoxesDecoder,
    CenterPosesDecoder,
    CornerPairsDecoder,
    CornerTripletsDecoder,
    Decoder,
)
from service.decoders import DECODERS, ModelOutput
from service.decoders.types import DetectionOptions, Detections
from service.http.responses import RESPONSE_FIELDS
from service.imaging.geometry import AffineTransform, ImageTransform
from service.option_rules import TASK_RULES

K, PAIRS, CENTERS, CELLS = 100, 1000, 70, 128
CAMERA = (707.0, 0, 604, 45, 0, 707, 180, 0, 0, 0, 1, 0)


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    facts: Decoder
    classes: int
    scales: tuple[float, ...] = (1.0,)
    soft_nms: bool = False


CENTER: dict[str, Any] = {"output_stride": 4, "top_k": K, "score_threshold": 0.0}
CORNER: dict[str, Any] = {"pairs": PAIRS, "top_k": K, "score_threshold": 0.0}
KEYPOINTS = tuple(f"keypoint {index}" for index in range(17))
BOXES, POSES = CenterBoxesDecoder(**CENTER), CenterPosesDecoder(**CENTER, keypoints=KEYPOINTS)
PAIR_BOXES = CornerPairsDecoder(**CORNER)
TRIPLETS = CornerTripletsDecoder(**CORNER, centers=CENTERS)
CASES = (
    Case("boxes", BOXES, 80),
    Case("boxes, soft-NMS", BOXES, 80, soft_nms=True),
    Case("boxes, 5 scales", BOXES, 80, (0.5, 0.75, 1, 1.25, 1.5), soft_nms=True),
    Case("poses", POSES, 1),
    Case("poses, soft-NMS", POSES, 1, soft_nms=True),
    Case("3D boxes", CenterBoxes3DDecoder(**CENTER, projection=CAMERA), 3),
    Case("corner pairs", PAIR_BOXES, 80, soft_nms=True),
    Case("corner pairs, all of one class", PAIR_BOXES, 1, soft_nms=True),
    Case("corner triplets", TRIPLETS, 80, soft_nms=True),
    Case("corner triplets, all of one class", TRIPLETS, 1, soft_nms=True),
)


def outputs(case: Case, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Outputs of one input: every number between 0 and 1, but for places, sizes and classes."""
    made: dict[str, NDArray[Any]] = {}
    for spec in case.facts.outputs():
        if spec.dtype == "int32":
            made[spec.name] = rng.integers(0, case.classes, spec.shape, np.int32)
        else:
            made[spec.name] = rng.random(spec.shape, np.float32)
    for name in {"centers", "keypoints"} & set(made):
        made[name] *= CELLS
    if "sizes" in made:
        made["sizes"] *= 30
    if "boxes" in made:
        corners = made["boxes"] * CELLS
        made["boxes"] = np.hstack([corners[:, :2], corners[:, :2] + 2 + corners[:, 2:] / 3])
    if "depths" in made:
        made["depths"] = made["depths"] * 60 + 5
    made["scores"] = -np.sort(-made["scores"])
    return made


def views(case: Case, rng: np.random.Generator) -> list[ModelOutput]:
    """Every view that a request of this case needs."""
    flips = (False, True) if TASK_RULES[case.facts.kind].adds_flipped_input else (False,)
    side_px = 511 if len(flips) > 1 else 512
    placed = ImageTransform(480, 400, side_px, side_px, AffineTransform(1.0, 16.0, 56.0))
    return [
        ModelOutput(
            outputs(case, rng),
            ImageTransform(
                *(placed.resized_width_px, placed.resized_height_px),
                *(placed.input_width_px, placed.input_height_px),
                *(placed.to_input, scale, flipped),
            ),
        )
        for scale in case.scales
        for flipped in flips
    ]


def milliseconds(work: Callable[[], Any], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        started_at = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - started_at))
    return taken


def row(case: Case, rounds: int) -> str:
    """One line of the table."""
    of_image = views(case, np.random.default_rng(0))
    decoder = DECODERS[case.facts.kind](case.facts)
    options = DetectionOptions(0.0, K, soft_nms=case.soft_nms)
    found: Detections = decoder.decode(of_image, options)
    decoding = milliseconds(lambda: decoder.decode(of_image, options), rounds)
    fields = milliseconds(lambda: list(RESPONSE_FIELDS[type(found)](found)), rounds)
    numbers = (
        *(statistics.median(decoding), np.percentile(decoding, 95), min(decoding)),
        statistics.median(fields),
    )
    times = " | ".join(f"{number:.2f}" for number in numbers)
    return f"| {case.name} | {len(of_image)} | {len(found)} | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    print("| task | inputs | found | decoding, ms, median | p95 | best | its fields for JSON, ms |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        print(row(case, rounds))


if __name__ == "__main__":
    main()
