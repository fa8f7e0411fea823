"""Targets against values of the reference implementation, and decoded back to labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from labels.extreme_points import group_extreme_points
from model_export.graph.extreme_points import SIDES, decode_extreme_points
from model_package import ExtremePointsDecoder
from training.data.sample import ALL_CLASSES, Boxes3D
from training.targets.boxes_3d import boxes_3d_targets, ignore_regions
from training.targets.centers import (
    center_targets,
    corrected_gaussian_radius,
    draw_gaussian,
    gaussian_radius,
)
from training.targets.corners import corner_targets, triplet_targets
from training.targets.extreme_points import extreme_point_targets
from training.targets.poses import pose_targets

Goldens = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def load(project: Path) -> Callable[..., Goldens]:
    def read(file: str, *names: str) -> Goldens:
        path = project / "tests/upstream/goldens" / f"{file}.npz"
        with np.load(path, allow_pickle=False) as goldens:
            return {name: goldens[name] for name in names}

    return read


def test_radius_matches_upstream(load) -> None:
    goldens = load("unit_geometry_xz", "gr_args", "gr_centernet")
    local = [gaussian_radius(h, w, overlap) for h, w, overlap in goldens["gr_args"]]
    np.testing.assert_allclose(local, goldens["gr_centernet"], rtol=1e-12)


@pytest.mark.parametrize(
    ("file", "radius"),
    [("unit_cornernet", corrected_gaussian_radius), ("unit_triplet", gaussian_radius)],
)
def test_radius_of_corners_matches_upstream(load, file: str, radius) -> None:
    goldens = load(file, "gr_args", "gr")
    local = [radius(h, w, overlap) for h, w, overlap in goldens["gr_args"]]
    np.testing.assert_allclose(local, goldens["gr"], rtol=1e-10)


def test_gaussians_match_upstream(load) -> None:
    goldens = load("unit_geometry_xz", "draw_args", "umich")
    drawn = np.zeros_like(goldens["umich"])
    for index, (x, y, radius, peak) in enumerate(goldens["draw_args"]):
        one = np.zeros_like(drawn[0])
        draw_gaussian(one, int(x), int(y), int(radius))
        # The golden alternates between two channels; draw_gaussian always draws a peak of 1.
        np.maximum(drawn[index % 2], np.float32(peak) * one, out=drawn[index % 2])
    np.testing.assert_allclose(drawn, goldens["umich"], atol=1e-6)


def encode(boxes: list[list[float]], class_ids: list[int], max_objects: int = 4, **options):
    return center_targets(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(class_ids, np.int64),
        num_classes=2,
        map_height=16,
        map_width=24,
        stride=4,
        max_objects=max_objects,
        **options,
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


def test_overlapping_gaussians_keep_the_larger_value() -> None:
    alone = encode([[10, 10, 40, 40]], [0]).heatmap[0]
    both = encode([[10, 10, 40, 40], [18, 10, 40, 40]], [0, 0]).heatmap[0]
    assert (both >= alone).all()
    assert both.max() == 1


def test_center_on_the_far_edge_stays_inside_the_map() -> None:
    targets = encode([[96.0, 64.0, 0.5, 0.5]], [0])
    assert targets.cells[0] == 16 * 24 - 1


def test_no_object_gives_an_empty_heatmap() -> None:
    targets = encode([], [])
    assert targets.heatmap.max() == 0
    assert targets.present.sum() == 0


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="2 objects in one image; at most 1"):
        encode([[0, 0, 9, 9], [20, 20, 9, 9]], [0, 0], max_objects=1)


def test_keypoints_are_recovered_from_their_targets() -> None:
    keypoints = np.array([[[13, 22, 2], [40, 36, 1], [200, 30, 2], [20, 20, 0]]], np.float32)
    targets = pose_targets(encode([[10, 20, 31, 17]], [0]), keypoints, stride=4)
    assert targets.keypoint_mask[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    center = np.array([targets.cells[0] % 24, targets.cells[0] // 24])
    for keypoint in (0, 1):
        expected = keypoints[0, keypoint, :2] / 4
        offset = targets.keypoint_offsets[0, 2 * keypoint : 2 * keypoint + 2]
        np.testing.assert_allclose(center + offset, expected, atol=1e-6)
        cell = targets.keypoint_cells[keypoint]
        point = np.array([cell % 24, cell // 24]) + targets.keypoint_heatmap_offset[keypoint]
        np.testing.assert_allclose(point, expected, atol=1e-6)
        assert targets.keypoint_heatmap[keypoint].flat[cell] == 1
    # The third is outside of the map, the fourth is not labelled.
    assert targets.keypoint_heatmap[2:].max() == 0
    assert targets.keypoint_present[:4].tolist() == [1, 1, 0, 0]


def test_an_object_without_keypoints_stays_in_the_heatmap_only() -> None:
    keypoints = np.zeros((1, 3, 3), np.float32)
    targets = pose_targets(encode([[10, 20, 31, 17]], [0]), keypoints, stride=4)
    assert targets.present.sum() == 0
    assert (targets.heatmap == 1).sum() == 1


def test_an_object_of_a_class_without_keypoints_has_a_box_only() -> None:
    keypoints = np.full((1, 3, 3), np.nan, np.float32)
    centers = encode([[10, 20, 31, 17]], [0])
    targets = pose_targets(centers, keypoints, stride=4)
    assert targets.present.tolist() == centers.present.tolist()
    assert targets.present.sum() == 1
    for name, values in vars(targets).items():
        assert np.isfinite(values).all(), name
        assert not (name.startswith("keypoint") and values.any()), name


@pytest.mark.parametrize("alpha", np.linspace(-3.1, 3.1, 41))
def test_angles_are_recovered_from_their_bins(alpha: float) -> None:
    boxes_3d = Boxes3D(
        np.array([12.0], np.float32), np.ones((1, 3), np.float32), np.array([alpha], np.float32)
    )
    targets = boxes_3d_targets(encode([[10, 20, 31, 17]], [0]), boxes_3d)
    # Conditions of the reference implementation.
    expected = [
        alpha < np.pi / 6 or alpha > 5 * np.pi / 6,
        alpha > -np.pi / 6 or alpha < -5 * np.pi / 6,
    ]
    assert targets.rotation_bins[0].tolist() == expected
    for index, center in enumerate((-np.pi / 2, np.pi / 2)):
        residual = targets.rotation_residuals[0, index]
        if expected[index]:
            assert np.cos(residual + center - alpha) == pytest.approx(1, abs=1e-6)
        else:
            assert residual == 0
    assert targets.depth[0] == 12
    assert targets.measured.tolist() == [1, 0, 0, 0]


def test_depth_is_masked_out_in_scaled_views() -> None:
    one = np.ones(1, np.float32)
    boxes_3d = Boxes3D(one, np.ones((1, 3), np.float32), one, is_measurable=False)
    targets = boxes_3d_targets(encode([[10, 20, 31, 17]], [0]), boxes_3d)
    assert targets.measured.sum() == 0
    assert targets.present.sum() == 1


def test_ignored_regions_have_no_penalty_and_keep_objects() -> None:
    heatmap = encode([[10, 20, 31, 17]], [0]).heatmap
    boxes = np.array([[10, 20, 31, 17], [60, 20, 16, 16]], np.float32)
    ignore_regions(heatmap, boxes, np.array([ALL_CLASSES, 1]), stride=4)
    assert (heatmap[0] == 1).sum() == 1
    assert (heatmap[1] == 1).sum() == 0
    assert heatmap[1].max() == pytest.approx(0.9999)
    assert heatmap[0, 7, 17] == 0
    assert heatmap[1, 7, 17] == pytest.approx(0.9999)


@pytest.mark.parametrize(
    ("encode_corners", "stride"), [(corner_targets, 4), (corner_targets, 8), (triplet_targets, 4)]
)
def test_corners_are_recovered_from_their_targets(encode_corners, stride: int) -> None:
    boxes = np.array([[10.5, 20, 31, 17], [60, 0, 67, 127]], np.float32)
    targets = encode_corners(
        boxes, np.array([1, 0]), num_classes=2, input_size=(127, 127), stride=stride, max_objects=5
    )
    side = 128 // stride
    corners = {"top_left": boxes[:, :2], "bottom_right": boxes[:, :2] + boxes[:, 2:]}
    if encode_corners is triplet_targets:
        corners["center"] = boxes[:, :2] + boxes[:, 2:] / 2
    for name, points in corners.items():
        assert targets[f"{name}_heatmap"].shape == (2, side, side)
        cells = targets[f"{name}_cells"][:2]
        decoded = np.stack([cells % side, cells // side], axis=1) + targets[f"{name}_offset"][:2]
        # 32 or 16 cells for 127 pixels; corners are clipped to the last column of the image.
        np.testing.assert_allclose(decoded, points * side / 127, atol=side / 127)
        if name == "top_left":
            np.testing.assert_allclose(decoded, points * side / 127, atol=1e-5)
        for class_id, cell in zip((1, 0), cells, strict=True):
            assert targets[f"{name}_heatmap"][class_id].flat[cell] == 1
    assert targets["present"].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("agnostic", [False, True])
def test_extreme_points_are_recovered_from_their_targets(*, agnostic: bool) -> None:
    height, width, count = 24, 32, 2
    points = np.array(
        [
            [[30.5, 10], [12, 22.25], [27, 40.75], [50, 25]],
            [[95, 21], [70, 50], [100, 90], [121.5, 62]],
            [[60, 70], [60, 75], [60, 80], [60, 75]],  # without an area
        ],
        np.float32,
    )
    targets = extreme_point_targets(
        points,
        np.array([1, 0, 0]),
        num_classes=2,
        map_height=height,
        map_width=width,
        stride=4,
        max_objects=4,
        agnostic=agnostic,
    )
    assert targets["present"].tolist() == [1, 1, 0, 0]
    maps = {name: values for name, values in targets.items() if name.endswith("heatmap")}
    for side in SIDES:
        offsets = np.zeros((2, height * width), np.float32)
        offsets[:, targets[f"{side}_cells"][:count]] = targets[f"{side}_offset"][:count].T
        maps[f"{side}_offset"] = offsets.reshape(2, height, width)
    batch = {name: torch.from_numpy(values[np.newaxis]) for name, values in maps.items()}
    outputs = decode_extreme_points(batch, 4, agnostic=agnostic)
    config = ExtremePointsDecoder(
        output_stride=4, peaks=4, columns=width, agnostic=agnostic, top_k=4, score_threshold=0.1
    )
    names = [spec.name for spec in config.outputs()]
    groups = group_extreme_points(
        {name: rows[0].numpy() for name, rows in zip(names, outputs, strict=True)}
    )
    # The center of integer cells can be beside the peak; groups of two objects have lower scores.
    assert groups["scores"][:count].min() > 0.9
    assert (groups["scores"][count:] < 0.9).all()
    order = np.argsort(groups["class_ids"][:count])[::-1]
    assert groups["class_ids"][order].tolist() == [1, 0]
    np.testing.assert_allclose(groups["points"][order] * 4, points[:count], atol=1e-4)


def test_gaussians_of_centers_match_upstream(load) -> None:
    drawn = np.zeros((40, 56), np.float32)
    draw_gaussian(drawn, 20, 15, 6, sigmas=5)
    np.testing.assert_allclose(drawn, load("unit_triplet", "draw_delte5")["draw_delte5"], atol=1e-6)
