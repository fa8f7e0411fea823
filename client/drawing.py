"""Draw an answer of the service on its image."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's palette, which people with any colour vision can tell apart.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_OUTLINE = "#202020"
# Of a 3D box: around the bottom, around the top, and the four edges that stand.
_EDGES_3D = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
# The side that faces where the object is going: positive length, corners 0, 1, 5 and 4.
_FRONT_3D = ((0, 5), (1, 4))


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    skeleton: Sequence[tuple[int, int]] = (),
) -> Image.Image:
    """Return an RGB copy of the upright ``image`` with the detections of an answer drawn on it.

    Each has its class and score, and a box, or the edges of its 3D box with a cross on the
    front; keypoints are joined as ``skeleton`` says, pairs of indices.
    """
    drawn = image.convert("RGB")
    pen = _Pen(drawn)
    # The best ones last, so that they lie on top.
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
    """Draws with lines and letters that suit the size of the image."""

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
        # Above the box, or inside it where the image ends.
        y = top - height - 2 if top > height + 2 else max(top, 0)
        x = max(left, 0)
        self._draw.rectangle((x, y, x + width + 4, y + height + 2), fill=colour)
        self._draw.text((x + 2, y), text, fill="white", font=self._font)


def _ordered(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = bbox
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
