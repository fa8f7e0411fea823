"""JPEGs decoded at reduced size: the same geometry as at full size."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.images import encode, plain
from support.serving import ColourEngine, FixedEngine, RunningServer, make_manifest

from model_package import FreeSize, InputSpec
from service.errors import BadImageError
from service.imaging.geometry import ImageTransform
from service.imaging.image_decoding import OpenedImage, open_image
from service.imaging.resize import InputPlanner
from service.imaging.types import InputOptions
from service.imaging.warp import MIN_PX_PER_INPUT_PX, choose_reduction, warp_to_input

LIMIT = 50_000_000
SMALL = InputSpec(width_px=96, height_px=64)
SQUARE = InputSpec(width_px=192, height_px=192)
FREE = SMALL.model_copy(
    update={"free_size": FreeSize(multiple_px=32, extra_px=1, max_side_px=2048)}
)


def plan_inputs(
    image: OpenedImage, options: InputOptions, spec: InputSpec = SMALL
) -> list[ImageTransform]:
    planner = InputPlanner(make_manifest(input_spec=spec), LIMIT)
    return list(planner.plan_inputs(image.width_px, image.height_px, options))


def blobs(width: int, height: int) -> NDArray[np.uint8]:
    """Draw a Gaussian blob per channel; uniform pixels would hide a shift."""
    y, x = np.mgrid[:height, :width]
    centers = [(0.2, 0.3), (0.7, 0.4), (0.4, 0.7)]
    channels = [
        np.exp(-(((x / width - cx) * 9) ** 2) - ((y / height - cy) * 9) ** 2) for cx, cy in centers
    ]
    return (220 * np.dstack(channels)).astype(np.uint8)


def centroids(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the center of mass (x, y) of each channel, (3, 2)."""
    mass = np.maximum(pixels.astype(np.float64) - 12, 0)  # without JPEG artifacts in the black
    y, x = np.indices((*mass.shape[:2], 1))[:2]
    total = mass.sum((0, 1))
    return np.column_stack([(x * mass).sum((0, 1)), (y * mass).sum((0, 1))]) / total[:, None]


def jpeg(
    pixels: NDArray[np.uint8], orientation: int = 1, mode: str = "RGB", **options: object
) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels).convert(mode)
    return encode(image, "JPEG", **{"quality": 95, "exif": exif.tobytes()} | options)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_pixels_have_the_geometry_of_full_size(orientation: int, reduction: int) -> None:
    """Sizes are not multiples of the reduction, so libjpeg rounds up."""
    body = jpeg(blobs(8 * 97 + 1, 8 * 71 + 3), orientation)
    options = InputOptions(scales=(1.0, 0.5))
    full, reduced = open_image(body, LIMIT), open_image(body, LIMIT)
    full_image, reduced_image = full.decode(), reduced.decode(reduction)
    assert reduced_image.pixels.shape[0] == -(-full.height_px // reduction)
    assert reduced_image.pixels.shape[1] == -(-full.width_px // reduction)
    for transform in plan_inputs(full, options, SQUARE):
        full_centroids = centroids(warp_to_input(full_image, transform))
        errors = full_centroids - centroids(warp_to_input(reduced_image, transform))
        # Corners confused with centers, or blocks counted from the wrong edge, give 0.06 or more.
        assert np.abs(errors).max() < 0.03


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"keep_rgb": True},
        {"mode": "L"},
        {"mode": "CMYK"},
    ],
    ids=str,
)
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_pixels_equal_pillow(options: dict[str, object], reduction: int) -> None:
    """Pillow's libjpeg is that of ``cv2.imread``, which the reference implementation uses."""
    noise = np.random.default_rng(3).integers(0, 256, (17, 23, 3), np.uint8)
    large = np.asarray(Image.fromarray(noise).resize((333, 217)))
    body = jpeg(large, **options)  # type: ignore[arg-type]
    image = Image.open(io.BytesIO(body))
    image.draft(None, (333 // reduction, 217 // reduction))
    assert np.array_equal(
        open_image(body, LIMIT).decode(reduction).pixels, np.asarray(image.convert("RGB"))
    )


def test_other_formats_are_not_reduced() -> None:
    decoded = open_image(encode(plain(1, 2, 3, (640, 640))), LIMIT).decode(8)
    assert decoded.reduction is None
    assert decoded.pixels.shape == (640, 640, 3)


@pytest.mark.parametrize(
    ("width", "options", "spec", "expected"),
    [
        (120 * 2 - 2, InputOptions(), SMALL, 1),
        (120 * 2, InputOptions(), SMALL, 2),
        (120 * 4, InputOptions(), SMALL, 4),
        (120 * 100, InputOptions(), SMALL, 8),
        (120 * 4, InputOptions(scales=(0.5, 2.0)), SMALL, 2),
        (120 * 4, InputOptions(scales=(0.5,), add_flipped_input=True), SMALL, 8),
        (120 * 4, InputOptions(keep_resolution=True), FREE, 1),
    ],
)
def test_the_input_with_the_highest_resolution_determines_the_reduction(
    width: int, options: InputOptions, spec: InputSpec, expected: int
) -> None:
    assert 120 / SMALL.width_px == MIN_PX_PER_INPUT_PX, "the widths above assume it"
    image = open_image(jpeg(plain(0, 0, 0, (32, width))), LIMIT)
    assert choose_reduction(plan_inputs(image, options, spec)) == expected


def test_opening_a_jpeg_reads_its_header_only() -> None:
    """Half a JPEG has a complete header; decoding raises the error."""
    body = jpeg(blobs(640, 480))
    image = open_image(body[: len(body) // 2], LIMIT)
    assert (image.width_px, image.height_px) == (640, 480)
    with pytest.raises(BadImageError, match="whole file"):
        image.decode(2)


@pytest.mark.parametrize("scaled_decoding", [True, False])
def test_scaled_decoding_is_a_setting_and_boxes_are_in_full_size_pixels(
    scaled_decoding: bool, start_server: Callable[..., RunningServer]
) -> None:
    """Stripes of one pixel: at full size single stripes are sampled, reduced they are averaged."""
    stripes = np.zeros((1021, 1281, 3), np.uint8)
    stripes[:, ::2] = 255
    engine = FixedEngine(
        {
            name: rows[0]
            for name, rows in ColourEngine().run(np.zeros((1, 64, 64, 3), np.uint8)).items()
        }
    )
    running = start_server(engine, scaled_decoding=scaled_decoding)
    response = running.client.post(
        "/detect", content=jpeg(stripes, quality=100, subsampling=0)
    ).json()
    assert (response["image"]["width"], response["image"]["height"]) == (1281, 1021)
    spread = engine.calls[-1][0][0, 20:40, 8:56].std()
    assert spread < 5 if scaled_decoding else spread > 20
    (x1, _, x2, _) = response["detections"][0]["bbox"]
    assert x2 - x1 == pytest.approx(2 * 4 * 1281 / 64, abs=0.1), "two cells in full-size pixels"
