"""Error analysis of *CenterNet: Keypoint Triplets* (Duan et al. 2019).

The predicted center keypoints are replaced by those of the labels: the gain in AP is the error of
the centers, the rest that of the corners.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from evaluation.ground_truth import GroundTruth, ImageLabels, labels_by_image
from evaluation.local_model import LocalModel
from service.decoders.corner_triplets import CenterKeypoints, CornerTriplets
from service.decoders.types import DetectionOptions, Detections, ModelOutput


@dataclass(frozen=True)
class _OptionsWithCenters(DetectionOptions):
    centers: CenterKeypoints | None = None


class _DecoderWithCenters(CornerTriplets):
    """The decoder of triplets, with centers from the options."""

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Decode the model outputs of one image."""
        if not isinstance(options, _OptionsWithCenters) or options.centers is None:
            raise TypeError(f"expected options with centers, received {options}")
        return self.decode_with_centers(outputs, options.centers, options)


def with_ground_truth_centers(package: Path, ground_truth: GroundTruth) -> LocalModel:
    """Load a triplets package whose predicted centers are replaced by those of the labels.

    The center of a label is the center of its box, with score 1, as in a perfect heatmap.
    """
    centers = {
        image.image_id: centers_of(labels)
        for image, labels in zip(ground_truth.images, labels_by_image(ground_truth), strict=True)
    }
    return LocalModel(
        package,
        _DecoderWithCenters,
        lambda image, options: _OptionsWithCenters(
            **{one.name: getattr(options, one.name) for one in fields(DetectionOptions)},
            centers=centers[image.image_id],
        ),
    )


def centers_of(labels: ImageLabels) -> CenterKeypoints:
    """Return the centers of all boxes except crowds, which are not single objects."""
    boxes = labels.boxes_xyxy[~labels.is_crowd]
    return CenterKeypoints(
        (boxes[:, :2] + boxes[:, 2:]) / 2,
        np.ones(len(boxes), np.float32),
        labels.class_ids[~labels.is_crowd].astype(np.int32),
    )
