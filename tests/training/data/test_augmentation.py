from dataclasses import replace

import numpy as np
import pytest

from training.data.augmentation import (
    AugmentationRanges,
    Canvas,
    clip_to_canvas,
    evaluation_affine,
    fixed_view,
    jitter_colours,
    random_affine,
    random_view,
    warp_boxes,
    warp_pixels,
)
from training.data.sample import AnnotatedImage, Boxes3D

NO_COLOUR = AugmentationRanges((0.8, 1.3), 0.0, 0.0, 0.0, 0.0, 0.0)
TURNED = replace(NO_COLOUR, scale=(0.8, 1.1), quarter_turns=True)
NARROW = replace(NO_COLOUR, scale=(0.9, 1.1), quarter_turns=True)


def marker(box: tuple[int, int, int, int]) -> AnnotatedImage:
    pixels = np.zeros((480, 640, 3), np.uint8)
    x, y, w, h = box
    pixels[y : y + h, x : x + w] = 255
    return AnnotatedImage(pixels, np.array([box], np.float32), np.zeros(1, np.int64))


@pytest.mark.parametrize("seed", range(24))
def test_boxes_move_with_pixels(seed: int) -> None:
    """For all scales, flips and quarter turns the warped marker is inside the warped box."""
    rng = np.random.default_rng(seed)
    image = marker((300, 210, 61, 37))
    affine = random_affine(rng, 640, 480, Canvas(640, 640, 0.9), TURNED)
    warped = warp_pixels(image.pixels, affine, 640, 640)[..., 0] / 255.0
    x, y, w, h = warp_boxes(image.boxes_xywh, affine)[0]
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    # The fixed view shifts edges by half a source pixel to the right and down.
    convention = 0.5 * scale
    rows, columns = np.indices(warped.shape)
    centroid = [(warped * columns).sum() / warped.sum(), (warped * rows).sum() / warped.sum()]
    np.testing.assert_allclose(
        [x + w / 2 - convention, y + h / 2 - convention], centroid, atol=0.15
    )
    np.testing.assert_allclose(w * h, warped.sum(), rtol=0.01)


def test_the_random_view_agrees_with_the_fixed_view() -> None:
    """With the same scale and no rotation both views differ by the crop position only."""
    box = np.array([[100.0, 50.0, 40.0, 30.0]], np.float32)
    fixed = evaluation_affine(640, 480, 384, 288)
    x, y, w, h = warp_boxes(box, fixed)[0]
    np.testing.assert_allclose([x, y, w, h], [60.0, 30.0, 24.0, 18.0], atol=1e-4)


def test_fixed_view_centers_and_scales_by_the_longer_side() -> None:
    affine = evaluation_affine(640, 480, 384, 288)
    np.testing.assert_allclose(affine, [[0.6, 0, 0], [0, 0.6, 0]], atol=1e-12)
    affine = evaluation_affine(300, 600, 384, 288)
    np.testing.assert_allclose(affine @ [150, 300, 1], [192, 144])
    assert affine[0, 0] == 384 / 600


def test_crop_stays_inside_a_larger_image() -> None:
    white = np.full((480, 640, 3), 255, np.uint8)
    for seed in range(20):
        affine = random_affine(
            np.random.default_rng(seed), 640, 480, Canvas(288, 288, 0.75), NARROW
        )
        warped = warp_pixels(white, affine, 288, 288)
        assert warped.min() == 255


def test_clipping_drops_objects_that_are_mostly_outside() -> None:
    image = AnnotatedImage(
        np.zeros((100, 100, 3), np.uint8),
        np.array([[-10, 10, 20, 20], [95, 10, 40, 20], [10, 10, 5, 5]], np.float32),
        np.array([0, 1, 2], np.int64),
    )
    clipped = clip_to_canvas(image)
    assert clipped.class_ids.tolist() == [0, 2]
    np.testing.assert_array_equal(clipped.boxes_xywh, [[0, 10, 10, 20], [10, 10, 5, 5]])


