"""Decoders: from a model's output tensors to the detections of one image.

One module per decoder kind of the manifest. To add a kind, follow CONTRIBUTING.md, "A task".

Results follow the reference implementation. A decoder that corrects one of its mistakes says so
in the docstring of its class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from model_package import ModelManifest
from service.decoders.center_boxes import CenterBoxes
from service.decoders.center_boxes_3d import CenterBoxes3D
from service.decoders.center_poses import CenterPoses
from service.decoders.center_poses_and_boxes_3d import CenterPosesAndBoxes3D
from service.decoders.corner_pairs import CornerPairs
from service.decoders.corner_triplets import CornerTriplets
from service.decoders.extreme_points import ExtremePoints
from service.decoders.types import DetectionOptions, Detections, ModelOutput

__all__ = ["DECODERS", "Decoder", "ModelOutput", "make_decoder"]


class Decoder(Protocol):
    """Converts the model outputs of one image to detections in that image's pixels."""

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Return the detections of one image, best score first.

        ``outputs`` has one element per network input of the image: by test scale, and with test
        flips as separate inputs, each image before its flipped copy. Called from several threads
        at once.
        """
        ...


DECODERS: Mapping[str, Callable[[Any], Decoder]] = {
    "center_boxes": CenterBoxes,
    "center_poses": CenterPoses,
    "center_boxes_3d": CenterBoxes3D,
    "center_poses_and_boxes_3d": CenterPosesAndBoxes3D,
    "corner_pairs": CornerPairs,
    "corner_triplets": CornerTriplets,
    "extreme_points": ExtremePoints,
}
"""Decoder class by the manifest's ``decoder.kind``; its argument is the ``decoder`` entry."""


def make_decoder(manifest: ModelManifest) -> Decoder:
    """Return the decoder of the manifest's ``decoder.kind``."""
    return DECODERS[manifest.decoder.kind](manifest.decoder)
