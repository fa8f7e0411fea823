"""Draw detections on their image."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# The Okabe-Ito palette, which stays distinguishable with colour vision deficiency.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_OUTLINE = "#202020"
# Corner indices of a 3D box's edges: around the bottom, around the top, and the vertical ones.
_EDGES_3D = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
# Diagonals of the front face (positive length: corners 0, 1, 5 and 4), which mark the heading.
_FRONT_3D = ((0, 5), (1, 4))


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    skeleton: Sequence[tuple[int, int]] = (),
) -> Image.Image:
    """Return an RGB copy of ``image`` with the ``detections`` of a response drawn on it.

    Draws the class name and score, and the box, or the edges of the 3D box with a cross on its
    front face. ``skeleton``: pairs of keypoint indices to connect by a line. The image must be
    upright (EXIF orientation applied), as the coordinates are.
    """
    drawn = image.convert("RGB")
    pen = _Pen(drawn)
    # The highest scores last, so that they are drawn on top.
    for detection in reversed(detections):
        colour = _COLOURS[detection["class_id"] % len(_COLOURS)]
        corners = detection.get("box3d", {}).get("corners_px")
        if corners is None:
            pen.box(detection["bbox"], colour)
        else:
            pen.lines(corners, (*_EDGES_3D, *_FRONT_3D), colour)
        keypoints = [keypoint[:2] for keypoint in detection.get("keypoints", ())]
        pen.lines(keypoints, skeleton, colour)
        pen.dots(keypoints, colour)
        text = f"{detection['class_name']} {detection['score']:.2f}"
        pen.label(text, detection["bbox"], colour)
    return drawn


class _Pen:
    """Draws with line widths and a font size in proportion to the image."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)
        self._line_px = max(2, round(max(image.size) / 320))
        self._font = ImageFont.load_default(max(11, round(max(image.size) / 48)))

    def box(self, bbox: Sequence[float], colour: str) -> None:
        self._draw.rectangle(_ordered(bbox), outline=colour, width=self._line_px)

    def lines(
        self, points: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]], colour: str
    ) -> None:
        for start, end in pairs:
            if max(start, end) < len(points):
                line = [*points[start], *points[end]]
                self._draw.line(line, fill=colour, width=self._line_px)

    def dots(self, points: Sequence[Sequence[float]], colour: str) -> None:
        radius = self._line_px + 1
        for x, y in points:
            around = (x - radius, y - radius, x + radius, y + radius)
            self._draw.ellipse(around, fill=colour, outline=_OUTLINE)

    def label(self, text: str, bbox: Sequence[float], colour: str) -> None:
        left, top, _, _ = _ordered(bbox)
        _, _, width, height = self._draw.textbbox((0, 0), text, font=self._font)
        # Above the box, or inside it at the upper edge of the image.
        y = top - height - 2 if top > height + 2 else max(top, 0)
        x = max(left, 0)
        self._draw.rectangle((x, y, x + width + 4, y + height + 2), fill=colour)
        self._draw.text((x + 2, y), text, fill="white", font=self._font)


def _ordered(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = bbox
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
