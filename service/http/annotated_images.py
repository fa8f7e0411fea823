"""Images with their detections drawn on them."""

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.drawing import LAYER_BYTES_PER_PX, draw_detections, layer_areas_px
from client.results import Detection, DetectionResult
from model_package import KeypointsDecoder, ModelManifest
from service.errors import InvalidOptionError
from service.imaging.types import DecodingCost

MAX_PIXELS = 1920 * 1088
"""Pixels of an annotated image; larger ones are reduced."""
MAX_DRAWING_S = 5.0
"""Stated CPU seconds of drawing."""
_JPEG_QUALITY = 90
_PNG_LEVEL = 1
# Measured on noise, with a margin; see tests/service/http/test_annotated_images.py.
_BYTES_PER_PX, _FIXED_BYTES = 24, 4 << 20
_NS_PER_PX, _NS_PER_LAYER_PX, _S_PER_DETECTION, _FIXED_S = 200, 130, 0.0015, 0.01


class AnnotatedImage:
    """The image of a response, as it will be drawn.

    ``media_type``: ``image/png`` or ``image/jpeg``. Raises :class:`InvalidOptionError` if drawing
    could take more than :data:`MAX_DRAWING_S`.
    """

    def __init__(self, result: DetectionResult, manifest: ModelManifest, media_type: str) -> None:
        scale = min(1.0, math.sqrt(MAX_PIXELS / (result.width * result.height)))
        self._size = (max(1, int(result.width * scale)), max(1, int(result.height * scale)))
        self._detections: Sequence[Detection] = [
            detection.scaled(scale) if scale < 1 else detection for detection in result.detections
        ]
        self._manifest = manifest
        self._media_type = media_type
        self.cost = self._cost()
        """Cost of drawing and encoding, beside that of decoding."""
        if self.cost.cpu_s > MAX_DRAWING_S:
            raise InvalidOptionError(
                f"Drawing {len(self._detections)} detections could take {self.cost.cpu_s:.1f} s; "
                f"at most {MAX_DRAWING_S:g} are accepted. Lower top_k or raise score_threshold."
            )

    def _cost(self) -> DecodingCost:
        areas = layer_areas_px(self._size, self._detections)
        pixels = self._size[0] * self._size[1]
        cpu_ns = _NS_PER_PX * pixels + _NS_PER_LAYER_PX * sum(areas)
        return DecodingCost(
            _FIXED_BYTES + _BYTES_PER_PX * pixels + LAYER_BYTES_PER_PX * max(areas, default=0),
            _FIXED_S + cpu_ns / 1e9 + _S_PER_DETECTION * len(self._detections),
        )

    def draw(self, pixels: NDArray[np.uint8]) -> bytes:
        """Draw on upright uint8 RGB pixels (height, width, 3) at full size; return the file."""
        if self._size != pixels.shape[1::-1]:
            pixels = np.asarray(cv2.resize(pixels, self._size, interpolation=cv2.INTER_AREA))
        decoder = self._manifest.decoder
        pose = decoder if isinstance(decoder, KeypointsDecoder) else None
        drawn = draw_detections(
            Image.fromarray(pixels),
            self._detections,
            skeleton=pose.skeleton if pose else (),
            keypoint_names=pose.keypoints if pose else (),
        )
        buffer = io.BytesIO()
        if self._media_type == "image/png":
            drawn.save(buffer, "PNG", compress_level=_PNG_LEVEL)
        else:
            drawn.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        return buffer.getvalue()
