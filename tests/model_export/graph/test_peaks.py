"""Peaks and boxes: comparison with upstream, and the rules of section 4 of the paper."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.graph.peaks import boxes_at_peaks, keep_peaks, top_peaks

MAPS = ("hm", "wh", "reg")


@pytest.fixture(scope="module")
def goldens(upstream: Path) -> dict[str, NDArray]:
    with np.load(upstream / "goldens" / "unit_decode_xz.npz") as file:
        return {key: file[key] for key in file.files if key.startswith(("ct_", "tie_"))}


def _rows(heatmap: Tensor, offset: Tensor, size: Tensor, top_k: int) -> NDArray:
    """Return the upstream columns: x1, y1, x2, y2, score, class; (N, K, 6)."""
    peaks = top_peaks(heatmap, top_k)
    _, centers, sizes = boxes_at_peaks(peaks, offset, size)
    columns = [
        centers - sizes / 2,
        centers + sizes / 2,
        peaks.scores.unsqueeze(2),
        peaks.class_ids.unsqueeze(2),
    ]
    return torch.cat(columns, dim=2).numpy()


def _sorted(rows: NDArray) -> NDArray:
    """Sort rows independently of the order of equal scores."""
    return rows[np.lexsort(rows.round(3).T)]


@pytest.mark.parametrize(("name", "top_k"), [("ct_K100", 100), ("ct_K17_noreg", 17)])
def test_boxes_match_upstream(goldens: dict[str, NDArray], name: str, top_k: int) -> None:
    heatmap, size, offset = (torch.from_numpy(goldens[f"ct_in_{map_}"]) for map_ in MAPS)
    if name.endswith("noreg"):  # without an offset head, upstream uses the center of the cell
        offset = torch.full_like(offset, 0.5)
    rows = _rows(heatmap, offset, size, top_k)
    for local, upstream in zip(rows, goldens[name], strict=True):
        assert (np.diff(local[:, 4]) <= 0).all()
        np.testing.assert_allclose(_sorted(local), _sorted(upstream), rtol=0, atol=1e-5)


def test_equal_neighbours_are_all_kept(goldens: dict[str, NDArray]) -> None:
    heatmap = torch.from_numpy(goldens["tie_in_hm"])
    np.testing.assert_array_equal(keep_peaks(heatmap).numpy(), goldens["tie_nms"])


def test_boxes_match_upstream_with_equal_scores(goldens: dict[str, NDArray]) -> None:
    heatmap, size, offset = (torch.from_numpy(goldens[f"tie_in_{map_}"]) for map_ in MAPS)
    local, upstream = _rows(heatmap, offset, size, 13)[0], goldens["tie_K13"][0]
    peaks = int((goldens["tie_nms"] > 0).sum())
    assert peaks == 12  # the thirteenth row is an arbitrary cell with score 0
    np.testing.assert_allclose(_sorted(local[:peaks]), _sorted(upstream[:peaks]), rtol=0, atol=1e-5)
    assert local[peaks, 4] == upstream[peaks, 4] == 0


def test_peaks_at_the_border_are_found() -> None:
    heatmap = torch.full((1, 1, 4, 6), 0.1)
    heatmap[0, 0, 0, 0], heatmap[0, 0, 3, 5] = 0.9, 0.8
    peaks = top_peaks(heatmap, 2)
    assert peaks.cells.tolist() == [[0, 3 * 6 + 5]]
    torch.testing.assert_close(peaks.scores, torch.tensor([[0.9, 0.8]]))


def test_peaks_are_sorted_over_all_classes() -> None:
    generator = torch.Generator().manual_seed(7)
    heatmap = torch.rand(2, 5, 8, 12, generator=generator)
    peaks = top_peaks(heatmap, 20)
    kept = keep_peaks(heatmap)
    for image in range(2):
        best = kept[image].flatten().sort(descending=True).values[:20]
        assert torch.equal(peaks.scores[image], best)
        found = kept[image].flatten(1)[peaks.class_ids[image], peaks.cells[image]]
        assert torch.equal(found, best)
