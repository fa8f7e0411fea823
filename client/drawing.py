"""Draw detections on their image, and 3D boxes from above; needs Pillow."""

import math
from collections.abc import Callable, Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from client.results import Box3D, Detection, Keypoint, Point

Rectangle = tuple[float, float, float, float]
_Paint = Callable[["_Pen"], None]

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colours, which stay distinguishable with colour vision deficiency; by class."""
LEFT, RIGHT, MIDDLE = "#56B4E9", "#E69F00", "#FFFFFF"
"""Colours of the keypoints and limbs of each side of the body."""
_OUTLINE = "#202020"

# Corner indices of the faces of a 3D box (bottom: 0 to 3, corner i is below corner i + 4). They are
# clockwise in the image where the outer side of the face is seen.
_FRONT = (0, 1, 5, 4)
_FACES = (_FRONT, (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7), (4, 5, 6, 7), (1, 0, 3, 2))
_SUPERSAMPLING = 3
LAYER_BYTES_PER_PX = 4 * (2 * _SUPERSAMPLING**2 + 3)
"""Memory per pixel of the image that a layer covers: RGBA, twice before and thrice after it is
reduced, for which Pillow multiplies the colors by alpha in a copy."""


def draw_detections(
    image: Image.Image,
    detections: Sequence[Detection],
    *,
    skeleton: Sequence[tuple[int, int]] = (),
    keypoint_names: Sequence[str] = (),
) -> Image.Image:
    """Return an RGB copy of ``image`` with the ``detections`` drawn on it.

    Boxes have the colour of their class. Of 3D boxes the front face is filled, hidden edges are
    dashed, and an arrow on the ground shows the heading. Masks are filled, with their extreme
    points. ``skeleton``: pairs of keypoint indices to
    connect; with ``keypoint_names`` such as ``left_hip``, keypoints have the colour of their side.
    Keypoints with the coordinates NaN are left out, with their limbs. Labels do not cover each
    other; where there is no room, those of lower scores are left out. The image must be upright
    (EXIF orientation applied), as the coordinates are.
    """
    drawn = image.convert("RGB")
    canvas = _Canvas(drawn)
    # The highest scores last, so that they are drawn on top.
    for detection in reversed(detections):
        colour = _colour(detection)
        if corners := _corners(detection):
            canvas.box_3d(corners, colour)
        else:
            canvas.box(detection.bbox, colour)
        if detection.octagon:
            canvas.mask(detection.octagon, detection.extreme_points, colour)
        if detection.keypoints:
            canvas.pose(detection.keypoints, skeleton, keypoint_names, colour)
    canvas.labels(detections)
    return drawn


def layer_areas_px(size: tuple[int, int], detections: Sequence[Detection]) -> list[int]:
    """Return the areas of the layers that :func:`draw_detections` draws on, for its cost.

    ``size``: width and height of the image. Each pose, mask and 3D box has a layer around it, whose
    memory is :data:`LAYER_BYTES_PER_PX`, one at a time.
    """
    margin = 4 * _line_px(size)
    layers = [
        _region(size, points, margin)
        for detection in detections
        for points in (
            _box_points(_corners(detection)),
            _present(detection.keypoints),
            [*detection.octagon, *detection.extreme_points],
        )
        if points
    ]
    return [
        (right - left) * (bottom - top)
        for left, top, right, bottom in layers
        if left < right and top < bottom
    ]


def draw_birds_eye(
    detections: Sequence[Detection], height_px: int, range_m: float = 60.0
) -> Image.Image:
    """Return an RGB image of the 3D boxes from above, two thirds as wide as ``height_px``.

    The camera is at the middle of the lower edge and looks up; the image shows ``range_m`` metres
    ahead, with a line every 10 metres. The front edge of a box is drawn thicker.
    """
    view = _BirdsEye(height_px, range_m)
    for detection in reversed(detections):
        if detection.box3d is not None:
            view.box(detection.box3d, _colour(detection))
    return view.image()


def _colour(detection: Detection) -> str:
    return PALETTE[detection.class_id % len(PALETTE)]


def _corners(detection: Detection) -> Sequence[Point]:
    return () if detection.box3d is None else detection.box3d.corners_px


def _arrow_of(corners: Sequence[Point]) -> tuple[Point, Point]:
    """Return the start and the tip of the arrow that shows the heading of a 3D box."""
    center = _mean([corners[i] for i in range(4)])
    return center, _between(center, _mean([corners[i] for i in _FRONT[:2]]), 1.5)


def _box_points(corners: Sequence[Point]) -> list[Point]:
    """Return the corners and the tip of the arrow; nothing without corners."""
    return [*corners, _arrow_of(corners)[1]] if corners else []


def _present(keypoints: Sequence[Keypoint]) -> list[Point]:
    """Return the points without those that are NaN."""
    points = [(keypoint.x, keypoint.y) for keypoint in keypoints]
    return [point for point in points if not math.isnan(sum(point))]


def _line_px(size: tuple[int, int]) -> int:
    return max(2, round(math.sqrt(size[0] * size[1]) / 320))


def _region(
    size: tuple[int, int], points: Sequence[Point], margin: int
) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the part of an image around points."""
    xs, ys = zip(*points, strict=True)
    left, top = (max(0, math.floor(min(values)) - margin) for values in (xs, ys))
    right, bottom = (
        min(side, math.ceil(max(values)) + margin)
        for side, values in zip(size, (xs, ys), strict=True)
    )
    return left, top, right, bottom


