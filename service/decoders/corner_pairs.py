"""2D boxes from pairs of corners (*CornerNet*, Law and Deng 2018, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_package import CornerPairsDecoder, CornerRules
from service.decoders.selection import selection_mask
from service.decoders.soft_nms import soft_nms, soft_nms_merge
from service.decoders.types import DetectionOptions, Detections, ModelOutput
from service.imaging.geometry import ImageTransform


@dataclass(frozen=True)
class CandidateBoxes:
    """Boxes from corner pairs of one image, before soft-NMS.

    ``boxes_xyxy``: float64 (n, 4) in pixels of the image; ``scores``: float32 (n,);
    ``class_ids``: int32 (n,); ``corner_scores``: float32 (n, 2), top-left and bottom-right.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    corner_scores: NDArray[np.float32]

    def __getitem__(self, rows: NDArray[np.generic]) -> "CandidateBoxes":
        return CandidateBoxes(
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.corner_scores[rows],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["CandidateBoxes"]) -> "CandidateBoxes":
        """Return the candidates of all parts, in their order."""
        return cls(
            np.concatenate([part.boxes_xyxy for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.class_ids for part in parts]),
            np.concatenate([part.corner_scores for part in parts]),
        )


class CornerPairs:
    """Merges the corner pairs of an image, its flipped copy, and both at other test scales.

    Output tensors: see :class:`model_package.CornerPairsDecoder`.

    Differs from the reference implementation as :mod:`service.decoders.soft_nms` describes, and
    never returns more than ``top_k`` boxes, also where several tie for the last score.
    """

    def __init__(self, config: CornerPairsDecoder) -> None:
        self._config = config

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Return the best boxes of all network inputs of one image."""
        rules = self._config.rules
        candidates = CandidateBoxes.concatenate(
            [
                decode_candidates(output, self._config.output_stride, rules=rules)
                for output in outputs
            ]
        )
        return apply_soft_nms(candidates, options, merge=is_multi_scale(outputs), rules=rules)


def decode_candidates(
    output: ModelOutput,
    output_stride: int,
    margin_px: float = np.inf,
    rules: CornerRules = "cornernet",
) -> CandidateBoxes:
    """Return the valid corner pairs of one network input, clipped as ``rules`` say.

    Drops boxes that extend ``margin_px`` or more beyond the resized image and, with the rules of
    MMDetection, those without an area after clipping.
    """
    tensors, transform = output.tensors, output.transform
    valid = tensors["scores"] > -1
    cells = tensors["boxes"][valid].astype(np.float64).reshape(-1, 2, 2)
    corners = cells_to_resized(cells, transform, output_stride)
    if transform.flipped:  # flipping back swaps left and right
        corners[..., 0] = corners[:, ::-1, 0]
    size = np.array([transform.resized_width_px, transform.resized_height_px])
    inside = ((corners[:, 0] > -margin_px) & (corners[:, 1] < size + margin_px)).all(axis=1)
    if rules == "mmdetection":
        inside &= (corners[:, 1] > np.maximum(corners[:, 0], 0)).all(axis=1)
        size = np.array([np.inf, np.inf])
    corners = np.clip(corners[inside], 0, size) / transform.test_scale
    return CandidateBoxes(
        corners.reshape(-1, 4),
        tensors["scores"][valid][inside],
        tensors["class_ids"][valid][inside],
        tensors["corner_scores"][valid][inside],
    )


def cells_to_resized(
    points: NDArray[np.float64], transform: ImageTransform, output_stride: int
) -> NDArray[np.float64]:
    """Map points (..., 2) in cells of the output map to pixels of the resized image, unflipped.

    The inputs of these networks have odd sides: with a stride of 4, 511 pixels give 128 cells, so a
    cell is slightly less than 4 pixels. Flipped maps are flipped about their width rather than
    their last cell, as in the reference implementation.
    """
    input_size = np.array([transform.input_width_px, transform.input_height_px])
    map_size = (input_size + 1) // output_stride
    if transform.flipped:
        points = np.stack([map_size[0] - points[..., 0], points[..., 1]], axis=-1)
    return transform.to_input.apply_inverse(points * (input_size / map_size))


def apply_soft_nms(
    candidates: CandidateBoxes,
    options: DetectionOptions,
    *,
    merge: bool,
    rules: CornerRules = "cornernet",
) -> Detections:
    """Return the detections that remain after soft-NMS per class.

    ``merge`` averages each selected box with the boxes it suppresses, as the reference
    implementation does with several test scales.
    """
    end_px = 0.0 if rules == "mmdetection" else 1.0
    if merge:
        # Boxes of any score take part in merging: filter by class only, by score afterwards.
        perfect_scores = np.ones_like(candidates.scores)
        candidates = candidates[selection_mask(perfect_scores, candidates.class_ids, options)]
        kept = soft_nms_merge(
            candidates.boxes_xyxy,
            candidates.scores,
            candidates.class_ids,
            candidates.corner_scores,
            top_k=options.top_k,
            end_px=end_px,
        )
    else:
        candidates = candidates[selection_mask(candidates.scores, candidates.class_ids, options)]
        kept = soft_nms(
            candidates.boxes_xyxy,
            candidates.scores,
            candidates.class_ids,
            top_k=options.top_k,
            end_px=end_px,
        )
    above = kept.scores >= options.score_threshold
    return Detections(
        kept.boxes_xyxy[above].astype(np.float64),
        kept.scores[above],
        candidates.class_ids[kept.rows[above]],
    )


def is_multi_scale(outputs: Sequence[ModelOutput]) -> bool:
    """Return whether the network inputs have more than one test scale."""
    return len({output.transform.test_scale for output in outputs}) > 1
