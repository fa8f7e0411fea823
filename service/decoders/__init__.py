"""Decoders: the outputs for one image to its detections; one file per task.

Where the reference implementation has a plain mistake that only hurts, the decoder's docstring says what is
done instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from model_package import ModelManifest
from service.decoders.center_boxes import CenterBoxes
from service.decoders.center_boxes_3d import CenterBoxes3D
from service.decoders.center_poses import CenterPoses
from service.decoders.corner_pairs import CornerPairs
from service.decoders.corner_triplets import CornerTriplets
from service.decoders.model_output import ModelOutput
from service.decoders.types import DetectionOptions, Detections

__all__ = ["DECODERS", "Decoder", "ModelOutput", "make_decoder"]


class Decoder(Protocol):
    """Turns the outputs for one image into detections in its own pixels."""

    def decode(self, views: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Decode one image from all its views; see the decoder's class for what it reads."""
        ...


DECODERS: Mapping[str, Callable[[Any], Decoder]] = {
    "center_boxes": CenterBoxes,
    "center_poses": CenterPoses,
    "center_boxes_3d": CenterBoxes3D,
    "corner_pairs": CornerPairs,
    "corner_triplets": CornerTriplets,
}


def make_decoder(manifest: ModelManifest) -> Decoder:
    """Make the decoder that the manifest asks for."""
    return DECODERS[manifest.decoder.kind](manifest.decoder)
