import numpy as np
import pytest

from training.annotated_image import AnnotatedImage
from training.augmentation import (
    AugmentationRanges,
    clip_to_canvas,
    evaluation_affine,
    jitter_colours,
    random_affine,
    random_view,
    warp_boxes,
    warp_pixels,
)

NO_COLOUR = AugmentationRanges((0.8, 1.3), 0.0, 0.0, 0.0, 0.0, 0.0)


def marker(box: tuple[int, int, int, int]) -> AnnotatedImage:
    pixels = np.zeros((480, 640, 3), np.uint8)
    x, y, w, h = box
    pixels[y : y + h, x : x + w] = 255
    return AnnotatedImage(pixels, np.array([box], np.float32), np.zeros(1, np.int64))


@pytest.mark.parametrize("seed", range(24))
def test_boxes_move_with_pixels(seed: int) -> None:
    """All scales, mirrors and quarter turns: the warped marker is where the warped box says."""
    rng = np.random.default_rng(seed)
    image = marker((300, 210, 61, 37))
    affine = random_affine(rng, 640, 480, 640, 0.9, (0.8, 1.1))
    warped = warp_pixels(image.pixels, affine, 640, 640)[..., 0] / 255.0
    x, y, w, h = warp_boxes(image.boxes_xywh, affine)[0]
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    # Edges are put where the fixed view puts them: half a source pixel to the right and below.
    convention = 0.5 * scale
    rows, columns = np.indices(warped.shape)
    centroid = [(warped * columns).sum() / warped.sum(), (warped * rows).sum() / warped.sum()]
    np.testing.assert_allclose(
        [x + w / 2 - convention, y + h / 2 - convention], centroid, atol=0.15
    )
    np.testing.assert_allclose(w * h, warped.sum(), rtol=0.01)


def test_the_random_view_agrees_with_the_fixed_view() -> None:
    """Same scale, no turn: both views move boxes alike, up to the shift of the window."""
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


def test_window_stays_inside_a_larger_picture() -> None:
    white = np.full((480, 640, 3), 255, np.uint8)
    for seed in range(20):
        affine = random_affine(np.random.default_rng(seed), 640, 480, 288, 0.75, (0.9, 1.1))
        warped = warp_pixels(white, affine, 288, 288)
        assert warped.min() == 255


def test_clipping_drops_what_is_mostly_outside() -> None:
    image = AnnotatedImage(
        np.zeros((100, 100, 3), np.uint8),
        np.array([[-10, 10, 20, 20], [95, 10, 40, 20], [10, 10, 5, 5]], np.float32),
        np.array([0, 1, 2], np.int64),
    )
    clipped = clip_to_canvas(image)
    assert clipped.class_ids.tolist() == [0, 2]
    np.testing.assert_array_equal(clipped.boxes_xywh, [[0, 10, 10, 20], [10, 10, 5, 5]])


def test_a_view_is_decided_by_its_generator() -> None:
    image = marker((200, 100, 80, 80))
    views = [random_view(np.random.default_rng(1), image, 288, 0.6, NO_COLOUR) for _ in range(2)]
    np.testing.assert_array_equal(views[0].pixels, views[1].pixels)
    np.testing.assert_array_equal(views[0].boxes_xywh, views[1].boxes_xywh)


def test_zero_ranges_leave_colours_alone() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(jitter_colours(rng, pixels, NO_COLOUR), pixels)


def test_hue_and_saturation_keep_gray_gray() -> None:
    gray = np.full((4, 4, 3), 120, np.uint8)
    ranges = AugmentationRanges((1.0, 1.0), 0.0, 0.0, 0.5, 30.0, 0.0)
    for seed in range(5):
        jittered = jitter_colours(np.random.default_rng(seed), gray, ranges)
        np.testing.assert_array_equal(jittered, gray)
