from pathlib import Path

import numpy as np
import pytest

from training.targets import center_targets, draw_gaussian, gaussian_radius


@pytest.fixture(scope="module")
def goldens(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "upstream/goldens/unit_geometry_xz.npz", allow_pickle=False) as file:
        return {name: file[name] for name in ("gr_args", "gr_centernet", "draw_args", "umich")}


def test_radius_is_the_authors(goldens: dict[str, np.ndarray]) -> None:
    ours = [gaussian_radius(h, w, overlap) for h, w, overlap in goldens["gr_args"]]
    np.testing.assert_allclose(ours, goldens["gr_centernet"], rtol=1e-12)


def test_gaussians_are_the_authors(goldens: dict[str, np.ndarray]) -> None:
    drawn = np.zeros_like(goldens["umich"])
    for index, (x, y, radius, peak) in enumerate(goldens["draw_args"]):
        one = np.zeros_like(drawn[0])
        draw_gaussian(one, int(x), int(y), int(radius))
        # The golden spreads its calls over two channels; ours draws no other peak than 1.
        np.maximum(drawn[index % 2], np.float32(peak) * one, out=drawn[index % 2])
    np.testing.assert_allclose(drawn, goldens["umich"], atol=1e-6)


def encode(boxes: list[list[float]], class_ids: list[int], max_objects: int = 4):
    return center_targets(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(class_ids, np.int64),
        num_classes=2,
        map_height=16,
        map_width=24,
        stride=4,
        max_objects=max_objects,
    )


def test_box_is_recovered_from_its_targets() -> None:
    targets = encode([[10.0, 20.0, 31.0, 17.0]], [1])
    x = targets.cells[0] % 24 + targets.offset[0, 0]
    y = targets.cells[0] // 24 + targets.offset[0, 1]
    w, h = targets.size[0]
    np.testing.assert_allclose(
        np.array([x - w / 2, y - h / 2, w, h]) * 4, [10, 20, 31, 17], atol=1e-5
    )
    assert targets.heatmap[1].flat[targets.cells[0]] == 1
    assert (targets.heatmap == 1).sum() == 1
    assert targets.heatmap[0].max() == 0
    assert targets.present.tolist() == [1, 0, 0, 0]


def test_center_on_the_far_edge_stays_inside_the_map() -> None:
    targets = encode([[96.0, 64.0, 0.5, 0.5]], [0])
    assert targets.cells[0] == 16 * 24 - 1


def test_no_object_gives_an_empty_heatmap() -> None:
    targets = encode([], [])
    assert targets.heatmap.max() == 0
    assert targets.present.sum() == 0


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="2 objects in one picture; at most 1"):
        encode([[0, 0, 9, 9], [20, 20, 9, 9]], [0, 0], max_objects=1)
