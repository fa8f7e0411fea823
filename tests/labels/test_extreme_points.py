"""Grouping of extreme points against all combinations, and the octagons around groups."""

import numpy as np
import pytest

from labels.extreme_points import MAX_GROUPS, group_extreme_points, octagons
from labels.outputs import Outputs

WIDTH = 40


def make_outputs(seed: int, peaks: int, classes: int, *, all_fit: bool = False) -> Outputs:
    """Return random peaks; with ``all_fit``, points of different sides are never in conflict."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, WIDTH, (4, peaks, 2)).astype(np.int32)
    if all_fit:
        for side, axis in ((0, 1), (1, 0)):
            cells[side, :, axis] %= 10
            cells[side + 2, :, axis] = WIDTH - 1 - cells[side + 2, :, axis] % 10
    class_ids = rng.integers(0, classes, (4, peaks)).astype(np.int32)
    heatmap = rng.random((classes, WIDTH, WIDTH), np.float32)
    middle = (cells[0, :, None, 1] + cells[2, :, 1]) // 2
    is_pair = (class_ids[0][:, None] == class_ids[2]) & (cells[0, :, None, 1] <= cells[2, :, 1])
    return {
        "scores": -np.sort(-rng.random((4, peaks), np.float32)),
        "class_ids": class_ids,
        "cells": cells,
        "points": cells + rng.random(cells.shape, np.float32),
        "center_scores": heatmap[class_ids[0][:, None], middle] * is_pair[..., None],
    }


def all_groups(outputs: Outputs) -> dict[tuple[int, ...], float]:
    """Score every combination as the reference implementation does; returns those above 0."""
    scores, class_ids, cells = (outputs[name] for name in ("scores", "class_ids", "cells"))
    members = np.stack(np.indices((scores.shape[1],) * 4), axis=-1).reshape(-1, 4)
    x, y = (cells[np.arange(4), members, axis] for axis in (0, 1))
    centers = outputs["center_scores"][members[:, 0], members[:, 2], (x[:, 1] + x[:, 3]) // 2]
    of_points = scores[np.arange(4), members]
    of_classes = class_ids[np.arange(4), members]
    valid = (of_classes == of_classes[:, :1]).all(axis=1)
    valid &= (of_points >= 0.1).all(axis=1) & (centers >= 0.1)
    valid &= (y[:, :1] <= y).all(axis=1) & (y[:, 2:3] >= y).all(axis=1)
    valid &= (x[:, 1:2] <= x).all(axis=1) & (x[:, 3:4] >= x).all(axis=1)
    values = (of_points.sum(axis=1) + 2 * centers) / 6
    rows = np.flatnonzero(valid)
    rows = rows[np.argsort(-values[rows], kind="stable")][:MAX_GROUPS]
    return {tuple(members[row].tolist()): float(values[row]) for row in rows}


@pytest.mark.parametrize(
    ("peaks", "classes", "all_fit"),
    [(6, 1, False), (30, 2, False), (20, 1, False), (24, 1, True), (24, 2, True)],
)
def test_groups_are_the_best_of_all_combinations(peaks: int, classes: int, all_fit: bool) -> None:
    outputs = make_outputs(peaks, peaks, classes, all_fit=all_fit)
    expected = all_groups(outputs)
    groups = group_extreme_points(outputs)
    assert len(groups["scores"]) == len(expected) > 0
    np.testing.assert_allclose(groups["scores"], list(expected.values()), atol=1e-6)
    points = {
        tuple(outputs["points"][np.arange(4), list(members)].ravel().tolist())
        for members in expected
    }
    assert {tuple(group.ravel().tolist()) for group in groups["points"]} == points
    first = outputs["points"][np.arange(4), list(next(iter(expected)))]
    left_top_right_bottom = [first[1, 0], first[0, 1], first[3, 0], first[2, 1]]
    np.testing.assert_array_equal(groups["boxes"][0], left_top_right_bottom)


def test_points_may_share_a_cell_and_scores_may_equal_the_threshold() -> None:
    outputs = make_outputs(0, 1, 1)
    outputs["cells"][:] = 5
    outputs["scores"][:] = 0.1
    outputs["center_scores"][:] = 0.1
    assert len(group_extreme_points(outputs)["scores"]) == 1
    for name in ("scores", "center_scores"):
        below = {**outputs, name: outputs[name] - np.float32(1e-6)}
        assert len(group_extreme_points(below)["scores"]) == 0


def test_classes_of_agnostic_groups_are_those_of_their_centers() -> None:
    outputs = dict(make_outputs(1, 8, 1, all_fit=True))
    rng = np.random.default_rng(2)
    best = rng.integers(0, 80, outputs["center_scores"].shape).astype(np.int32)
    groups = group_extreme_points({**outputs, "center_class_ids": best})
    top, left, bottom, right = next(iter(all_groups(outputs)))
    column = (outputs["cells"][1, left, 0] + outputs["cells"][3, right, 0]) // 2
    assert groups["class_ids"][0] == best[top, bottom, column]


def test_octagon() -> None:
    # A box from (0, 0) to (80, 40): edges are extended by 10 and 5, and cut at the corner.
    points = np.array([[[40.0, 0], [0, 38], [5, 40], [80, 20]]])
    expected = [(30, 0), (50, 0), (80, 15), (80, 25), (15, 40), (0, 40), (0, 40), (0, 33)]
    np.testing.assert_allclose(octagons(points)[0], expected)