def test_a_view_is_determined_by_its_generator() -> None:
    image = marker((200, 100, 80, 80))
    views = [
        random_view(np.random.default_rng(1), image, Canvas(288, 288, 0.6), NO_COLOUR)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(views[0].pixels, views[1].pixels)
    np.testing.assert_array_equal(views[0].boxes_xywh, views[1].boxes_xywh)


def test_zero_ranges_keep_colours() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(jitter_colours(rng, pixels, NO_COLOUR), pixels)


def test_hue_and_saturation_keep_gray_gray() -> None:
    gray = np.full((4, 4, 3), 120, np.uint8)
    ranges = AugmentationRanges((1.0, 1.0), 0.0, 0.0, 0.5, 30.0, 0.0)
    for seed in range(5):
        jittered = jitter_colours(np.random.default_rng(seed), gray, ranges)
        np.testing.assert_array_equal(jittered, gray)


def labelled() -> AnnotatedImage:
    """A box with three keypoints; a flip exchanges the second and third."""
    keypoints = np.array([[[310, 215, 2], [340, 240, 1], [0, 0, 0]]], np.float32)
    boxes_3d = Boxes3D(
        np.full(1, 9.0, np.float32), np.ones((1, 3), np.float32), np.full(1, 2.5, np.float32)
    )
    return replace(marker((300, 210, 61, 37)), keypoints=keypoints, boxes_3d=boxes_3d)


def test_a_flip_exchanges_left_and_right() -> None:
    canvas = Canvas(640, 480, 1.0, keypoint_pairs=[(1, 2)])
    ranges = replace(NO_COLOUR, fixed_probability=1.0)
    plain = fixed_view(labelled(), canvas)
    np.testing.assert_allclose(plain.boxes_xywh, [[300, 210, 61, 37]], atol=1e-4)
    np.testing.assert_allclose(plain.keypoints[0, :2], [[310, 215, 2], [340, 240, 1]], atol=1e-4)
    views = [
        random_view(np.random.default_rng(seed), labelled(), canvas, ranges) for seed in range(8)
    ]
    flipped = [view for view in views if view.boxes_xywh[0, 0] < 290]
    assert 0 < len(flipped) < len(views)
    for view in flipped:
        np.testing.assert_allclose(view.boxes_xywh, [[640 - 361, 210, 61, 37]], atol=1e-4)
        assert view.pixels[220, 640 - 330, 0] == 255
        assert view.keypoints[0, :, 2].tolist() == [2, 0, 1]
        np.testing.assert_allclose(view.keypoints[0, [0, 2], 0], [330, 300], atol=1e-4)
        np.testing.assert_allclose(view.boxes_3d.alphas_rad, np.pi - 2.5, rtol=1e-6)
        assert view.boxes_3d.is_measurable


@pytest.mark.parametrize("seed", range(6))
def test_keypoints_move_with_boxes(seed: int) -> None:
    """Keypoints at opposite corners of a box stay at its corners in all views."""
    image = replace(
        labelled(), keypoints=np.array([[[300, 210, 1], [361, 247, 1]]], np.float32), boxes_3d=None
    )
    view = random_view(np.random.default_rng(seed), image, Canvas(512, 512, 0.6), TURNED)
    if len(view.class_ids):
        low, high = view.keypoints[0, :, :2].min(axis=0), view.keypoints[0, :, :2].max(axis=0)
        np.testing.assert_allclose([*low, *(high - low)], view.boxes_xywh[0], atol=1e-3)


def test_scaled_views_are_not_measurable() -> None:
    ranges = replace(NO_COLOUR, scale=(1.2, 1.2))
    view = random_view(np.random.default_rng(0), labelled(), Canvas(640, 480, 1.0), ranges)
    assert not view.boxes_3d.is_measurable


def test_clipped_objects_are_dropped_with_their_keypoints_and_3d_boxes() -> None:
    image = labelled()
    two = replace(
        image,
        boxes_xywh=np.array([[300, 210, 61, 37], [600, 10, 30, 30]], np.float32),
        class_ids=np.array([0, 1]),
        keypoints=np.repeat(image.keypoints, 2, axis=0),
        boxes_3d=Boxes3D(
            np.array([9, 5], np.float32), np.ones((2, 3), np.float32), np.zeros(2, np.float32)
        ),
        ignored_xywh=np.array([[620, 0, 20, 20], [310, 220, 20, 20]], np.float32),
        ignored_class_ids=np.array([-1, 0]),
    )
    view = fixed_view(two, Canvas(400, 300, 1.0))
    assert view.class_ids.tolist() == [0]
    assert view.keypoints.shape == (1, 3, 3)
    assert view.boxes_3d.depths_m.tolist() == [9]
    assert view.ignored_class_ids.tolist() == [0]


def test_crops_with_center_border_extend_beyond_the_image() -> None:
    ranges = replace(NO_COLOUR, scale=(1.0, 1.0), center_border_px=128, flip=False)
    white = np.full((480, 640, 3), 255, np.uint8)
    black_left = []
    for seed in range(20):
        affine = random_affine(np.random.default_rng(seed), 640, 480, Canvas(512, 512, 1.0), ranges)
        center = np.linalg.inv(affine[:, :2]) @ ((255.5, 255.5) - affine[:, 2]) + 0.5
        assert 128 <= center[0] <= 640 - 128
        assert 128 <= center[1] <= 480 - 128
        black_left.append(warp_pixels(white, affine, 512, 512)[256, 0, 0] == 0)
    assert any(black_left)
