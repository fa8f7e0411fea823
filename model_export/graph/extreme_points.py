"""Extreme points and the centers between them (*ExtremeNet*, Zhou et al. 2019, section 4.1).

The graph finds the peaks of the four heatmaps, and gathers the scores of all centers that groups of
them can have. The groups themselves, K * K * K * K, are formed after the graph: only few of them
are possible, which tensors of fixed shapes cannot make use of.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from model_export.graph.heads import Head
from model_export.graph.peaks import CELL_CENTER, Peaks, cell_positions, divide, gather, top_peaks

SIDES = ("top", "left", "bottom", "right")
"""Kinds of extreme points, in the order of the outputs."""

_CENTER = {"center_heatmap": Head(1, per="class", heatmap=True)}
_OFFSETS = {f"{side}_offset": Head(2, optional=True) for side in SIDES}
HEADS: Mapping[str, Head] = {
    **{f"{side}_heatmap": Head(1, per="class", heatmap=True) for side in SIDES},
    **_CENTER,
    **_OFFSETS,
}
AGNOSTIC_HEADS: Mapping[str, Head] = {
    **{f"{side}_heatmap": Head(1, heatmap=True) for side in SIDES},
    **_CENTER,
    **_OFFSETS,
}
"""Heads of class-agnostic models (``--agnostic_ex`` of the reference implementation)."""


def decode_extreme_points(
    maps: Mapping[str, Tensor],
    top_k: int,
    *,
    agnostic: bool = False,
    columns: int | None = None,
    edge_aggregation: float = 0.0,
) -> tuple[Tensor, ...]:
    """Decode the outputs of :class:`model_package.ExtremePointsDecoder`, in its order.

    ``maps`` are float32 (N, C, H, W) by head, heatmaps in [0, 1]; ``top_k``: peaks of each heatmap;
    ``columns``: length of the rows of centers, at least H and W, by default the longer of them;
    ``edge_aggregation``: weight of :func:`aggregate_edges`, 0 for none.
    """
    columns = columns or max(maps["center_heatmap"].shape[2:])
    if edge_aggregation:
        maps = _aggregate(maps, edge_aggregation, columns)
    sides = [_find_peaks(maps, side, top_k) for side in SIDES]
    peaks = [found for found, _, _ in sides]
    cells = torch.stack([positions for _, positions, _ in sides], dim=1)  # (N, 4, K, 2)
    return (
        torch.stack([found.scores for found in peaks], dim=1),
        torch.stack([found.class_ids for found in peaks], dim=1).to(torch.int32),
        cells.to(torch.int32),
        torch.stack([points for _, _, points in sides], dim=1),
        *_gather_centers(
            maps["center_heatmap"],
            (peaks[0].class_ids, peaks[2].class_ids),
            (cells[:, 0, :, 1], cells[:, 2, :, 1]),
            columns,
            agnostic,
        ),
    )


def _find_peaks(maps: Mapping[str, Tensor], side: str, top_k: int) -> tuple[Peaks, Tensor, Tensor]:
    """Return the peaks of one heatmap, their cells and their points, both (N, K, 2)."""
    heatmap, offset = maps[f"{side}_heatmap"], maps.get(f"{side}_offset")
    peaks = top_peaks(heatmap, top_k)
    # Only edge aggregation makes scores above 1. The reference implementation clips them before it
    # selects peaks, so that it selects arbitrary ones of those.
    peaks = peaks._replace(scores=peaks.scores.clamp(max=1.0))
    positions = cell_positions(peaks.cells, heatmap.shape[3])
    shift = CELL_CENTER if offset is None else gather(offset, peaks.cells)
    return peaks, positions, positions + shift


def _gather_centers(
    heatmap: Tensor,
    class_ids: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
    columns: int,
    agnostic: bool,
) -> tuple[Tensor, ...]:
    """Return the scores, (N, K, K, columns), and in agnostic models the classes of all centers.

    ``class_ids`` and ``rows``: int64 (N, K) each, of the top and of the bottom peaks.
    """
    height, width = heatmap.shape[2:]
    tops, bottoms = (values.unsqueeze(axis) for values, axis in zip(rows, (2, 1), strict=True))
    middle, _ = divide(tops + bottoms, 2)  # (N, K, K)
    best = None
    if agnostic:
        heatmap, best = heatmap.max(dim=1, keepdim=True)
    row = class_ids[0].unsqueeze(2) * height + middle
    column = torch.arange(columns, device=heatmap.device).clamp(max=width - 1)
    indices = (row.unsqueeze(3) * width + column).flatten(1)
    is_pair = (class_ids[0].unsqueeze(2) == class_ids[1].unsqueeze(1)) & (tops <= bottoms)
    scores = heatmap.flatten(1).gather(1, indices).reshape(*middle.shape, -1)
    scores = torch.where(is_pair.unsqueeze(3), scores, 0.0)
    if best is None:
        return (scores,)
    of_centers = best.flatten(1).gather(1, indices).reshape(*middle.shape, -1)
    return scores, of_centers.to(torch.int32)


def _aggregate(maps: Mapping[str, Tensor], weight: float, longest: int) -> dict[str, Tensor]:
    """Aggregate the top and the bottom heatmap along rows, the others along columns."""
    axes = {"top": 3, "left": 2, "bottom": 3, "right": 2}
    return {
        **maps,
        **{
            f"{side}_heatmap": aggregate_edges(maps[f"{side}_heatmap"], axis, weight, longest)
            for side, axis in axes.items()
        },
    }


def aggregate_edges(heatmap: Tensor, axis: int, weight: float, longest: int) -> Tensor:
    """Add to each cell the scores of the runs on both sides that rise towards it.

    *ExtremeNet*, section 4.3: the extreme points of an edge that is parallel to a side of the box
    have many weak peaks; ``weight`` times their sum makes one of them stand out. ``axis``: 3 along
    rows, 2 along columns, at most ``longest`` cells. Takes and returns float32 (N, C, H, W);
    results may exceed 1.
    """
    rows = heatmap if axis == 3 else heatmap.transpose(2, 3)
    sums = _rising_sums(rows, longest) + _rising_sums(rows.flip(3), longest).flip(3)
    return heatmap + weight * (sums if axis == 3 else sums.transpose(2, 3))


def _rising_sums(rows: Tensor, longest: int) -> Tensor:
    """Sum the cells before each cell, as far back as the scores do not rise.

    A scan in log2(W) steps, since ONNX has no segmented cumulative sum: after the step ``distance``
    a cell holds the sum of up to ``2 * distance`` cells. ``longest`` bounds W, which is dynamic.
    """
    length = rows.shape[3]
    rises = functional.pad((rows[..., 1:] >= rows[..., :-1]).to(rows.dtype), (1, 0))
    sums, distance = rows, 1
    while distance < longest:
        sums = sums + rises * functional.pad(sums, (distance, 0))[..., :length]
        rises = rises * functional.pad(rises, (distance, 0))[..., :length]
        distance *= 2
    return sums - rows
