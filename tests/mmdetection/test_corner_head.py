"""Decoding of MMDetection's CornerNet: from random maps of the heads to the detections."""

from pathlib import Path

import numpy as np
import torch
from support.matching import match_boxes

from model_export.graph.heads import activate
from model_export.tasks import TASKS
from model_package import CornerPairsDecoder
from service.decoders.corner_pairs import CornerPairs
from service.decoders.types import DetectionOptions, ModelOutput
from service.imaging.geometry import AffineTransform, ImageTransform

HEADS = {
    "tl_heat": "top_left_heatmap",
    "br_heat": "bottom_right_heatmap",
    "tl_emb": "top_left_embedding",
    "br_emb": "bottom_right_embedding",
    "tl_off": "top_left_offset",
    "br_off": "bottom_right_offset",
}


def test_detections_of_random_maps_equal_those_of_mmdetection() -> None:
    with np.load(Path(__file__).parent / "goldens/corner_head.npz") as file:
        maps = {name: torch.from_numpy(file[key].astype(np.float32)) for key, name in HEADS.items()}
        golden = file["final"].astype(np.float64)
    task = TASKS["corner_pairs"]
    assert task.peaks_per_heatmap is not None
    decoder = CornerPairsDecoder(
        output_stride=4, pairs=1000, top_k=100, score_threshold=0, rules="mmdetection"
    )
    names = [spec.name for spec in decoder.outputs()]
    outputs = task.decode(activate(maps, task.heads), task.peaks_per_heatmap)
    tensors = {name: values[0].numpy() for name, values in zip(names, outputs, strict=True)}
    # An image of 100 x 90 in an input of 127 x 127.
    transform = ImageTransform(100, 90, 127, 127, AffineTransform(1.0, 13, 18))
    found = CornerPairs(decoder).decode(
        [ModelOutput(tensors, transform)], DetectionOptions(0.0, 100, soft_nms=True)
    )
    # The case covers boxes at the left and top edge, beyond the others, and suppressed boxes.
    assert (golden[:, :2] == 0).any()
    assert (golden[:, 2:4] > (100, 90)).any()
    rows = np.column_stack([found.boxes_xyxy, found.scores, found.class_ids])
    error = match_boxes(rows, golden)
    print(f"\nparity | corner head | {len(golden)} detections | {error}")
    assert error.matched == 1
    assert error.worst_score <= 2e-6
    assert error.worst_corner_px <= 1e-4
