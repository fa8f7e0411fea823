"""Poses, 3D boxes and flips: comparison with upstream, and the rules for keypoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.class_names import COCO_KEYPOINTS, COCO_SKELETON, flipped_pairs
from model_export.graph.boxes_3d import depth_from_raw
from model_export.graph.heads import average_with_flip, unflip
from model_export.key_mappings.objects_as_points import HEADS
from model_export.tasks import TASKS

POSE_HEADS = TASKS["poses"].heads


@pytest.fixture(scope="module")
def goldens(upstream: Path) -> dict[str, NDArray]:
    with np.load(upstream / "goldens" / "unit_decode_xz.npz") as file:
        return {key: file[key] for key in file.files if key.startswith(("mp_", "ddd_", "flip_"))}


def _maps(goldens: dict[str, NDArray], prefix: str, *without: str) -> dict[str, Tensor]:
    """Return the inputs of the upstream decoding by network head name."""
    return {
        local: torch.from_numpy(goldens[f"{prefix}_in_{upstream}"])
        for upstream, local in HEADS.items()
        if f"{prefix}_in_{upstream}" in goldens and upstream not in without
    }


@pytest.mark.parametrize(
    ("name", "top_k", "without"),
    [
        ("mp_K100", 100, ()),
        ("mp_K20", 20, ()),
        ("mp_K20_noreg", 20, ("reg",)),
        ("mp_K20_nohpoff", 20, ("hp_offset",)),
        ("mp_K20_nohmhp", 20, ("hm_hp", "hp_offset")),
    ],
)
def test_poses_match_upstream(
    goldens: dict[str, NDArray], name: str, top_k: int, without: tuple[str, ...]
) -> None:
    scores, class_ids, centers, sizes, keypoints, keypoint_scores = TASKS["poses"].decode(
        _maps(goldens, "mp", *without), top_k
    )
    rows = torch.cat(
        (
            centers - sizes / 2,
            centers + sizes / 2,
            scores.unsqueeze(2),
            keypoints.flatten(2),
            class_ids.unsqueeze(2),
        ),
        dim=2,
    )
    np.testing.assert_allclose(rows.numpy(), goldens[name], rtol=0, atol=1e-5)
    assert (keypoint_scores > 0).any().item() == ("hm_hp" not in without)
    assert ((keypoint_scores == 0) | (keypoint_scores > 0.1)).all()


def _one_pose(peak: tuple[int, int], score: float) -> tuple[list[float], float]:
    """Decode a pose whose keypoint heatmap has one peak of ``score`` at ``peak``.

    The box is (5, 5) to (15, 15) and the regressed keypoint (12, 10). Returns keypoint and score.
    """
    maps = {
        "heatmap": torch.zeros(1, 1, 20, 20),
        "size": torch.full((1, 2, 20, 20), 10.0),
        "offset": torch.zeros(1, 2, 20, 20),
        "keypoint_offsets": torch.zeros(1, 2, 20, 20),
        "keypoint_heatmap": torch.zeros(1, 1, 20, 20),
        "keypoint_heatmap_offset": torch.zeros(1, 2, 20, 20),
    }
    maps["heatmap"][0, 0, 10, 10] = 0.9
    maps["keypoint_offsets"][0, 0] = 2.0
    maps["keypoint_heatmap"][0, 0, peak[1], peak[0]] = score
    *_, keypoints, scores = TASKS["poses"].decode(maps, 1)
    return keypoints.flatten().tolist(), scores.item()


@pytest.mark.parametrize(
    ("peak", "score", "taken"),
    [
        ((13, 11), 0.5, True),
        ((15, 10), 0.5, True),  # on the edge of the box, at 0.3 of its side
        ((12, 14), 0.5, False),  # too far
        ((16, 10), 0.5, False),  # outside of the box
        ((13, 11), 0.1, False),  # too weak
    ],
)
def test_a_keypoint_moves_to_a_peak_that_fits(
    peak: tuple[int, int], score: float, taken: bool
) -> None:
    keypoint, keypoint_score = _one_pose(peak, score)
    assert keypoint == (list(peak) if taken else [12, 10])
    assert keypoint_score == pytest.approx(score if taken else 0.0)


def test_maps_may_have_fewer_cells_than_top_k() -> None:
    maps = {name: torch.rand(2, head.count(1, 17), 8, 8) for name, head in POSE_HEADS.items()}
    outputs = TASKS["poses"].decode(maps, 100)
    assert [tuple(output.shape[1:]) for output in outputs] == [
        (100,), (100,), (100, 2), (100, 2), (100, 17, 2), (100, 17),
    ]  # fmt: skip
    assert (outputs[0][:, 64:] == 0).all()
    assert (outputs[1] == 0).all()


@pytest.mark.parametrize(("name", "without"), [("ddd_K50", ()), ("ddd_K50_nowh_noreg", ("reg",))])
def test_boxes_3d_match_upstream(
    goldens: dict[str, NDArray], name: str, without: tuple[str, ...]
) -> None:
    maps = _maps(goldens, "ddd", *without)
    # The goldens hold transformed depths; the decoder expects raw ones.
    maps["depth"] = torch.logit(1 / (maps["depth"].double() + 1) - 1e-6)
    scores, class_ids, centers, sizes, depths, dimensions, rotations = TASKS["boxes_3d"].decode(
        maps, 50
    )
    rows = torch.cat(
        (
            centers,
            scores.unsqueeze(2),
            rotations,
            depths.unsqueeze(2),
            dimensions,
            *(() if "nowh" in name else (sizes,)),
            class_ids.unsqueeze(2),
        ),
        dim=2,
    )
    assert (goldens[name][..., 11] > 0).all()  # a depth head cannot give other values
    np.testing.assert_allclose(rows.numpy(), goldens[name], rtol=1e-5, atol=1e-5)


def test_the_union_of_tasks_decodes_what_each_task_decodes() -> None:
    torch.manual_seed(1)
    heads = TASKS["poses_and_boxes_3d"].heads
    maps = {name: torch.rand(2, head.count(3, 17), 12, 16) for name, head in heads.items()}
    poses, boxes_3d, both = (
        TASKS[name].decode(maps, 20) for name in ("poses", "boxes_3d", "poses_and_boxes_3d")
    )
    assert len(both) == 9
    for output, expected in zip(both, (*poses, *boxes_3d[4:]), strict=True):
        assert torch.equal(output, expected)
    assert all(map(torch.equal, both[:4], boxes_3d[:4]))


def test_depths_match_upstream(upstream: Path) -> None:
    with np.load(upstream / "goldens" / "unit_geometry_xz.npz") as file:
        raw, expected = file["dep_raw"], file["dep_dec"]
    np.testing.assert_allclose(depth_from_raw(torch.from_numpy(raw)).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "head"), [("flip_off", "keypoint_offsets"), ("flip_lr", "keypoint_heatmap")]
)
def test_unflipped_maps_match_upstream(goldens: dict[str, NDArray], name: str, head: str) -> None:
    values = torch.from_numpy(goldens[f"{name}_in"])
    local = unflip(values, POSE_HEADS[head], flipped_pairs(COCO_KEYPOINTS))
    np.testing.assert_array_equal(local.numpy(), goldens[f"{name}_out"])


def test_a_flip_swaps_left_and_right_keypoints() -> None:
    pairs = flipped_pairs(COCO_KEYPOINTS)
    assert pairs == [(left, left + 1) for left in range(1, 17, 2)]
    assert flipped_pairs(("snout", "leftear", "rightear", "tail")) == [(1, 2)]
    assert flipped_pairs(("left hand", "foot")) == []
    assert {keypoint for line in COCO_SKELETON for keypoint in line} == set(range(17))


def test_offsets_inside_a_cell_are_not_averaged() -> None:
    maps = {name: torch.rand(1, head.count(1, 17), 4, 6) for name, head in POSE_HEADS.items()}
    flip = {name: torch.rand_like(values) for name, values in maps.items()}
    averaged = average_with_flip(maps, flip, POSE_HEADS, flipped_pairs(COCO_KEYPOINTS))
    for name in ("offset", "keypoint_heatmap_offset"):
        assert torch.equal(averaged[name], maps[name])
    torch.testing.assert_close(averaged["size"], (maps["size"] + flip["size"].flip(3)) / 2)
    left_shoulder_x = (
        maps["keypoint_offsets"][:, 10] - flip["keypoint_offsets"].flip(3)[:, 12]
    ) / 2
    torch.testing.assert_close(averaged["keypoint_offsets"][:, 10], left_shoulder_x)
