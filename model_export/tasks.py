"""Table of the supported tasks: heads, decoding and defaults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from model_export.class_names import COCO, COCO_KEYPOINTS, KITTI
from model_export.graph.boxes_3d import decode_boxes_3d
from model_export.graph.corner_pairs import (
    PAIR_HEADS,
    PAIRS,
    TRIPLET_HEADS,
    decode_corner_pairs,
    decode_corner_triplets,
)
from model_export.graph.extreme_points import AGNOSTIC_HEADS, HEADS, decode_extreme_points
from model_export.graph.heads import Head
from model_export.graph.peaks import PartDecoder, decode_centers
from model_export.graph.poses import decode_keypoints
from model_export.key_mappings.key_mapping import Framework
from model_package import (
    CenterBoxes3DDecoder,
    CenterBoxesDecoder,
    CenterPosesAndBoxes3DDecoder,
    CenterPosesDecoder,
    CornerPairsDecoder,
    CornerRules,
    CornerTripletsDecoder,
    Decoder,
    ExtremePointsDecoder,
    ResizeMode,
)

HeadDecoder = Callable[[Mapping[str, Tensor], int], tuple[Tensor, ...]]
"""Decodes activated maps by head and K to the graph outputs."""

DecoderType = type[Decoder]
"""Class of a manifest entry ``decoder``."""


@dataclass(frozen=True)
class Task:
    """Heads of a task, their decoding inside the graph, and the defaults of its exports."""

    heads: Mapping[str, Head]
    decode: HeadDecoder
    """Decodes activated maps to the outputs of ``decoder``, in its order."""
    decoder: DecoderType
    """Manifest entry of the outputs."""
    classes: tuple[str, ...]
    """Default names, for checkpoints with this number of classes."""
    keypoints: tuple[str, ...] = ()
    size_px: tuple[int, int] = (512, 512)
    """Default width and height of the input."""
    reduction_px: Literal[0, 1] = 0
    """Pixels by which input sides are below a multiple; 1 in *CornerNet* (511 = 4 * 128 - 1)."""
    max_side_px: int | None = None
    """Default limit of dynamic input sides; None: fixed input size."""
    resize: ResizeMode = "letterbox"
    normalization: str = "coco"
    can_flip: bool = True
    """Maps can be averaged over the image and its horizontal flip."""
    peaks_per_heatmap: int | None = None
    """Number of peaks of each heatmap that are grouped to objects; None: top-K objects."""
    pairs: int = PAIRS
    """Number of pairs of corners in the output."""
    corner_rules: CornerRules = "cornernet"

    @property
    def classes_head(self) -> str:
        """Name of the first head with one map per class."""
        return next(name for name, head in self.heads.items() if head.per == "class")

    @property
    def centers_heatmap(self) -> str | None:
        """Name of the head whose peaks are object centers; None for other kinds of peaks."""
        if self.decoder is ExtremePointsDecoder:
            return None
        return next((name for name in self.heads if name in ("heatmap", "center_heatmap")), None)

    @property
    def is_agnostic(self) -> bool:
        """Whether there are heatmaps without classes beside those with classes."""
        return any(head.heatmap and head.per == "map" for head in self.heads.values())

    @property
    def heatmaps(self) -> tuple[str, ...]:
        """Names of all heatmap heads, optional ones included."""
        return tuple(name for name, head in self.heads.items() if head.heatmap)

    def head_channels(
        self, present: Mapping[str, int], classes: int, keypoints: int
    ) -> dict[str, int]:
        """Return the channels of every head; optional heads only if they are in ``present``."""
        return {
            name: head.count(classes, keypoints)
            for name, head in self.heads.items()
            if not head.optional or name in present
        }


_BOX_HEADS = {
    "heatmap": Head(1, per="class", heatmap=True),
    "size": Head(2),
    "offset": Head(2, optional=True, flipped=False),
}
_KEYPOINT_HEADS = {
    "keypoint_offsets": Head(2, per="keypoint"),
    "keypoint_heatmap": Head(1, per="keypoint", optional=True, heatmap=True),
    "keypoint_heatmap_offset": Head(2, optional=True, flipped=False),
}
_BOX_3D_HEADS = {
    "depth": Head(1),
    "dimensions": Head(3),
    "rotation": Head(8),
}


def _decode(*parts: PartDecoder) -> HeadDecoder:
    """Return the decoding of boxes and ``parts`` at the peaks of the heatmap."""
    return partial(decode_centers, parts=parts)


def _corner_task(
    heads: Mapping[str, Head], decode: HeadDecoder, decoder: DecoderType, peaks_per_heatmap: int
) -> Task:
    """Return a corner task with the defaults of both papers: images keep their resolution."""
    return Task(
        heads=heads,
        decode=decode,
        decoder=decoder,
        classes=COCO,
        size_px=(511, 511),
        reduction_px=1,
        max_side_px=1023,
        resize="keep_resolution",
        # The flipped image is a separate batch row; boxes are merged after decoding, not maps.
        can_flip=False,
        peaks_per_heatmap=peaks_per_heatmap,
    )


def _extreme_points_task(heads: Mapping[str, Head], *, agnostic: bool) -> Task:
    """Return a task of *ExtremeNet*, with the number of peaks of its paper."""
    return Task(
        heads=heads,
        decode=partial(decode_extreme_points, agnostic=agnostic),
        decoder=ExtremePointsDecoder,
        classes=COCO,
        # Image and flipped image are decoded apart, and their objects are merged.
        can_flip=False,
        peaks_per_heatmap=40,
    )


TASKS: Mapping[str, Task] = {
    "boxes": Task(heads=_BOX_HEADS, decode=_decode(), decoder=CenterBoxesDecoder, classes=COCO),
    "poses": Task(
        heads={**_BOX_HEADS, **_KEYPOINT_HEADS},
        decode=_decode(decode_keypoints),
        decoder=CenterPosesDecoder,
        classes=("person",),
        keypoints=COCO_KEYPOINTS,
    ),
    "boxes_3d": Task(
        heads={**_BOX_HEADS, **_BOX_3D_HEADS},
        decode=_decode(decode_boxes_3d),
        decoder=CenterBoxes3DDecoder,
        classes=KITTI,
        size_px=(1280, 384),
        resize="fit_width",
        normalization="imagenet",
        # A flip changes the rotations; the reference implementation does not average here either.
        can_flip=False,
    ),
    # The defaults of CenterTrack, whose tasks can be combined: "ddd,multi_pose".
    "poses_and_boxes_3d": Task(
        heads={**_BOX_HEADS, **_KEYPOINT_HEADS, **_BOX_3D_HEADS},
        decode=_decode(decode_keypoints, decode_boxes_3d),
        decoder=CenterPosesAndBoxes3DDecoder,
        classes=("person",),
        keypoints=COCO_KEYPOINTS,
        can_flip=False,
    ),
    "extreme_points": _extreme_points_task(HEADS, agnostic=False),
    "extreme_points_agnostic": _extreme_points_task(AGNOSTIC_HEADS, agnostic=True),
    "corner_pairs": _corner_task(PAIR_HEADS, decode_corner_pairs, CornerPairsDecoder, 100),
    "corner_triplets": _corner_task(
        TRIPLET_HEADS, decode_corner_triplets, CornerTripletsDecoder, 70
    ),
}

_CORNER_NET_LITE_PAIRS = 100
_TASKS_OF_FRAMEWORKS: Mapping[Framework, Mapping[str, Task]] = {
    "authors": TASKS,
    # The settings of CornerNet-Squeeze.
    "cornernet_lite": {
        "corner_pairs": replace(
            TASKS["corner_pairs"],
            decode=partial(decode_corner_pairs, pairs=_CORNER_NET_LITE_PAIRS),
            pairs=_CORNER_NET_LITE_PAIRS,
            peaks_per_heatmap=20,
            corner_rules="cornernet_lite",
        ),
    },
    "mmdetection": {
        "boxes": replace(
            TASKS["boxes"],
            normalization="mmdetection",
            resize="keep_resolution",
            max_side_px=1536,
        ),
        "corner_pairs": replace(
            TASKS["corner_pairs"], normalization="mmdetection-mean", corner_rules="mmdetection"
        ),
    },
}


def task_of_framework(name: str, framework: Framework) -> Task:
    """Return a task of :data:`TASKS` with the defaults of the framework's own test."""
    return _TASKS_OF_FRAMEWORKS[framework][name]
