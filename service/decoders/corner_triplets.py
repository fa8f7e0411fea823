"""2D boxes from two corners and a center (*CenterNet: Keypoint Triplets*, Duan et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_package import CornerTripletsDecoder
from service.decoders.corner_pairs import (
    CandidateBoxes,
    apply_soft_nms,
    cells_to_resized,
    decode_candidates,
    is_multi_scale,
)
from service.decoders.types import DetectionOptions, Detections, ModelOutput

_MARGIN_PX = 5.0
"""Boxes that extend this far beyond the resized image are dropped."""
_LARGE_AREA_PX2 = 150.0**2
"""Boxes with a larger area have a central region of 1/5 of each side, others 1/3 (section 3.1)."""


@dataclass(frozen=True)
class CenterKeypoints:
    """Center keypoints of one image, in order of precedence.

    ``points``: float64 (m, 2) in pixels of the image; ``scores``: float32 (m,); ``class_ids``:
    int32 (m,).
    """

    points: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]


class CornerTriplets:
    """Keeps the corner pairs that have a center keypoint of their class in their central region.

    Output tensors: see :class:`model_package.CornerTripletsDecoder`.

    Differs from the reference implementation as :class:`service.decoders.corner_pairs.CornerPairs`
    does.
    """

    def __init__(self, config: CornerTripletsDecoder) -> None:
        self._output_stride = config.output_stride

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Return the best boxes of all network inputs of one image.

        As in the reference implementation, center keypoints are taken at test scale 1 only.
        """
        centers = self._decode_centers([one for one in outputs if one.transform.test_scale == 1])
        return self.decode_with_centers(outputs, centers, options)

    def decode_with_centers(
        self,
        outputs: Sequence[ModelOutput],
        centers: CenterKeypoints,
        options: DetectionOptions,
    ) -> Detections:
        """Return the best boxes of one image, given its center keypoints."""
        candidates = CandidateBoxes.concatenate(
            [decode_candidates(output, self._output_stride, _MARGIN_PX) for output in outputs]
        )
        triplets = filter_by_centers(candidates, centers)
        return apply_soft_nms(triplets, options, merge=is_multi_scale(outputs))

    def _decode_centers(self, outputs: Sequence[ModelOutput]) -> CenterKeypoints:
        points = [
            cells_to_resized(
                output.tensors["centers"].astype(np.float64), output.transform, self._output_stride
            )
            for output in outputs
        ]
        return CenterKeypoints(
            np.concatenate(points),
            np.concatenate([output.tensors["center_scores"] for output in outputs]),
            np.concatenate([output.tensors["center_class_ids"] for output in outputs]),
        )


def filter_by_centers(candidates: CandidateBoxes, centers: CenterKeypoints) -> CandidateBoxes:
    """Keep the boxes with a center of their class strictly inside their central region.

    The score becomes the mean of the two corners' and the center's. As in the reference
    implementation, the first matching center counts: those of the image by descending score, then
    those of the flipped image.
    """
    low, high = central_regions(candidates.boxes_xyxy)
    # (boxes, centers): the first center of a box is found in contiguous memory.
    matches = candidates.class_ids[:, None] == centers.class_ids
    for axis in (0, 1):
        coordinates = centers.points[:, axis].astype(np.float32)
        matches &= coordinates > low[:, axis, None]
        matches &= coordinates < high[:, axis, None]
    first = matches.argmax(axis=1)
    rows = np.flatnonzero(matches[np.arange(len(matches)), first])
    kept = candidates[rows]
    return replace(kept, scores=(kept.scores * 2 + centers.scores[first[rows]]) / 3)


def central_regions(
    boxes_xyxy: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the low and the high ends (n, 2) of the central regions of boxes (n, 4), in pixels.

    The middle third of each side, the middle fifth for boxes above 150 x 150 pixels (section 3.1).
    """
    top_left, bottom_right = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    sides = bottom_right - top_left
    large = sides.prod(axis=1, keepdims=True) > _LARGE_AREA_PX2
    margin = sides * np.where(large, 2 / 5, 1 / 3)
    return (top_left + margin).astype(np.float32), (bottom_right - margin).astype(np.float32)
