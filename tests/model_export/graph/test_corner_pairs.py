"""Corner pairing: comparison with upstream on random maps, and tests of each rule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.graph.corner_pairs import (
    IMPOSSIBLE,
    PAIR_HEADS,
    PAIRS,
    TRIPLET_HEADS,
    Corners,
    decode_corner_pairs,
    decode_corner_triplets,
    find_corners,
    pair_corners,
)
from model_export.graph.heads import activate
from model_package import CornerPairsDecoder, CornerTripletsDecoder

KINDS = {"tl": "top_left", "br": "bottom_right", "ct": "center"}
HEADS = {"heat": "heatmap", "tag": "embedding", "regr": "offset"}

Golden = dict[str, NDArray]


@pytest.fixture(scope="module", params=["unit_cornernet", "unit_triplet"])
def golden(request: pytest.FixtureRequest, upstream: Path) -> Golden:
    with np.load(upstream / "goldens" / f"{request.param}.npz") as file:
        return {key: file[key] for key in file.files if key.startswith("dec_")}


def _maps(golden: Golden) -> dict[str, Tensor]:
    """Return the upstream maps by network head name, heatmaps activated."""
    raw = {
        f"{KINDS[kind]}_{HEADS[head]}": torch.from_numpy(values)
        for key, values in golden.items()
        if key.startswith("dec_in_")
        for kind, head in [key.removeprefix("dec_in_").split("_")]
    }
    return activate(raw, TRIPLET_HEADS)


def _possible_rows(outputs: tuple[Tensor, ...], image: int) -> NDArray:
    """Return the upstream columns: x1, y1, x2, y2, score, both corner scores, class."""
    scores, class_ids, boxes, corner_scores = (output[image].numpy() for output in outputs)
    rows = np.column_stack((boxes, scores, corner_scores, class_ids))
    return _sorted(rows[scores > IMPOSSIBLE])


def _sorted(rows: NDArray) -> NDArray:
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize(
    ("key", "top_k", "pairs", "distance"),
    [("dec_K40", 40, 1000, 0.5), ("dec_K30_nd300", 30, 300, 0.3)],
)
def test_corner_pairs_match_upstream(
    golden: Golden, key: str, top_k: int, pairs: int, distance: float
) -> None:
    maps = _maps(golden)
    corners = [find_corners(maps, kind, top_k) for kind in ("top_left", "bottom_right")]
    outputs = pair_corners(*corners, pairs, distance)
    assert outputs[0].shape == (2, pairs)
    for image, expected in enumerate(golden[key]):
        possible = expected[expected[:, 4] > -1]
        assert len(possible) > 5
        np.testing.assert_array_equal(_possible_rows(outputs, image), _sorted(possible))


def test_centers_match_upstream(upstream: Path) -> None:
    with np.load(upstream / "goldens" / "unit_triplet.npz") as file:
        golden = {key: file[key] for key in file.files if key.startswith("dec_")}
    *_, centers, scores, class_ids = decode_corner_triplets(_maps(golden), 40)
    for image, expected in enumerate(golden["dec_K40_center"]):
        found = np.column_stack((centers[image], class_ids[image], scores[image]))
        np.testing.assert_array_equal(_sorted(found), _sorted(expected))


def _corners(points: list[tuple[float, float]], **fields: list[float]) -> Corners:
    count = len(points)
    return Corners(
        torch.tensor([fields.get("scores", [0.5] * count)]),
        torch.tensor([fields.get("class_ids", [0] * count)]),
        torch.tensor([points]),
        torch.tensor([fields.get("embeddings", [0.0] * count)]),
    )


@pytest.mark.parametrize(
    ("point", "fields", "possible"),
    [
        ((5.0, 6.0), {}, True),
        ((2.0, 3.0), {}, True),  # an empty box is accepted, as upstream
        ((1.9, 6.0), {}, False),
        ((5.0, 2.9), {}, False),
        ((5.0, 6.0), {"class_ids": [1]}, False),
        ((5.0, 6.0), {"embeddings": [0.5]}, True),
        ((5.0, 6.0), {"embeddings": [-0.51]}, False),
    ],
)
def test_only_consistent_corners_form_pairs(
    point: tuple[float, float], fields: dict[str, list[float]], possible: bool
) -> None:
    top_left = _corners([(2.0, 3.0)], scores=[0.8])
    bottom_right = _corners([point], **{"scores": [0.4], **fields})
    scores, class_ids, boxes, corner_scores = pair_corners(top_left, bottom_right, 1)
    assert scores.item() == pytest.approx(0.6 if possible else IMPOSSIBLE)
    assert class_ids.item() == 0
    assert class_ids.dtype == torch.int32
    assert boxes[0, 0].tolist() == pytest.approx([2.0, 3.0, *point])
    assert corner_scores[0, 0].tolist() == pytest.approx([0.8, 0.4])


def test_pairs_are_sorted_by_score() -> None:
    top_left = _corners([(0.0, 0.0), (1.0, 1.0)], scores=[0.9, 0.1])
    bottom_right = _corners([(5.0, 5.0), (6.0, 6.0), (7.0, 7.0)], scores=[0.8, 0.4, 0.2])
    scores, _, boxes, _ = pair_corners(top_left, bottom_right, 4)
    np.testing.assert_allclose(scores[0], [0.85, 0.65, 0.55, 0.45], rtol=1e-6)
    assert boxes[0, :, 2].tolist() == [5.0, 6.0, 7.0, 5.0]
    assert boxes[0, 3].tolist() == [1.0, 1.0, 5.0, 5.0]


def test_outputs_match_the_decoder_specs() -> None:
    generator = torch.Generator().manual_seed(5)
    maps = {
        name: torch.rand(2, head.count(3, 0), 32, 48, generator=generator)
        for name, head in TRIPLET_HEADS.items()
    }
    fields = {"output_stride": 4, "pairs": PAIRS, "top_k": 100, "score_threshold": 0.3}
    for outputs, decoder in (
        (decode_corner_pairs({name: maps[name] for name in PAIR_HEADS}, 100),
         CornerPairsDecoder(**fields)),
        (decode_corner_triplets(maps, 70), CornerTripletsDecoder(**fields, centers=70)),
    ):  # fmt: skip
        for output, spec in zip(outputs, decoder.outputs(), strict=True):
            assert output.shape == (2, *spec.shape)
            assert str(output.dtype) == f"torch.{spec.dtype}"
