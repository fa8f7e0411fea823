"""Where images lie in network inputs: against the upstream numbers and pixels."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.serving import make_manifest

from model_package import FreeSize, InputSpec
from service.errors import ImageSizeError
from service.imaging.geometry import AffineTransform
from service.imaging.image_decoding import DecodedImage
from service.imaging.resize import InputPlanner
from service.imaging.warp import draw_input
from service.options import InputOptions

LIMIT = 50_000_000
POINTS = FreeSize(multiple_px=32, extra_px=1, max_side_px=2048)
CORNERS = FreeSize(multiple_px=128, extra_px=0, max_side_px=2047)
KEPT = InputOptions(keep_resolution=True)


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
def test_points_return_from_the_input(
    image_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    (placed,) = letterbox(*input_size).place(*image_size, InputOptions())
    matrix = placed.to_input.matrix()
    points = np.array([[0.0, 0.0], [image_size[0] - 1, image_size[1] - 1], [12.25, 99.5]])
    in_input = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(placed.to_image(in_input), points, atol=1e-9)
    center = np.array([image_size[0] / 2, image_size[1] / 2])
    assert np.allclose(matrix @ [*center, 1], np.array(input_size) / 2), "the centers must coincide"


def test_the_transform_equals_upstream(project: Path) -> None:
    golden = np.load(project / "tests/upstream/goldens/unit_geometry_xz.npz")
    points = np.array([[0.0, 0.0], [17.25, 3.5], [127.0, 96.0]])
    compared = {"image to input": 0, "map to image": 0}
    for arguments, matrix in zip(golden["aff_args"], golden["aff_mats"], strict=True):
        cx, cy, scale_x, _, rotation, width, height, shift_x, shift_y, inverse = arguments
        if rotation or shift_x or shift_y:  # test time never turns and never shifts
            continue
        upstream = points @ matrix[:, :2].T + matrix[:, 2]
        if inverse:  # theirs maps cells of the output map; the input is four times as large
            to_input = AffineTransform.centered(
                4 * width / scale_x, (cx, cy), (2 * width, 2 * height)
            )
            assert np.allclose(to_input.inverse(4 * points), upstream, atol=1e-6)
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
FREE_32 = FIXED.model_copy(update={"free_size": POINTS})
FREE_128 = FIXED.model_copy(
    update={"free_size": FreeSize(multiple_px=128, extra_px=1, max_side_px=2048)}
)
WIDE = InputSpec(width_px=640, height_px=384)
PHOTOS = ("land_640x402", "port_400x600", "odd_451x301")
CANVASES: dict[str, tuple[str, InputSpec, InputOptions]] = {
    **{f"fix512_{name}": (name, FIXED, InputOptions()) for name in PHOTOS},
    **{f"keepres31_{name}": (name, FREE_32, KEPT) for name in PHOTOS},
    **{f"keepres127_{name}": (name, FREE_128, KEPT) for name in PHOTOS},
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
    "ddd_keepres_kitti_1242x375": ("kitti_1242x375", KITTI, KEPT),
    "ddd_land_640x402": ("land_640x402", KITTI, InputOptions()),
}


@pytest.mark.parametrize("name", CANVASES)
def test_the_canvas_equals_upstream(name: str, shared: Path) -> None:
    """Bit for bit with OpenCV 5; OpenCV 4 rounds to 1/32 pixel and differs from both alike."""
    image, spec, options = CANVASES[name]
    pixels = photo(shared, image)
    (placed,) = planner(spec).place(pixels.shape[1], pixels.shape[0], options)
    canvas = draw_input(DecodedImage(pixels), placed)
    with np.load(shared / "upstream/goldens/preproc_cv5.npz") as cv5:
        assert np.array_equal(canvas, cv5[name][..., ::-1])
    with np.load(shared / "upstream/goldens/preproc_cv4.npz") as cv4:
        to_cv4 = np.abs(canvas.astype(int) - cv4[name][..., ::-1])
    assert to_cv4.max() <= 4
    assert (to_cv4 > 0).mean() < (0.25 if spec is KITTI else 0.1)


def test_every_canvas_of_upstream_is_compared(shared: Path) -> None:
    with np.load(shared / "upstream/goldens/preproc_cv5.npz") as golden:
        assert {name for name in golden.files if golden[name].ndim == 3} == set(CANVASES)


CORNER_CASES = {
    "cornernet_hourglass104_default_land": ("land_640x402", (1.0,)),
    "cornernet_hourglass104_multi_scale_cfg_odd": ("odd_451x301", (0.5, 1.0)),
    "triplet_centernet52_default_odd": ("odd_451x301", (1.0,)),
}


@pytest.mark.parametrize("name", CORNER_CASES)
def test_the_corner_systems_canvases_equal_upstream(name: str, shared: Path) -> None:
    image, scales = CORNER_CASES[name]
    pixels = photo(shared, image)
    spec = InputSpec(width_px=511, height_px=511, resize="keep_resolution", free_size=CORNERS)
    options = InputOptions(add_flipped_input=True, scales=scales, keep_resolution=True)
    placements = planner(spec).place(pixels.shape[1], pixels.shape[0], options)
    assert len(placements) == options.count == 2 * len(scales)
    with np.load(shared / f"upstream/goldens/{name}.npz") as golden:
        for index, (plain, flipped) in enumerate(
            zip(placements[::2], placements[1::2], strict=True)
        ):
            upstream = golden[f"s{index}_crop_u8"][..., ::-1]
            assert np.array_equal(draw_input(DecodedImage(pixels), plain), upstream)
            assert np.array_equal(draw_input(DecodedImage(pixels), flipped), upstream[:, ::-1])
            assert golden[f"s{index}_sizes"][0].tolist() == [
                plain.resized_height_px,
                plain.resized_width_px,
            ]
            top, _, left, _ = golden[f"s{index}_borders"][0]
            assert (left, top) == (plain.to_input.shift_x_px, plain.to_input.shift_y_px)


def test_cropping_equals_the_corner_systems_own(project: Path) -> None:
    with np.load(project / "tests/upstream/goldens/unit_cornernet.npz") as golden:
        pixels, upstream, border = (golden[name] for name in ("crop_in", "crop_a", "crop_a_border"))
    spec = InputSpec(width_px=511, height_px=511, resize="keep_resolution", free_size=CORNERS)
    (placed,) = planner(spec).place(41, 30, KEPT)
    assert np.array_equal(draw_input(DecodedImage(pixels), placed), upstream)
    assert (placed.to_input.shift_y_px, placed.to_input.shift_x_px) == (border[0], border[2])


def test_a_image_larger_than_the_canvas_shows_its_middle() -> None:
    pixels = np.arange(60 * 100 * 3, dtype=np.uint8).reshape(60, 100, 3)
    spec = InputSpec(width_px=32, height_px=64, resize="fit_width")
    (placed,) = planner(spec).place(100, 60, KEPT)
    canvas = draw_input(DecodedImage(pixels), placed)
    assert np.array_equal(canvas[2:62], pixels[:, 34:66])
    assert not canvas[:2].any()
    assert not canvas[62:].any()


@pytest.mark.parametrize(
    ("size", "options", "spec", "words"),
    [
        ((3000, 200), KEPT, FREE_32, "need an input of 3008 x 224; the model takes at most 2048"),
        ((1500, 200), InputOptions(scales=(1.0, 2.0), keep_resolution=True), FREE_32, "scale 2"),
        ((16, 16), InputOptions(scales=(4.0, 9.0)), FIXED, None),
        ((9000, 5000), InputOptions(scales=(1.5,)), FIXED, "at most 50000000 in all"),
        ((16384, 16), InputOptions(scales=(1.5,)), FIXED, "16384 per side"),
    ],
)
def test_work_is_bounded(
    size: tuple[int, int], options: InputOptions, spec: InputSpec, words: str | None
) -> None:
    plan = planner(spec)
    if words is None:
        assert len(plan.place(*size, options)) == len(options.scales)
        return
    with pytest.raises(ImageSizeError, match=words):
        plan.place(*size, options)


def test_a_image_with_fewer_cells_than_peaks_is_refused() -> None:
    decoder = make_manifest().decoder.model_copy(update={"top_k": 100})
    plan = InputPlanner(make_manifest(decoder, FREE_32), LIMIT)
    with pytest.raises(ImageSizeError, match="make an input of 32 x 32: too little"):
        plan.place(20, 20, KEPT)
    assert plan.place(20, 40, KEPT)[0].input_height_px == 64
