"""Drawings, checked by pixels and by where labels are placed."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from client import Box3D, Detection, Keypoint
from client.drawing import LEFT, MIDDLE, PALETTE, RIGHT, draw_birds_eye, draw_detections

BOX = (20.0, 60.0, 180.0, 190.0)
BLUE = (0x00, 0x72, 0xB2)
BLACK = (0, 0, 0)


def black(width: int = 200, height: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height))


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def colour(name: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(name[1:]))


def person(*keypoints: tuple[float, float]) -> Detection:
    return Detection(1, "person", 0.9, BOX, tuple(Keypoint(x, y, 0.5) for x, y in keypoints))


def test_poses_are_drawn_in_the_colour_of_the_class_if_the_keypoints_have_no_names() -> None:
    detection = person((100, 80), (100, 180))
    without_skeleton = pixels(draw_detections(black(), [detection]))
    with_skeleton = pixels(draw_detections(black(), [detection], skeleton=[(0, 1), (0, 16)]))
    assert tuple(with_skeleton[130, 100]) == BLUE
    assert tuple(without_skeleton[130, 100]) == BLACK
    assert tuple(without_skeleton[80, 100]) == tuple(without_skeleton[180, 100]) == BLUE
    assert tuple(without_skeleton[125, 20]) == BLUE


def test_keypoints_without_coordinates_are_left_out() -> None:
    absent = (math.nan, math.nan)
    skeleton = [(0, 1), (1, 2)]
    whole = draw_detections(black(), [person((60, 80), (60, 160))], skeleton=[(0, 1)])
    part = draw_detections(black(), [person((60, 80), (60, 160), absent)], skeleton=skeleton)
    assert np.array_equal(pixels(part), pixels(whole))
    none = draw_detections(black(), [person(absent)], skeleton=skeleton)
    assert np.array_equal(pixels(none), pixels(draw_detections(black(), [person()])))


def test_keypoints_and_limbs_have_the_colour_of_their_side() -> None:
    detection = person((60, 80), (60, 160), (140, 80), (140, 160))
    drawn = pixels(
        draw_detections(
            black(),
            [detection],
            skeleton=[(0, 1), (2, 3), (0, 2)],
            keypoint_names=["left_hip", "left_knee", "right_hip", "right_knee"],
        )
    )
    assert tuple(drawn[120, 60]) == tuple(drawn[160, 60]) == colour(LEFT)
    assert tuple(drawn[120, 140]) == tuple(drawn[160, 140]) == colour(RIGHT)
    assert tuple(drawn[80, 100]) == colour(MIDDLE)


def car(rotation_y: float, distance_m: float = 8.0) -> Detection:
    """Return a car left of the camera, with corners as the service projects them."""
    height, width, length = 1.5, 1.8, 4.0
    x, y, z = -2.0, 1.2, distance_m
    cosine, sine = math.cos(rotation_y), math.sin(rotation_y)
    corners = []
    for up in (0, height):
        for along, across in ((1, 1), (1, -1), (-1, -1), (-1, 1)):
            forward, side = along * length / 2, across * width / 2
            point_x = x + cosine * forward + sine * side
            point_z = z - sine * forward + cosine * side
            corners.append((200 + 200 * point_x / point_z, 100 + 200 * (y - up) / point_z))
    xs, ys = zip(*corners, strict=True)
    bbox = (min(xs), min(ys), max(xs), max(ys))
    box = Box3D((height, width, length), (x, y, z), rotation_y, 0.0, z, tuple(corners))
    return Detection(0, "car", 0.9, bbox, box3d=box)


def fill_of_face(detection: Detection, face: tuple[int, ...], drawn: NDArray[np.uint8]) -> float:
    """Return the median brightness in the upper half of a face, where there is no arrow."""
    assert detection.box3d is not None
    corners = [detection.box3d.corners_px[index] for index in face]
    mask = Image.new("1", (drawn.shape[1], drawn.shape[0]))
    upper = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in zip(corners, corners[::-1])]  # noqa: B905
    ImageDraw.Draw(mask).polygon([upper[0], upper[1], corners[2], corners[3]], fill=1)
    return float(np.median(drawn[np.asarray(mask)].sum(axis=1)))


FRONT = (0, 1, 5, 4)


def test_the_front_of_a_3d_box_is_filled_stronger_where_it_is_visible() -> None:
    fills = []
    for rotation_y in (math.pi / 2, -math.pi / 2):
        detection = car(rotation_y)
        drawn = pixels(draw_detections(black(400, 200), [detection]))
        fills.append(fill_of_face(detection, FRONT, drawn))
    visible, hidden = fills
    assert visible > 1.5 * hidden > 0


def test_hidden_edges_of_a_3d_box_are_dashed() -> None:
    detection = car(math.pi / 2)
    assert detection.box3d is not None
    corners = detection.box3d.corners_px
    drawn = pixels(draw_detections(black(400, 200), [detection]))

    def painted(start: int, end: int) -> float:
        """Return the fraction of the points along an edge in the colour of the box."""
        points = np.linspace(corners[start], corners[end], 100)[20:80].round().astype(int)
        values = drawn[points[:, 1], points[:, 0]].astype(int)
        return float((np.abs(values - colour(PALETTE[0])).max(axis=1) < 60).mean())

    # The front is near, and its upper edge is not crossed by the arrow.
    assert painted(4, 5) > 0.9
    # The vertical edge at the far left is behind the box.
    left_far = 2 if corners[2][0] < corners[3][0] else 3
    assert painted(left_far, left_far + 4) < 0.8


def test_a_3d_box_replaces_the_2d_box_unless_it_cannot_be_projected() -> None:
    box = Box3D((1, 1, 1), (0, 0, 0.2), 0, 0, 0.2)
    drawn = pixels(draw_detections(black(), [Detection(1, "car", 0.9, BOX, box3d=box)]))
    assert tuple(drawn[125, 20]) == BLUE
    elsewhere = replace(car(0.3), bbox=(300, 20, 390, 180))
    drawn = pixels(draw_detections(black(400, 200), [elsewhere]))
    assert tuple(drawn[150, 300]) == BLACK


def test_corners_far_outside_of_the_image_are_clipped() -> None:
    corners = tuple((1e6 * x, 1e6 * y) for x, y in ((-1, 1), (1, 1), (0.5, 0.5), (-0.5, 0.5)) * 2)
    box = Box3D((1, 1, 1), (0, 0, 1), 0, 0, 1, corners)
    image = draw_detections(black(), [Detection(0, "car", 0.9, BOX, box3d=box)])
    assert image.size == (200, 200)
    away = Box3D((1, 1, 1), (0, 0, 1), 0, 0, 1, tuple((x + 500.0, 9.0) for x in range(8)))
    draw_detections(black(), [Detection(0, "car", 0.9, BOX, box3d=away)])


class RecordedLabels:
    """The rectangles and texts of the labels that are drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[tuple[str, tuple[int, ...]]] = []
        draw_text = ImageDraw.ImageDraw.text

        def text(draw: ImageDraw.ImageDraw, xy: Any, text: str, **options: Any) -> None:
            box = draw.textbbox(xy, text, font=options["font"])
            self.places.append((text, tuple(round(value) for value in box)))
            draw_text(draw, xy, text, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)


