import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.synthetic.blood_smears import HEIGHT, WIDTH, _blend_patch, main, render_smear
from training.synthetic.cell_painting import paint_platelet, paint_red_cell, paint_white_cell


def test_a_seed_determines_the_image() -> None:
    first, again, other = (render_smear(np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.boxes_xywh, again.boxes_xywh)
    assert (first.pixels != other.pixels).any()


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_inside_the_image(seed: int) -> None:
    smear = render_smear(np.random.default_rng(seed))
    assert smear.pixels.shape == (HEIGHT, WIDTH, 3)
    assert smear.pixels.dtype == np.uint8
    low, high = smear.boxes_xywh[:, :2], smear.boxes_xywh[:, :2] + smear.boxes_xywh[:, 2:]
    assert (low >= 0).all()
    assert (high <= (WIDTH, HEIGHT)).all()
    assert set(smear.class_ids) <= {0, 1, 2}
    assert len(smear.class_ids) == len(smear.boxes_xywh) > 0


@pytest.mark.parametrize(
    ("paint", "radius"), [(paint_red_cell, 50.0), (paint_white_cell, 90.0), (paint_platelet, 19.0)]
)
@pytest.mark.parametrize("position", [(320, 240), (5, 240), (630, 470)])
def test_the_box_encloses_the_changed_pixels(paint, radius, position) -> None:
    patch = paint(np.random.default_rng(3), radius)
    density = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    x, y, w, h = _blend_patch(patch, np.ones(3, np.float32), density, *position)
    changed = density.sum(axis=2) > 0
    columns, rows = np.flatnonzero(changed.any(0)), np.flatnonzero(changed.any(1))
    extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    # The outline is the center line of a soft edge of at most 6 pixels.
    np.testing.assert_allclose([x, y, x + w, y + h], extent, atol=3.5)
    inside = np.zeros_like(changed)
    inside[int(y) : int(y + h), int(x) : int(x + w)] = True
    assert density[inside].sum() > 0.97 * density.sum()


def test_a_sliver_at_the_border_is_not_labelled() -> None:
    patch = paint_red_cell(np.random.default_rng(0), 50.0)
    density = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    far = WIDTH + patch.coverage.shape[0] // 2 - 8
    assert _blend_patch(patch, np.ones(3, np.float32), density, far, 240) is None


def test_command_writes_images_and_labels(tmp_path: Path) -> None:
    main(["--output", str(tmp_path), "--count", "2", "--seed", "5", "--format", "png"])
    document = json.loads((tmp_path / "blood_smears.json").read_text())
    assert [entry["name"] for entry in document["categories"]] == ["RBC", "WBC", "Platelets"]
    for number, entry in enumerate(document["images"], start=1):
        expected = render_smear(np.random.default_rng((5, number)))
        written = cv2.imread(str(tmp_path / entry["file_name"]))[..., ::-1]
        np.testing.assert_array_equal(written, expected.pixels)
        boxes = [a["bbox"] for a in document["annotations"] if a["image_id"] == entry["id"]]
        np.testing.assert_array_equal(boxes, expected.boxes_xywh)


def test_the_samples_in_the_documentation_can_be_reproduced(project: Path, tmp_path: Path) -> None:
    samples = project / "docs/samples"
    main(["--output", str(tmp_path), "--count", "4", "--seed", "2034"])
    fresh = json.loads((tmp_path / "blood_smears.json").read_text())
    stored = json.loads((samples / "blood_smears.json").read_text())
    for actual, expected in zip(fresh["annotations"], stored["annotations"], strict=True):
        assert actual["image_id"] == expected["image_id"]
        assert actual["category_id"] == expected["category_id"]
        # Another processor may round an outline to the next pixel.
        np.testing.assert_allclose(actual["bbox"], expected["bbox"], atol=1)
    for entry in stored["images"]:
        assert cv2.imread(str(samples / entry["file_name"])).shape == (HEIGHT, WIDTH, 3)
