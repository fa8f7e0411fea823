"""Draw an answer of the service on its picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's palette, which people with any colour vision can tell apart.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


def draw_detections(picture: Image.Image, detections: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Return an RGB copy of the upright ``picture`` with each detection's box, class and score."""
    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    line_px = max(2, round(max(drawn.size) / 320))
    font = ImageFont.load_default(max(11, round(max(drawn.size) / 48)))
    # The best ones last, so that they lie on top.
    for detection in reversed(detections):
        colour = _COLOURS[detection["class_id"] % len(_COLOURS)]
        x1, y1, x2, y2 = detection["bbox"]
        left, right = sorted((x1, x2))
        top, bottom = sorted((y1, y2))
        draw.rectangle((left, top, right, bottom), outline=colour, width=line_px)
        text = f"{detection['class_name']} {detection['score']:.2f}"
        label = draw.textbbox((0, 0), text, font=font)
        # Above the box, or inside it where the picture ends.
        y = top - label[3] - 2 if top > label[3] + 2 else max(top, 0)
        x = max(left, 0)
        draw.rectangle((x, y, x + label[2] + 4, y + label[3] + 2), fill=colour)
        draw.text((x + 2, y), text, fill="white", font=font)
    return drawn