def test_labels_do_not_cover_each_other_and_are_inside_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Boxes on top of each other, at the edges and outside."""
    random = np.random.default_rng(0)
    detections = []
    for number in range(60):
        x, y = random.uniform(-20, 620, 2)
        side = random.uniform(5, 200)
        box = (float(x), float(y), float(x + side), float(y + side))
        detections.append(Detection(number, f"class {number}", 1 - number / 100, box))
    recorded = RecordedLabels(monkeypatch)
    draw_detections(black(640, 480), detections)
    assert len(recorded.places) >= 40
    assert recorded.places[0][0] == "class 0 1.00", "the best score has a label"
    for _, (x1, y1, x2, y2) in recorded.places:
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 480
    for (_, one), (_, other) in combinations(recorded.places, 2):
        beside = one[2] <= other[0] or other[2] <= one[0]
        assert beside or one[3] <= other[1] or other[3] <= one[1], (one, other)


def test_lines_and_text_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    heights, widths = [], []
    for side in (400, 4000):
        recorded = RecordedLabels(monkeypatch)
        box = (side * 0.2, side * 0.5, side * 0.8, side * 0.9)
        drawn = pixels(draw_detections(black(side, side), [Detection(1, "a", 1, box)]))
        monkeypatch.undo()
        (_, (_, top, _, bottom)) = recorded.places[0]
        heights.append(bottom - top)
        row = drawn[round(side * 0.7), : side // 2]
        widths.append(int((row == BLUE).all(axis=1).sum()))
    assert heights[1] > 5 * heights[0]
    assert widths[1] > 5 * widths[0]


def test_text_has_a_contrast_of_at_least_4_5_on_every_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fills: list[tuple[str, str]] = []
    draw_text = ImageDraw.ImageDraw.text

    def text(draw: ImageDraw.ImageDraw, *arguments: Any, **options: Any) -> None:
        fills.append(str(options["fill"]))
        draw_text(draw, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    spread = [
        Detection(i, "a", 1, (40.0 * i, 100, 40.0 * i + 30, 150)) for i in range(len(PALETTE))
    ]
    draw_detections(black(400, 200), spread)
    assert len(fills) == len(PALETTE)
    for fill, background in zip(fills, PALETTE, strict=True):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (value / 255 for value in colour(background))
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        text_luminance = {"white": 1.0, "black": 0.0}[fill]
        lighter, darker = max(luminance, text_luminance), min(luminance, text_luminance)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_birds_eye_view_shows_position_heading_and_class() -> None:
    """A car 30 m ahead and 3 m to the right that points to the right."""
    box = Box3D((1.5, 2, 6), (3, 1.5, 30), 0.0, 0, 30)
    image = draw_birds_eye([Detection(1, "car", 0.9, BOX, box3d=box)], 600, range_m=60)
    assert image.size == (400, 600)
    drawn = pixels(image).astype(int)
    scale = 10
    center = 200 + 3 * scale, 599 - 30 * scale
    is_blue = np.abs(drawn - BLUE).max(axis=2) < 10
    rows, columns = np.nonzero(is_blue)
    assert rows.min() == pytest.approx(center[1] - 1 * scale, abs=5)
    assert rows.max() == pytest.approx(center[1] + 1 * scale, abs=5)
    assert columns.min() == pytest.approx(center[0] - 3 * scale, abs=5)
    assert columns.max() == pytest.approx(center[0] + 3 * scale, abs=5)
    middle = is_blue[center[1] - 5 : center[1] + 5]
    front, back = middle[:, center[0] :].sum(), middle[:, : center[0]].sum()
    assert front > 1.5 * back, "the front edge is thicker"
    plain = pixels(draw_birds_eye([person()], 600))
    assert not (np.abs(plain.astype(int) - BLUE).max(axis=2) < 10).any()


def test_octagons_are_filled_and_extreme_points_are_dots() -> None:
    octagon = (
        (80, 60),
        (120, 60),
        (180, 110),
        (180, 140),
        (120, 190),
        (80, 190),
        (20, 140),
        (20, 110),
    )
    masked = replace(person(), octagon=octagon)
    filled = pixels(draw_detections(black(), [masked]))
    share = 0x58 / 255
    assert filled[125, 100] == pytest.approx([round(share * value) for value in BLUE], abs=1)
    assert tuple(filled[80, 35]) == BLACK, "inside of the box, outside of the octagon"
    points = ((100, 60), (20, 125), (100, 190), (180, 125))
    drawn = pixels(draw_detections(black(), [replace(masked, extreme_points=points)]))
    rows, columns = np.nonzero((drawn != filled).any(axis=2))
    distances = np.hypot(
        columns[:, None] - np.array(points)[:, 0], rows[:, None] - np.array(points)[:, 1]
    )
    assert distances.min(axis=1).max() < 6
    assert set(distances.argmin(axis=1)) == {0, 1, 2, 3}