class _Pen:
    """Draws anti-aliased on a part of an image: the layer has several pixels for one."""

    def __init__(self, size: tuple[int, int], origin: tuple[int, int]) -> None:
        scaled = (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING)
        self.layer = Image.new("RGBA", scaled)
        self._draw = ImageDraw.Draw(self.layer)
        self._origin = origin

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        # Integer coordinates are pixel centers.
        left, top = self._origin
        return [
            ((x - left + 0.5) * _SUPERSAMPLING - 0.5, (y - top + 0.5) * _SUPERSAMPLING - 0.5)
            for x, y in points
        ]

    def line(self, points: Sequence[Point], colour: str, width_px: float) -> None:
        width = max(1, round(width_px * _SUPERSAMPLING))
        scaled = self._scaled(points)
        self._draw.line(scaled, fill=colour, width=width, joint="curve")
        for x, y in scaled:
            radius = width / 2 - 0.5
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def dashed(
        self, start: Point, end: Point, colour: str, width_px: float, dash_px: float
    ) -> None:
        length = math.dist(start, end)
        count = min(max(1, round(length / dash_px / 2)), 200)
        for index in range(count):
            dash = [_between(start, end, (2 * index + part) / (2 * count - 1)) for part in (0, 1)]
            self.line(dash, colour, width_px)

    def polygon(self, points: Sequence[Point], colour: str) -> None:
        self._draw.polygon(self._scaled(points), fill=colour)

    def dot(self, center: Point, radius_px: float, colour: str, outline_px: float) -> None:
        ((x, y),) = self._scaled([center])
        for grown_px, fill in ((outline_px, _OUTLINE), (0, colour)):
            radius = (radius_px + grown_px) * _SUPERSAMPLING
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


