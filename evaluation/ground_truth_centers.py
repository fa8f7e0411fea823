"""Error analysis of *CenterNet: Keypoint Triplets* (Duan et al. 2019).

The predicted center keypoints are replaced by those of the labels; what AP gains is what better
centers could give, and the rest is the corners'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from evaluation.ground_truth import GroundTruth, ImageLabels, labels_by_image
from evaluation.local_model import OfflinePackage
from service.decoders.corner_triplets import CenterKeypoints, decode_triplets
from service.decoders.types import DetectionOptions, Detections, ModelOutput


@dataclass(frozen=True)
class _OptionsWithCenters(DetectionOptions):
    centers: CenterKeypoints | None = None


class _GivenCenters:
    """The triplets' decoder with centers that the options bring."""

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Decode the outputs of one image."""
        if not isinstance(options, _OptionsWithCenters) or options.centers is None:
            raise TypeError("decoding with given centers needs options that bring them")
        return decode_triplets(outputs, options.centers, options)


def with_ground_truth_centers(package: Path, ground_truth: GroundTruth) -> OfflinePackage:
    """Load a package of the triplets so that the labels' centers take the place of its own.

    A label's center is the middle of its box, with the score 1 that a perfect heatmap has there.
    """
    centers = {
        image.image_id: centers_of(labels)
        for image, labels in zip(ground_truth.images, labels_by_image(ground_truth), strict=True)
    }
    return OfflinePackage(
        package,
        _GivenCenters(),
        lambda image, options: _OptionsWithCenters(
            **{one.name: getattr(options, one.name) for one in fields(DetectionOptions)},
            centers=centers[image.image_id],
        ),
    )


def centers_of(labels: ImageLabels) -> CenterKeypoints:
    """The middles of all boxes but crowds', which stand for no single object."""
    boxes = labels.boxes_xyxy[~labels.is_crowd]
    return CenterKeypoints(
        (boxes[:, :2] + boxes[:, 2:]) / 2,
        np.ones(len(boxes), np.float32),
        labels.class_ids[~labels.is_crowd].astype(np.int32),
    )
