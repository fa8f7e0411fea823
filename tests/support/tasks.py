"""Decoders, inputs and graph outputs of small models of every task."""

import numpy as np

from model_package import (
    CenterBoxes3DDecoder,
    CenterPosesAndBoxes3DDecoder,
    CenterPosesDecoder,
    ExtremePointsDecoder,
    FreeSize,
    InputSpec,
)

POSES = CenterPosesDecoder(
    output_stride=4,
    top_k=2,
    score_threshold=0.1,
    keypoints=("nose", "tail"),
    skeleton=((0, 1),),
)
POSE_ROWS = {
    "scores": np.float32([0.9, 0.2]),
    "class_ids": np.int32([0, 0]),
    "centers": np.float32([[8, 8], [4, 4]]),
    "sizes": np.float32([[4, 8], [2, 2]]),
    "keypoints": np.float32([[[8, 5], [8, 11.5]], [[4, 4], [4, 4.5]]]),
    "keypoint_scores": np.float32([[0.75, 0], [0.25, 0.5]]),
}
CAMERA = (100.0, 0, 32, 0, 0, 100, 32, 0, 0, 0, 1, 0)
BOXES_3D = CenterBoxes3DDecoder(output_stride=4, top_k=2, score_threshold=0.1, projection=CAMERA)
BOXES_3D_ROWS = {
    "scores": np.float32([0.9, 0.8]),
    "class_ids": np.int32([1, 0]),
    "centers": np.float32([[8, 8], [8, 8]]),
    "sizes": np.float32([[4, 4], [4, 4]]),
    "depths": np.float32([20, 0.5]),
    "dimensions": np.float32([[2, 3, 4], [2, 3, 4]]),
    # The second bin, sine 0 and cosine -1: pi + pi / 2 = -pi / 2.
    "rotations": np.float32([[0, 0, 0, 0, 0, 1, 0, -1]] * 2),
}
POSES_AND_BOXES_3D = CenterPosesAndBoxes3DDecoder(
    output_stride=4,
    top_k=2,
    score_threshold=0.1,
    projection=CAMERA,
    keypoints=("nose", "tail"),
    skeleton=((0, 1),),
)
POSES_AND_BOXES_3D_ROWS = {**POSE_ROWS, **BOXES_3D_ROWS}
EXTREME_POINTS = ExtremePointsDecoder(
    output_stride=4, peaks=1, columns=16, agnostic=False, top_k=2, score_threshold=0.1
)
# The right point is beyond an image of 64 pixels.
EXTREME_POINT_ROWS = {
    "scores": np.full((4, 1), 0.9, np.float32),
    "class_ids": np.zeros((4, 1), np.int32),
    "cells": np.int32([[[8, 3]], [[4, 6]], [[7, 12]], [[15, 7]]]),
    "points": np.float32([[[8.5, 3.5]], [[4.5, 6.5]], [[7.5, 12.5]], [[16.5, 7.5]]]),
    "center_scores": np.full((1, 1, 16), 0.6, np.float32),
}
CANVAS_3D = InputSpec(width_px=64, height_px=64, resize="fit_width")
CORNER_CANVAS = InputSpec(
    width_px=127,
    height_px=127,
    resize="keep_resolution",
    free_size=FreeSize(multiple_px=128, extra_px=0, max_side_px=511),
)
PAIR_ROWS = {
    "scores": np.float32([0.9, 0.6, -1]),
    "class_ids": np.int32([2, 0, 0]),
    # An input of 127 pixels has 32 cells; an image of 64 pixels begins at pixel 31.
    "boxes": np.float32([[10, 10, 20, 22], [12, 12, 14, 14], [1, 1, 2, 2]]),
    "corner_scores": np.float32([[0.9, 0.9], [0.6, 0.6], [0, 0]]),
}
CENTER_ROWS = {
    "centers": np.float32([[15, 16], [31, 31]]),
    "center_scores": np.float32([0.6, 0.5]),
    "center_class_ids": np.int32([2, 2]),
}
BOX_ROWS = {
    "scores": np.float32([0.9, 0.8, 0.2, 0, 0]),
    "class_ids": np.int32([0, 0, 1, 0, 0]),
    "centers": np.float32([[8, 8], [8.5, 8], [4, 4], [0, 0], [0, 0]]),
    "sizes": np.float32([[4, 8], [4, 8], [2, 2], [0, 0], [0, 0]]),
}
FREE = InputSpec(
    width_px=64,
    height_px=64,
    free_size=FreeSize(multiple_px=32, extra_px=1, max_side_px=256),
)
