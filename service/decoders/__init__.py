"""Decoders: one row of engine outputs to detections; one file per task."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from model_package import ModelManifest
from service.decoders.center_boxes import CenterBoxes
from service.detections import DetectionOptions, Detections
from service.geometry import AffineTransform


class Decoder(Protocol):
    """Turns the outputs of one image into detections in its own pixels."""

    def decode(
        self,
        row: Mapping[str, NDArray[Any]],
        transform: AffineTransform,
        options: DetectionOptions,
    ) -> Detections:
        """Decode one image; see the decoder's class for the arrays it reads."""
        ...


DECODERS = {"center_boxes": CenterBoxes}


def make_decoder(manifest: ModelManifest) -> Decoder:
    """Make the decoder that the manifest asks for."""
    return DECODERS[manifest.decoder.kind](manifest.decoder)
