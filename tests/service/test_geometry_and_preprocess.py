"""The affine letterbox against the authors' numbers and pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.geometry import AffineTransform
from service.preprocess import letterbox


@pytest.mark.parametrize(
    ("image_size", "input_size"),
    [((640, 402), (512, 512)), ((400, 600), (512, 512)), ((451, 301), (640, 384))],
)
def test_points_return_from_the_input(
    image_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    transform = AffineTransform.letterbox(*image_size, *input_size)
    points = np.array([[0.0, 0.0], [image_size[0] - 1, image_size[1] - 1], [12.25, 99.5]])
    in_input = points @ transform.matrix()[:, :2].T + transform.matrix()[:, 2]
    assert np.allclose(transform.to_image(in_input), points, atol=1e-9)
    center = np.array([image_size[0] / 2, image_size[1] / 2])
    assert np.allclose(transform.matrix() @ [*center, 1], np.array(input_size) / 2), (
        "the centers must coincide"
    )


def test_the_transform_equals_the_authors(project: Path) -> None:
    golden = np.load(project / "tests/upstream/goldens/unit_geometry_xz.npz")
    points = np.array([[0.0, 0.0], [17.25, 3.5], [127.0, 96.0]])
    compared = {"image to input": 0, "map to image": 0}
    for arguments, matrix in zip(golden["aff_args"], golden["aff_mats"], strict=True):
        cx, cy, scale_x, _, rotation, width, height, shift_x, shift_y, inverse = arguments
        # Ours has the picture's middle as center, its longer side as scale, and never turns.
        if rotation or shift_x or shift_y or scale_x != 2 * max(cx, cy):
            continue
        theirs = points @ matrix[:, :2].T + matrix[:, 2]
        if inverse:  # theirs maps cells of the output map; the input is four times as large
            transform = AffineTransform.letterbox(2 * cx, 2 * cy, 4 * width, 4 * height)
            assert np.allclose(transform.to_image(4 * points), theirs, atol=1e-6)
            compared["map to image"] += 1
        else:
            transform = AffineTransform.letterbox(2 * cx, 2 * cy, width, height)
            ours = points @ transform.matrix()[:, :2].T + transform.matrix()[:, 2]
            assert np.allclose(ours, theirs, atol=1e-6)
            compared["image to input"] += 1
    assert compared == {"image to input": 2, "map to image": 3}, "rows of the golden that fit ours"


CANVASES = {
    "fix512_land_640x402": (512, 512),
    "fix512_port_400x600": (512, 512),
    "fix512_odd_451x301": (512, 512),
    "h384w640_land_640x402": (640, 384),
}


@pytest.mark.parametrize("name", CANVASES)
def test_the_canvas_equals_the_authors(name: str, shared: Path) -> None:
    """Bit for bit with OpenCV 5; OpenCV 4 rounds to 1/32 pixel and differs from both alike."""
    photo = shared / "upstream" / "photos" / f"{name.partition('_')[2]}.png"
    with Image.open(photo) as image:
        canvas, _ = letterbox(np.asarray(image.convert("RGB")), *CANVASES[name])
    cv5 = np.load(shared / "upstream/goldens/preproc_cv5.npz")[name][..., ::-1]
    cv4 = np.load(shared / "upstream/goldens/preproc_cv4.npz")[name][..., ::-1]
    assert np.array_equal(canvas, cv5)
    to_cv4 = np.abs(canvas.astype(int) - cv4)
    assert to_cv4.max() <= 4
    assert (to_cv4 > 0).mean() < 0.1
