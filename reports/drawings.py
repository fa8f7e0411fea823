"""Drawings of detections for reports, of bounded size; needs Pillow."""

import io
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from client.drawing import draw_birds_eye, draw_detections
from client.results import Detection
from reports.page import Drawing

MAX_IMAGE_BYTES = 250_000
_SIDES_AND_QUALITIES = ((640, 80), (640, 60), (320, 60), (160, 60))
"""Longest side of an image in pixels and WebP quality; the first is used that is small enough."""
_GAP_PX = 8


def draw_side_by_side(
    caption: str,
    image: Image.Image,
    sides: Sequence[Sequence[Detection]],
    *,
    skeleton: Sequence[tuple[int, int]] = (),
    keypoint_names: Sequence[str] = (),
    range_m: float | None = None,
) -> Drawing:
    """Draw several sets of detections, each on its own copy of the upright ``image``.

    The image is reduced. With ``range_m``, the 3D boxes up to that distance are drawn from above,
    too. ``skeleton``, ``keypoint_names``: see :func:`client.drawing.draw_detections`. The file
    has at most :data:`MAX_IMAGE_BYTES`.
    """
    for side_px, quality in _SIDES_AND_QUALITIES:
        scale = min(1.0, side_px / max(image.size))
        width, height = (max(1, round(length * scale)) for length in image.size)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        panels = []
        for detections in sides:
            scaled = [_scaled(detection, scale) for detection in detections]
            panels.append(
                [draw_detections(small, scaled, skeleton=skeleton, keypoint_names=keypoint_names)]
            )
            if range_m is not None:
                panels[-1].append(draw_birds_eye(scaled, max(1, width // 2), range_m))
        sheet = _arrange(panels)
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= MAX_IMAGE_BYTES:
            break
    return Drawing(caption, buffer.getvalue(), sheet.width, sheet.height)


def _scaled(detection: Detection, scale: float) -> Detection:
    """Return the detection in an image that was resized by ``scale``, without corners in 3D."""
    scaled = detection.scaled(scale)
    return replace(scaled, box3d=scaled.box3d and replace(scaled.box3d, corners_px=()))


def _arrange(columns: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return the columns of images beside each other, all of the size of the first."""
    width = columns[0][0].width
    height = sum(image.height + _GAP_PX for image in columns[0]) - _GAP_PX
    sheet = Image.new("RGB", (len(columns) * (width + _GAP_PX) - _GAP_PX, height), "white")
    for index, column in enumerate(columns):
        top = 0
        for image in column:
            left = index * (width + _GAP_PX) + (width - image.width) // 2
            sheet.paste(image, (left, top))
            top += image.height + _GAP_PX
    return sheet
