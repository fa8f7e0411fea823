"""Transforms and pixels of network inputs, against the reference implementation.

Golden files are outputs of the reference implementation; *upstream* stands for it below.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.serving import make_manifest

from model_package import FreeSize, InputSpec, ResizeMode
from service.errors import ImageSizeError
from service.imaging.geometry import AffineTransform, ImageTransform
from service.imaging.image_decoding import DecodedImage
from service.imaging.resize import InputPlanner
from service.imaging.types import InputOptions
from service.imaging.warp import warp_to_input

LIMIT = 50_000_000
FREE_SIZE_32 = FreeSize(multiple_px=32, extra_px=1, max_side_px=2048)
FREE_SIZE_CORNERS = FreeSize(multiple_px=128, extra_px=0, max_side_px=2047)
KEEP_RESOLUTION = InputOptions(keep_resolution=True)


def planner(spec: InputSpec) -> InputPlanner:
    return InputPlanner(make_manifest(input_spec=spec), LIMIT)


def letterbox(width_px: int, height_px: int, free_size: FreeSize | None = None) -> InputPlanner:
    return planner(InputSpec(width_px=width_px, height_px=height_px, free_size=free_size))


def photo(shared: Path, name: str) -> NDArray[np.uint8]:
    with Image.open(shared / "upstream" / "photos" / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("image_size", "input_size"),
    [((640, 402), (512, 512)), ((400, 600), (512, 512)), ((451, 301), (640, 384))],
)
def test_to_image_inverts_the_transform(
    image_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    (transform,) = letterbox(*input_size).plan_inputs(*image_size, InputOptions())
    matrix = transform.to_input.matrix()
    points = np.array([[0.0, 0.0], [image_size[0] - 1, image_size[1] - 1], [12.25, 99.5]])
    in_input = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(transform.to_image(in_input), points, atol=1e-9)
    center = np.array([image_size[0] / 2, image_size[1] / 2])
    assert np.allclose(matrix @ [*center, 1], np.array(input_size) / 2), "the centers must coincide"


def test_affine_transforms_equal_upstream(project: Path) -> None:
    golden = np.load(project / "tests/upstream/goldens/unit_geometry_xz.npz")
    points = np.array([[0.0, 0.0], [17.25, 3.5], [127.0, 96.0]])
    compared = {"image to input": 0, "map to image": 0}
    for arguments, matrix in zip(golden["aff_args"], golden["aff_mats"], strict=True):
        cx, cy, scale_x, _, rotation, width, height, shift_x, shift_y, inverse = arguments
        if rotation or shift_x or shift_y:  # only used in training
            continue
        upstream = points @ matrix[:, :2].T + matrix[:, 2]
        if inverse:  # from cells of the output map; the input is four times as large
            to_input = AffineTransform.centered(
                4 * width / scale_x, (cx, cy), (2 * width, 2 * height)
            )
            assert np.allclose(to_input.apply_inverse(4 * points), upstream, atol=1e-6)
            compared["map to image"] += 1
        else:
            to_input = AffineTransform.centered(width / scale_x, (cx, cy), (width / 2, height / 2))
            local = points @ to_input.matrix()[:, :2].T + to_input.matrix()[:, 2]
            assert np.allclose(local, upstream, atol=1e-6)
            compared["image to input"] += 1
    assert min(compared.values()) >= 2, compared


KITTI = InputSpec(width_px=1280, height_px=384, resize="fit_width")
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
FIXED = InputSpec(width_px=512, height_px=512)
FREE_32 = FIXED.model_copy(update={"free_size": FREE_SIZE_32})
FREE_128 = FIXED.model_copy(
    update={"free_size": FreeSize(multiple_px=128, extra_px=1, max_side_px=2048)}
)
WIDE = InputSpec(width_px=640, height_px=384)
PHOTOS = ("land_640x402", "port_400x600", "odd_451x301")
INPUTS: dict[str, tuple[str, InputSpec, InputOptions]] = {
    **{f"fix512_{name}": (name, FIXED, InputOptions()) for name in PHOTOS},
    **{f"keepres31_{name}": (name, FREE_32, KEEP_RESOLUTION) for name in PHOTOS},
    **{f"keepres127_{name}": (name, FREE_128, KEEP_RESOLUTION) for name in PHOTOS},
    "h384w640_land_640x402": ("land_640x402", WIDE, InputOptions()),
    **{
        f"fix512_ms_odd_451x301_s{scale:g}": ("odd_451x301", FIXED, InputOptions(scales=(scale,)))
        for scale in SCALES
    },
    **{
        f"keepres31_ms_odd_451x301_s{scale:g}": (
            "odd_451x301",
            FREE_32,
            InputOptions(scales=(scale,), keep_resolution=True),
        )
        for scale in SCALES
    },
    "ddd_kitti_1242x375": ("kitti_1242x375", KITTI, InputOptions()),
    "ddd_keepres_kitti_1242x375": ("kitti_1242x375", KITTI, KEEP_RESOLUTION),
    "ddd_land_640x402": ("land_640x402", KITTI, InputOptions()),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_equal_upstream(name: str, shared: Path) -> None:
    """Bit for bit with OpenCV 5; OpenCV 4 rounds coordinates to 1/32 pixel, so pixels differ."""
    image, spec, options = INPUTS[name]
    pixels = photo(shared, image)
    (transform,) = planner(spec).plan_inputs(pixels.shape[1], pixels.shape[0], options)
    warped = warp_to_input(DecodedImage(pixels), transform)
    with np.load(shared / "upstream/goldens/preproc_cv5.npz") as cv5:
        assert np.array_equal(warped, cv5[name][..., ::-1])
    with np.load(shared / "upstream/goldens/preproc_cv4.npz") as cv4:
        to_cv4 = np.abs(warped.astype(int) - cv4[name][..., ::-1])
    assert to_cv4.max() <= 4
    assert (to_cv4 > 0).mean() < (0.25 if spec is KITTI else 0.1)


def test_all_upstream_inputs_are_compared(shared: Path) -> None:
    with np.load(shared / "upstream/goldens/preproc_cv5.npz") as golden:
        assert {name for name in golden.files if golden[name].ndim == 3} == set(INPUTS)


CORNER_CASES = {
    "cornernet_hourglass104_default_land": ("land_640x402", (1.0,)),
    "cornernet_hourglass104_multi_scale_cfg_odd": ("odd_451x301", (0.5, 1.0)),
    "triplet_centernet52_default_odd": ("odd_451x301", (1.0,)),
}


@pytest.mark.parametrize("name", CORNER_CASES)
def test_inputs_of_corner_models_equal_upstream(name: str, shared: Path) -> None:
    image, scales = CORNER_CASES[name]
    pixels = photo(shared, image)
    spec = InputSpec(
        width_px=511, height_px=511, resize="keep_resolution", free_size=FREE_SIZE_CORNERS
    )
    options = InputOptions(add_flipped_input=True, scales=scales, keep_resolution=True)
    transforms = planner(spec).plan_inputs(pixels.shape[1], pixels.shape[0], options)
    assert len(transforms) == options.count == 2 * len(scales)
    with np.load(shared / f"upstream/goldens/{name}.npz") as golden:
        for index, (plain, flipped) in enumerate(
            zip(transforms[::2], transforms[1::2], strict=True)
        ):
            upstream = golden[f"s{index}_crop_u8"][..., ::-1]
            assert np.array_equal(warp_to_input(DecodedImage(pixels), plain), upstream)
            assert np.array_equal(warp_to_input(DecodedImage(pixels), flipped), upstream[:, ::-1])
            assert golden[f"s{index}_sizes"][0].tolist() == [
                plain.resized_height_px,
                plain.resized_width_px,
            ]
            top, _, left, _ = golden[f"s{index}_borders"][0]
            assert (left, top) == (plain.to_input.shift_x_px, plain.to_input.shift_y_px)


def test_cropping_equals_upstream_of_corner_models(project: Path) -> None:
    with np.load(project / "tests/upstream/goldens/unit_cornernet.npz") as golden:
        pixels, upstream, border = (golden[name] for name in ("crop_in", "crop_a", "crop_a_border"))
    spec = InputSpec(
        width_px=511, height_px=511, resize="keep_resolution", free_size=FREE_SIZE_CORNERS
    )
    (transform,) = planner(spec).plan_inputs(41, 30, KEEP_RESOLUTION)
    assert np.array_equal(warp_to_input(DecodedImage(pixels), transform), upstream)
    assert (transform.to_input.shift_y_px, transform.to_input.shift_x_px) == (border[0], border[2])


def test_an_image_larger_than_the_input_is_center_cropped() -> None:
    pixels = np.arange(60 * 100 * 3, dtype=np.uint8).reshape(60, 100, 3)
    spec = InputSpec(width_px=32, height_px=64, resize="fit_width")
    (transform,) = planner(spec).plan_inputs(100, 60, KEEP_RESOLUTION)
    warped = warp_to_input(DecodedImage(pixels), transform)
    assert np.array_equal(warped[2:62], pixels[:, 34:66])
    assert not warped[:2].any()
    assert not warped[62:].any()


def test_a_warp_equals_that_of_opencv_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        height, width, input_height, input_width = map(int, random.integers(1, 100, 4))
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        scale, shift_x, shift_y = random.uniform(0.2, 4), *random.uniform(-20, 20, 2)
        to_input = AffineTransform(scale, shift_x, shift_y)
        transform = ImageTransform(width, height, input_width, input_height, to_input)
        expected = cv2.warpAffine(pixels, to_input.matrix(), (input_width, input_height))
        assert np.array_equal(warp_to_input(DecodedImage(pixels), transform), expected)


@pytest.mark.parametrize("resize", ["letterbox", "keep_resolution"])
def test_the_input_has_the_colour_of_the_padding_around_the_image(resize: ResizeMode) -> None:
    free_size = FreeSize(multiple_px=32, extra_px=1, max_side_px=128)
    spec = InputSpec(
        width_px=64, height_px=64, resize=resize, free_size=free_size, padding_rgb=(124, 116, 104)
    )
    keep_resolution = resize == "keep_resolution"
    options = InputOptions(keep_resolution=keep_resolution)
    (transform,) = planner(spec).plan_inputs(60, 30, options)
    canvas = warp_to_input(DecodedImage(np.zeros((30, 60, 3), np.uint8)), transform)
    assert canvas[0, 0].tolist() == [124, 116, 104]
    assert canvas[-1, -1].tolist() == [124, 116, 104]
    assert canvas[canvas.shape[0] // 2, canvas.shape[1] // 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("size", "options", "spec", "message"),
    [
        (
            (3000, 200),
            KEEP_RESOLUTION,
            FREE_32,
            r"need a network input of 3008 x 224; .* accepts at most 2048",
        ),
        ((1500, 200), InputOptions(scales=(1.0, 2.0), keep_resolution=True), FREE_32, "scale 2"),
        ((16, 16), InputOptions(scales=(4.0, 9.0)), FIXED, None),
        ((9000, 5000), InputOptions(scales=(1.5,)), FIXED, "at most 50000000 in total"),
        ((16384, 16), InputOptions(scales=(1.5,)), FIXED, "16384 per side"),
    ],
)
def test_input_sizes_are_limited(
    size: tuple[int, int], options: InputOptions, spec: InputSpec, message: str | None
) -> None:
    input_planner = planner(spec)
    if message is None:
        assert len(input_planner.plan_inputs(*size, options)) == len(options.scales)
        return
    with pytest.raises(ImageSizeError, match=message):
        input_planner.plan_inputs(*size, options)


def test_an_input_with_fewer_cells_than_top_k_is_rejected() -> None:
    decoder = make_manifest().decoder.model_copy(update={"top_k": 100})
    input_planner = InputPlanner(make_manifest(decoder, FREE_32), LIMIT)
    with pytest.raises(
        ImageSizeError, match=r"give a network input of 32 x 32; .* at least 1600 pixels"
    ):
        input_planner.plan_inputs(20, 20, KEEP_RESOLUTION)
    assert input_planner.plan_inputs(20, 40, KEEP_RESOLUTION)[0].input_height_px == 64
