"""Boxes from center points (*Objects as Points*, section 4)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import CenterBoxesDecoder
from service.detections import DetectionOptions, Detections
from service.geometry import AffineTransform


class CenterBoxes:
    """Decodes the peaks of one image; all work is on ``top_k`` rows."""

    def __init__(self, facts: CenterBoxesDecoder) -> None:
        self._stride = facts.output_stride

    def decode(
        self,
        row: Mapping[str, NDArray[Any]],
        transform: AffineTransform,
        options: DetectionOptions,
    ) -> Detections:
        """Decode one row of outputs (see :class:`CenterBoxesDecoder` for shapes and units).

        ``transform`` maps the image to the network input. A box is its center -/+ half its size;
        like the authors' code, it is not clipped to the picture.
        """
        scores = row["scores"]
        class_ids = row["class_ids"]
        keep = scores >= options.score_threshold
        if options.class_ids is not None:
            keep &= np.isin(class_ids, list(options.class_ids))
        # The graph sorts by score; filtering keeps that order.
        chosen = np.flatnonzero(keep)[: options.top_k]
        centers = row["centers"][chosen].astype(np.float64) * self._stride
        half_sizes = row["sizes"][chosen].astype(np.float64) * (self._stride / 2)
        corners_in_input = np.stack([centers - half_sizes, centers + half_sizes], axis=1)
        return Detections(
            boxes_xyxy=transform.to_image(corners_in_input).reshape(-1, 4),
            scores=scores[chosen],
            class_ids=class_ids[chosen],
        )
