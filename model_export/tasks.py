"""What networks are trained for, as data: one literal table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from model_export.class_names import COCO, COCO_KEYPOINTS, KITTI
from model_export.graph.boxes_3d import pick_boxes_3d
from model_export.graph.corner_pairs import (
    PAIR_HEADS,
    TRIPLET_HEADS,
    pick_corner_pairs,
    pick_corner_triplets,
)
from model_export.graph.heads import Head
from model_export.graph.peaks import pick_boxes
from model_export.graph.poses import pick_poses
from model_package import (
    CenterBoxes3DDecoder,
    CenterBoxesDecoder,
    CenterPosesDecoder,
    CornerPairsDecoder,
    CornerTripletsDecoder,
)

Pick = Callable[[Mapping[str, Tensor], int], tuple[Tensor, ...]]

DecoderType = (
    type[CenterBoxesDecoder]
    | type[CenterPosesDecoder]
    | type[CenterBoxes3DDecoder]
    | type[CornerPairsDecoder]
    | type[CornerTripletsDecoder]
)


@dataclass(frozen=True)
class Task:
    """Heads, the way from their maps to outputs, and what is usual."""

    heads: Mapping[str, Head]
    pick: Pick
    """Activated maps and K to the outputs of ``decoder``, in its order."""
    decoder: DecoderType
    classes: tuple[str, ...]
    """Names, if a checkpoint has as many classes."""
    keypoints: tuple[str, ...] = ()
    size_px: tuple[int, int] = (512, 512)
    """Width and height of the input."""
    extra_px: Literal[0, 1] = 1
    """0 where sides of the input are one less than multiples."""
    max_side_px: int | None = None
    """Longest side of inputs of other sizes, if those are usual."""
    resize: Literal["letterbox", "fit_width", "keep_resolution"] = "letterbox"
    normalization: str = "coco"
    can_flip: bool = True
    """Whether maps can be averaged over the image and its flipped image."""
    keypoint_peaks: int | None = None
    """Keypoints of each kind that the graph takes; None: as many as objects are wanted."""

    @property
    def classes_head(self) -> str:
        """A head that has a map per class."""
        return next(name for name, head in self.heads.items() if head.per == "class")

    @property
    def centers_heatmap(self) -> str | None:
        """The head whose peaks are centers of objects; *CornerNet* has none."""
        return next((name for name in self.heads if name in ("heatmap", "center_heatmap")), None)

    @property
    def heatmaps(self) -> tuple[str, ...]:
        """The heads whose peaks are looked for, optional ones included."""
        return tuple(name for name, head in self.heads.items() if head.heatmap)

    def head_channels(
        self, present: Mapping[str, int], classes: int, keypoints: int
    ) -> dict[str, int]:
        """Channels of every head, optional ones only where they are among ``present``."""
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


def _corner_task(
    heads: Mapping[str, Head], pick: Pick, decoder: DecoderType, keypoint_peaks: int
) -> Task:
    """Make a task with what both groups of authors do: images keep their resolution."""
    return Task(
        heads=heads,
        pick=pick,
        decoder=decoder,
        classes=COCO,
        size_px=(511, 511),
        extra_px=0,
        max_side_px=1023,
        resize="keep_resolution",
        # The flipped image is an input of its own; its boxes are merged, not its maps.
        can_flip=False,
        keypoint_peaks=keypoint_peaks,
    )


TASKS: Mapping[str, Task] = {
    "boxes": Task(heads=_BOX_HEADS, pick=pick_boxes, decoder=CenterBoxesDecoder, classes=COCO),
    "poses": Task(
        heads={
            **_BOX_HEADS,
            "keypoint_offsets": Head(2, per="keypoint"),
            "keypoint_heatmap": Head(1, per="keypoint", optional=True, heatmap=True),
            "keypoint_heatmap_offset": Head(2, optional=True, flipped=False),
        },
        pick=pick_poses,
        decoder=CenterPosesDecoder,
        classes=("person",),
        keypoints=COCO_KEYPOINTS,
    ),
    "boxes_3d": Task(
        heads={
            **_BOX_HEADS,
            "depth": Head(1),
            "dimensions": Head(3),
            "rotation": Head(8),
        },
        pick=pick_boxes_3d,
        decoder=CenterBoxes3DDecoder,
        classes=KITTI,
        size_px=(1280, 384),
        resize="fit_width",
        normalization="imagenet",
        # A flipped road has other rotations; the reference implementation does not average here either.
        can_flip=False,
    ),
    "corner_pairs": _corner_task(PAIR_HEADS, pick_corner_pairs, CornerPairsDecoder, 100),
    "corner_triplets": _corner_task(TRIPLET_HEADS, pick_corner_triplets, CornerTripletsDecoder, 70),
}
