from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.losses import center_l1_loss, center_losses, focal_loss


@pytest.fixture(scope="module")
def goldens(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "upstream/goldens/unit_losses_xz.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def value_and_gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.clone().requires_grad_()
    value = loss(at)
    value.backward()
    return value.detach().double(), at.grad


def test_focal_loss_is_the_authors(goldens: dict[str, Tensor]) -> None:
    value, gradient = value_and_gradient(
        lambda logits: focal_loss(logits, goldens["gt"]), goldens["logit"]
    )
    torch.testing.assert_close(value, goldens["focal"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["focal_grad"], rtol=1e-4, atol=1e-6)


def test_focal_loss_without_centers_is_the_authors(goldens: dict[str, Tensor]) -> None:
    heatmap = goldens["gt"] * 0.99
    value, gradient = value_and_gradient(
        lambda logits: focal_loss(logits, heatmap), goldens["logit"]
    )
    torch.testing.assert_close(value, goldens["focal_nopos"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["focal_nopos_grad"], rtol=1e-4, atol=1e-6)


def test_l1_at_centers_is_the_authors(goldens: dict[str, Tensor]) -> None:
    present = goldens["mask"].float()
    value, gradient = value_and_gradient(
        lambda values: center_l1_loss(values, goldens["ind"], present, goldens["tgt"]),
        goldens["out"],
    )
    torch.testing.assert_close(value, goldens["regl1"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, goldens["regl1_grad"], rtol=1e-5, atol=1e-7)


def test_a_batch_without_objects_has_finite_losses() -> None:
    maps = {
        "heatmap": torch.full((1, 2, 4, 4), -2.0, requires_grad=True),
        "size": torch.zeros(1, 2, 4, 4),
        "offset": torch.zeros(1, 2, 4, 4),
    }
    targets = {
        "heatmap": torch.zeros(1, 2, 4, 4),
        "cells": torch.zeros(1, 3, dtype=torch.int64),
        "present": torch.zeros(1, 3),
        "size": torch.zeros(1, 3, 2),
        "offset": torch.zeros(1, 3, 2),
    }
    losses = center_losses(maps, targets)
    assert losses.size == 0
    assert losses.offset == 0
    assert torch.isfinite(losses.total)


def test_total_weighs_size_by_a_tenth() -> None:
    ones = torch.ones(1, 2, 1, 1)
    maps = {"heatmap": torch.zeros(1, 1, 1, 1), "size": 3 * ones, "offset": ones}
    targets = {
        "heatmap": torch.ones(1, 1, 1, 1),
        "cells": torch.zeros(1, 1, dtype=torch.int64),
        "present": torch.ones(1, 1),
        "size": torch.zeros(1, 1, 2),
        "offset": torch.zeros(1, 1, 2),
    }
    losses = center_losses(maps, targets)
    expected = -0.25 * np.log(0.5) + 1.0 + 0.1 * 3.0
    assert float(losses.total) == pytest.approx(expected, rel=1e-3)