class _Canvas:
    """Draws with line widths and a font size in proportion to the image."""

    def __init__(self, image: Image.Image) -> None:
        side = math.sqrt(image.width * image.height)
        self._image = image
        self._draw = ImageDraw.Draw(image)
        self._line_px = _line_px(image.size)
        self._font = ImageFont.load_default(max(10, round(side / 45)))

    def box(self, bbox: Rectangle, colour: str) -> None:
        x1, y1, x2, y2 = map(round, _ordered(bbox))
        self._draw.rectangle(
            (x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_OUTLINE, width=self._line_px + 2
        )
        self._draw.rectangle((x1, y1, x2, y2), outline=colour, width=self._line_px)

    def box_3d(self, corners: Sequence[Point], colour: str) -> None:
        visible = [face for face in _FACES if _is_clockwise([corners[i] for i in face])]
        edges = {edge for face in _FACES for edge in _edges(face)}
        seen = {edge for face in visible for edge in _edges(face)}
        front = [corners[i] for i in _FRONT]
        center, tip = _arrow_of(corners)

        def paint(pen: _Pen) -> None:
            pen.polygon(front, colour + ("58" if _FRONT in visible else "28"))
            for start, end in sorted(edges - seen):
                dash_px = 3 * self._line_px
                pen.dashed(corners[start], corners[end], colour, self._line_px / 2, dash_px)
            for start, end in sorted(seen):
                pen.line([corners[start], corners[end]], _OUTLINE, self._line_px + 2)
            for start, end in sorted(seen):
                pen.line([corners[start], corners[end]], colour, self._line_px)
            self._arrow(pen, center, tip, colour)

        self._smooth(_box_points(corners), paint)

    def _arrow(self, pen: _Pen, start: Point, tip: Point, colour: str) -> None:
        length = math.dist(start, tip)
        if length < 2 * self._line_px:
            return
        head_px = min(5 * self._line_px, length / 2)
        base = _between(tip, start, head_px / length)
        across_x, across_y = (tip[1] - base[1]) / 2, (base[0] - tip[0]) / 2
        sides = [(base[0] + s * across_x, base[1] + s * across_y) for s in (1, -1)]
        pen.line([start, base], _OUTLINE, self._line_px + 2)
        pen.line([*sides, tip, sides[0]], _OUTLINE, 2)
        pen.line([start, base], colour, self._line_px)
        pen.polygon([*sides, tip], colour)

    def pose(
        self,
        keypoints: Sequence[Keypoint],
        skeleton: Sequence[tuple[int, int]],
        names: Sequence[str],
        colour: str,
    ) -> None:
        points = [(keypoint.x, keypoint.y) for keypoint in keypoints]
        colours = [_side_colour(name) for name in names] or [colour] * len(points)
        present = [index for index, point in enumerate(points) if not math.isnan(sum(point))]
        limbs = [limb for limb in skeleton if set(limb) <= set(present)]

        def paint(pen: _Pen) -> None:
            for limb in limbs:
                pen.line([points[i] for i in limb], _OUTLINE, self._line_px + 1.5)
            for start, end in limbs:
                # Between a side and the middle, or the other side: the middle's.
                limb_colour = colours[start] if colours[start] == colours[end] else MIDDLE
                pen.line([points[start], points[end]], limb_colour, self._line_px)
            for index in present:
                pen.dot(points[index], self._line_px, colours[index], 1)

        if present:
            self._smooth([points[index] for index in present], paint)

    def mask(self, octagon: Sequence[Point], extreme_points: Sequence[Point], colour: str) -> None:
        def paint(pen: _Pen) -> None:
            pen.polygon(octagon, colour + "58")
            outline = [*octagon, octagon[0]]
            pen.line(outline, _OUTLINE, self._line_px / 2 + 1.5)
            pen.line(outline, colour, self._line_px / 2)
            for point in extreme_points:
                pen.dot(point, self._line_px, colour, 1)

        self._smooth([*octagon, *extreme_points], paint)

    def _smooth(self, points: Sequence[Point], paint: _Paint) -> None:
        """Let ``paint`` draw around ``points``, clipped to the image."""
        left, top, right, bottom = _region(self._image.size, points, 4 * self._line_px)
        if left >= right or top >= bottom:
            return
        pen = _Pen((right - left, bottom - top), (left, top))
        paint(pen)
        layer = pen.layer.reduce(_SUPERSAMPLING)
        self._image.paste(layer, (left, top), layer)

    def labels(self, detections: Sequence[Detection]) -> None:
        placed: list[Rectangle] = []
        for detection in detections:
            text = f"{detection.class_name} {detection.score:.2f}"
            place = self._free_place(text, _ordered(detection.bbox), placed)
            if place is not None:
                placed.append(place)
                self._label(text, place, _colour(detection))

    def _free_place(
        self, text: str, bbox: Rectangle, placed: Sequence[Rectangle]
    ) -> Rectangle | None:
        left, top, right, bottom = self._font.getbbox(text)
        width, height = right + left + 4, bottom + top
        # Positions outside of the image would be moved to its edge, and can be any number.
        x1, y1, x2, y2 = bbox
        visible = x1, max(y1, -height), x2, min(y2, self._image.height + height)
        for x, y in _label_positions(visible, width, height):
            clamped_x = max(0, min(x, self._image.width - width))
            clamped_y = max(0, min(y, self._image.height - height))
            place = clamped_x, clamped_y, clamped_x + width, clamped_y + height
            if not any(_overlap(place, other) for other in placed):
                return place
        return None

    def _label(self, text: str, place: Rectangle, colour: str) -> None:
        x1, y1, x2, y2 = map(round, place)
        self._draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
        self._draw.text((x1 + 2, y1), text, fill=_text_colour(colour), font=self._font)


class _BirdsEye:
    """The ground from above; see :func:`draw_birds_eye`."""

    def __init__(self, height_px: int, range_m: float) -> None:
        self._size = max(1, round(height_px * 2 / 3)), height_px
        self._scale = height_px / range_m
        self._line_px = max(1.0, height_px / 240)
        self._pen = _Pen(self._size, (0, 0))
        self._texts: list[tuple[Point, str]] = []
        for metres in range(10, math.ceil(range_m), 10):
            left, right = self._point(-range_m, metres), self._point(range_m, metres)
            self._pen.line([left, right], "#D0D0D0", self._line_px / 2)
            self._texts.append(((2, left[1]), f"{metres} m"))
        self._pen.polygon([self._point(x, z) for x, z in ((0, 2), (-1, 0), (1, 0))], _OUTLINE)

    def _point(self, x_m: float, z_m: float) -> Point:
        return self._size[0] / 2 + x_m * self._scale, self._size[1] - 1 - z_m * self._scale

    def box(self, box: Box3D, colour: str) -> None:
        """Draw one box; the length points along x at the rotation 0."""
        _, width, length = box.dimensions_hwl
        x, _, z = box.location_xyz
        cosine, sine = math.cos(box.rotation_y), math.sin(box.rotation_y)
        corners = [
            self._point(x + cosine * along + sine * across, z - sine * along + cosine * across)
            for along, across in (
                (length / 2, width / 2),
                (length / 2, -width / 2),
                (-length / 2, -width / 2),
                (-length / 2, width / 2),
            )
        ]
        self._pen.polygon(corners, colour + "60")
        self._pen.line([*corners, corners[0]], colour, self._line_px)
        self._pen.line(corners[:2], colour, 3 * self._line_px)

    def image(self) -> Image.Image:
        """Return the finished image."""
        layer = self._pen.layer.reduce(_SUPERSAMPLING)
        image = Image.new("RGB", self._size, "#FFFFFF")
        image.paste(layer, (0, 0), layer)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(9, self._size[1] / 30))
        for position, text in self._texts:
            draw.text(position, text, fill="#707070", font=font, anchor="ld")
        return image


