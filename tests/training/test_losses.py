"""Losses and their gradients against values of the reference implementation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.losses import (
    box_iou_loss,
    center_l1_loss,
    focal_loss,
    l1_loss,
    l1_loss_over_all_slots,
    pull_push_losses,
    rotation_loss,
    smooth_l1_loss,
)
from training.objectives import OBJECTIVES

Goldens = dict[str, Tensor]
CORNER_GOLDENS = ["unit_cornernet", "unit_triplet"]


@pytest.fixture(scope="module")
def load(project: Path) -> Callable[[str], Goldens]:
    def read(name: str) -> Goldens:
        path = project / "tests/upstream/goldens" / f"{name}.npz"
        with np.load(path, allow_pickle=False) as file:
            return {
                key: torch.from_numpy(np.asarray(file[key]))
                for key in file.files
                if file[key].dtype.kind != "U"
            }

    return read


@pytest.fixture(scope="module")
def goldens(load) -> Goldens:
    return load("unit_losses_xz")


def value_and_gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.clone().requires_grad_()
    value = loss(at)
    value.backward()
    return value.detach().double(), at.grad


def as_map(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map whose cells hold the rows (N, K, C), and the indices of the cells."""
    cells = torch.arange(rows.shape[1]).expand(rows.shape[:2])
    return rows.transpose(1, 2).unsqueeze(2), cells


