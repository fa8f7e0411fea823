"""Decoding of extreme points inside the graph, against plain restatements."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model_export.graph.extreme_points import SIDES, aggregate_edges, decode_extreme_points

CLASSES, HEIGHT, WIDTH, PEAKS, COLUMNS = 3, 9, 7, 5, 12


def make_maps(classes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    shape = (2, classes, HEIGHT, WIDTH)
    maps = {f"{side}_heatmap": torch.rand(shape, generator=generator) for side in SIDES}
    maps |= {
        f"{side}_offset": torch.rand(2, 2, HEIGHT, WIDTH, generator=generator) for side in SIDES
    }
    maps["center_heatmap"] = torch.rand(2, CLASSES, HEIGHT, WIDTH, generator=generator)
    return maps


@pytest.mark.parametrize("agnostic", [False, True])
def test_peaks_and_centers(agnostic: bool) -> None:
    maps = make_maps(1 if agnostic else CLASSES)
    outputs = decode_extreme_points(maps, PEAKS, agnostic=agnostic, columns=COLUMNS)
    scores, class_ids, cells, points, centers, *of_centers = (one[1].numpy() for one in outputs)
    assert len(of_centers) == agnostic
    for side, name in enumerate(SIDES):
        heatmap, offset = (maps[f"{name}_{kind}"][1].numpy() for kind in ("heatmap", "offset"))
        x, y = cells[side].T
        np.testing.assert_array_equal(heatmap[class_ids[side], y, x], scores[side])
        np.testing.assert_allclose(points[side], cells[side] + offset[:, y, x].T, rtol=1e-6)
        assert (np.diff(scores[side]) <= 0).all()
    heatmap = maps["center_heatmap"][1].numpy()
    compared = 0
    for top in range(PEAKS):
        for bottom in range(PEAKS):
            rows = cells[0, top, 1], cells[2, bottom, 1]
            found = centers[top, bottom, :WIDTH]
            if class_ids[0, top] != class_ids[2, bottom] or rows[0] > rows[1]:
                assert not found.any()
                continue
            of_row = heatmap[:, sum(rows) // 2]
            expected = of_row.max(axis=0) if agnostic else of_row[class_ids[0, top]]
            np.testing.assert_array_equal(found, expected)
            if agnostic:
                best = of_centers[0][top, bottom, :WIDTH]
                np.testing.assert_array_equal(best, of_row.argmax(axis=0))
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("axis", [2, 3])
def test_edge_aggregation(axis: int) -> None:
    heatmap = torch.rand(1, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    heatmap[0, 0, :, 2:4] = 0.5  # equal neighbours count as rising
    found = aggregate_edges(heatmap, axis, 0.1, longest=HEIGHT).numpy()
    lines = np.moveaxis(heatmap.double().numpy(), axis, 3)
    expected = lines.copy()
    for index in np.ndindex(*lines.shape[:3]):
        line = lines[index]
        for cell in range(len(line)):
            for step in (-1, 1):
                at = cell
                while 0 <= at + step < len(line) and line[at + step] <= line[at]:
                    at += step
                    expected[(*index, cell)] += 0.1 * line[at]
    np.testing.assert_allclose(found, np.moveaxis(expected, 3, axis), atol=1e-6)
    assert found.max() > heatmap.max()