def _label_positions(bbox: Rectangle, width: float, height: float) -> Iterator[Point]:
    """Yield upper left corners for the label of a box, best first."""
    x1, y1, x2, y2 = bbox
    for y in (y1 - height, y1, y2, y2 - height):
        yield x1, y
        yield x2 - width, y
    yield x2, y1
    yield x1 - width, y1
    for step in range(1, math.ceil((y2 - y1) / height)):
        yield x1, y1 + step * height


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text_colour(background: str) -> str:
    """Return black or white, whichever has the higher contrast (WCAG 2)."""
    channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def _side_colour(name: str) -> str:
    if "left" in name:
        return LEFT
    return RIGHT if "right" in name else MIDDLE


def _is_clockwise(points: Sequence[Point]) -> bool:
    """Return whether the corners are in clockwise order in the image (y points down)."""
    following = [*points[1:], points[0]]
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, following, strict=True)) > 0


def _edges(face: Sequence[int]) -> Iterator[tuple[int, int]]:
    for start, end in zip(face, [*face[1:], face[0]], strict=True):
        yield min(start, end), max(start, end)


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _between(start: Point, end: Point, fraction: float) -> Point:
    return (
        start[0] + fraction * (end[0] - start[0]),
        start[1] + fraction * (end[1] - start[1]),
    )


def _ordered(bbox: Rectangle) -> Rectangle:
    x1, y1, x2, y2 = bbox
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