def test_focal_loss_matches_upstream(goldens: Goldens) -> None:
    value, gradient = value_and_gradient(
        lambda logits: focal_loss(logits, goldens["gt"]), goldens["logit"]
    )
    torch.testing.assert_close(value, goldens["focal"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["focal_grad"], rtol=1e-4, atol=1e-6)


def test_focal_loss_without_centers_matches_upstream(goldens: Goldens) -> None:
    heatmap = goldens["gt"] * 0.99
    value, gradient = value_and_gradient(
        lambda logits: focal_loss(logits, heatmap), goldens["logit"]
    )
    torch.testing.assert_close(value, goldens["focal_nopos"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["focal_nopos_grad"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("file", CORNER_GOLDENS)
def test_focal_loss_of_corners_matches_upstream(load, file: str) -> None:
    goldens = load(file)
    value, gradient = value_and_gradient(
        lambda logits: focal_loss(logits, goldens["loss_gt"]), goldens["loss_logit"]
    )
    torch.testing.assert_close(value, goldens["focal"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["focal_grad"], rtol=1e-4, atol=1e-6)


def test_l1_at_centers_matches_upstream(goldens: Goldens) -> None:
    value, gradient = value_and_gradient(
        lambda values: center_l1_loss(
            values, goldens["ind"], goldens["mask"].float(), goldens["tgt"]
        ),
        goldens["out"],
    )
    torch.testing.assert_close(value, goldens["regl1"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["regl1_grad"], rtol=1e-5, atol=1e-7)


def test_l1_with_a_mask_per_value_matches_upstream(goldens: Goldens) -> None:
    value, gradient = value_and_gradient(
        lambda values: l1_loss(values, goldens["ind"], goldens["wmask"].float(), goldens["tgt"]),
        goldens["out"],
    )
    torch.testing.assert_close(value, goldens["regwl1"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["regwl1_grad"], rtol=1e-5, atol=1e-7)


def test_l1_over_all_slots_divides_the_upstream_sum_by_all_slots(goldens: Goldens) -> None:
    """There is no golden for this loss; it differs from ``center_l1_loss`` in its divisor only."""
    counted = goldens["mask"].sum().double() * 2 + 1e-4
    share = counted / goldens["tgt"].numel()
    value, gradient = value_and_gradient(
        lambda values: l1_loss_over_all_slots(
            values, goldens["ind"], goldens["mask"].float(), goldens["tgt"]
        ),
        goldens["out"],
    )
    torch.testing.assert_close(value, goldens["regl1"] * share, rtol=1e-5, atol=0)
    expected = (goldens["regl1_grad"] * share).float()
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_smooth_l1_matches_upstream(goldens: Goldens) -> None:
    value, gradient = value_and_gradient(
        lambda values: smooth_l1_loss(
            values, goldens["ind"], goldens["mask"].float(), goldens["tgt"]
        ),
        goldens["out"],
    )
    torch.testing.assert_close(value, goldens["regsl1"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["regsl1_grad"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("file", CORNER_GOLDENS)
def test_corner_offsets_match_upstream(load, file: str) -> None:
    goldens = load(file)

    def loss(rows: Tensor) -> Tensor:
        present = goldens["ae_mask"].float()
        return smooth_l1_loss(*as_map(rows), present, goldens["regr_gt"])

    value, gradient = value_and_gradient(loss, goldens["regr"])
    torch.testing.assert_close(value, goldens["regr_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["regr_grad"], rtol=1e-5, atol=1e-7)


def test_rotation_loss_matches_upstream(goldens: Goldens) -> None:
    value, gradient = value_and_gradient(
        lambda values: rotation_loss(
            values,
            goldens["ind"],
            goldens["rotmask"].float(),
            goldens["rotbin"],
            goldens["rotres"],
        ),
        goldens["rot_out"],
    )
    torch.testing.assert_close(value, goldens["rotloss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["rotloss_grad"], rtol=1e-5, atol=1e-7)


def test_rotation_loss_without_objects_is_finite() -> None:
    values = torch.zeros(1, 8, 2, 2, requires_grad=True)
    none = torch.zeros(1, 3, 2)
    loss = rotation_loss(values, none[..., 0].long(), none[..., 0], none.long(), none)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2 * np.log(2), rel=1e-6)
    assert values.grad.abs().max() == 0


@pytest.mark.parametrize("file", CORNER_GOLDENS)
@pytest.mark.parametrize(("index", "name"), [(0, "ae_pull"), (1, "ae_push")])
def test_pull_and_push_match_upstream(load, file: str, index: int, name: str) -> None:
    goldens = load(file)
    first, second = (goldens[f"ae_tag{i}"][..., 0].clone().requires_grad_() for i in (0, 1))
    loss = pull_push_losses(first, second, goldens["ae_mask"].float())[index]
    loss.backward()
    torch.testing.assert_close(loss.detach().double(), goldens[name], rtol=1e-5, atol=0)
    for corner, local in enumerate((first, second)):
        expected = goldens[f"{name}_g{corner}"][..., 0]
        torch.testing.assert_close(local.grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("objects", [0, 1])
def test_pull_and_push_of_a_single_object_are_zero(objects: int) -> None:
    present = (torch.arange(4) < objects).float()[None]
    pull, push = pull_push_losses(torch.ones(1, 4), torch.ones(1, 4), present)
    assert float(pull) == 0
    # 1/(1 + 1e-4) is subtracted from 1 and divided by 1e-4, as in the reference implementation.
    assert float(push) == pytest.approx(objects, abs=1e-2)


def generalized_iou(first: list[float], second: list[float]) -> float:
    """Return the GIoU (Rezatofighi et al. 2019, algorithm 1) of two boxes x1, y1, x2, y2."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)

    outer, inner = zip(first, second, strict=True), zip(first, second, strict=True)
    x1, y1, x2, y2 = (max(pair) if i < 2 else min(pair) for i, pair in enumerate(inner))
    common = area(x1, y1, x2, y2)
    union = area(*first) + area(*second) - common
    hull = area(*(min(pair) if i < 2 else max(pair) for i, pair in enumerate(outer)))
    return common / union - (hull - union) / hull


def test_iou_loss_is_the_mean_over_the_cells_around_each_center() -> None:
    # One object in a corner of the map, with 4 cells inside, one in the middle with 9.
    cells, sizes, offsets = [0, 4 * 8 + 5], [[2.0, 3.0], [4.0, 1.5]], [[0.25, 0.5], [0.75, 0.0]]
    generator = torch.Generator().manual_seed(1)
    maps = {
        "offset": torch.randn(1, 2, 6, 8, generator=generator),
        "size": 3 * torch.rand(1, 2, 6, 8, generator=generator) + 0.5,
    }
    unused = [0.0, 0.0]
    loss = box_iou_loss(
        maps,
        torch.tensor([[*cells, 0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
        torch.tensor([[*offsets, unused]]),
        torch.tensor([[*sizes, unused]]),
    )
    losses = []
    for cell, (width, height), (dx, dy) in zip(cells, sizes, offsets, strict=True):
        row, column = divmod(cell, 8)
        x, y = column + dx, row + dy
        target = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        for v in range(max(0, row - 1), row + 2):
            for u in range(max(0, column - 1), column + 2):
                x, y = ([u, v][i] + float(maps["offset"][0, i, v, u]) for i in (0, 1))
                w, h = (float(maps["size"][0, i, v, u]) for i in (0, 1))
                box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                losses.append(1 - generalized_iou(box, target))
    assert len(losses) == 13
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_iou_loss_without_objects_is_zero_and_of_negative_sizes_finite() -> None:
    maps = {name: torch.full((1, 2, 4, 4), -1.0, requires_grad=True) for name in ("offset", "size")}
    cell, target = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, 2)
    assert box_iou_loss(maps, cell, torch.zeros(1, 1), target, target).item() == 0
    loss = box_iou_loss(maps, cell, torch.ones(1, 1), target, target)
    loss.backward()
    assert 1 <= loss.item() <= 2
    assert all(values.grad.isfinite().all() for values in maps.values())


def test_the_iou_term_is_computed_only_if_it_has_a_weight() -> None:
    maps = {
        "heatmap": torch.zeros(1, 1, 4, 4),
        "offset": torch.zeros(1, 2, 4, 4),
        "size": torch.ones(1, 2, 4, 4),
    }
    targets = {
        "heatmap": torch.zeros(1, 1, 4, 4),
        "cells": torch.tensor([[5]]),
        "present": torch.ones(1, 1),
        "offset": torch.full((1, 1, 2), 0.5),
        "size": torch.full((1, 1, 2), 2.0),
    }
    boxes = OBJECTIVES["boxes"]
    without, terms = boxes.compute(maps, targets), boxes.reweighted({"iou": 2.0})
    assert without.keys() == boxes.weights.keys() == {"heatmap", "offset", "size"}
    assert boxes.names == terms.names == ("heatmap", "offset", "size", "iou")
    found = terms.compute(maps, targets)
    assert found.keys() == terms.weights.keys()
    assert terms.total(found) == boxes.total(without) + 2.0 * found["iou"]
