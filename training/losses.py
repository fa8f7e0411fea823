"""Loss functions, as in the reference implementations of the three papers.

Maps are raw network outputs, float32 (N, C, H, W). They are read at ``cells``, int64 (N, K), flat
indices ``y * W + x``. ``present``, float32 (N, K), is 1 for slots with an object and 0 for
unused slots.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from model_export.graph.peaks import cell_positions, gather

PUSH_MARGIN = 1.0
"""Margin between the embeddings of two objects (*CornerNet*, section 3.3: Delta)."""

_PROBABILITY_MARGIN = 1e-4
_EPSILON = 1e-4  # of the reference implementation, against division by zero


def focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Compute the penalty-reduced focal loss (*CornerNet*, equation 1, alpha 2, beta 4).

    The sigmoid is clamped, which also stops the gradient of saturated cells. The sum is divided by
    the number of keypoints in the batch, at least 1.
    """
    probability = logits.sigmoid().clamp(_PROBABILITY_MARGIN, 1 - _PROBABILITY_MARGIN)
    is_center = heatmap.eq(1).to(logits.dtype)
    at_centers = probability.log() * (1 - probability) ** 2 * is_center
    elsewhere = (1 - probability).log() * probability**2 * (1 - heatmap) ** 4 * (1 - is_center)
    return -(at_centers.sum() + elsewhere.sum()) / is_center.sum().clamp(min=1)


def l1_loss(values: Tensor, cells: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Compute the mean L1 error over values whose ``mask`` is 1; mask, target: (N, K, C)."""
    errors = (gather(values, cells) - target).abs() * mask
    return errors.sum() / (mask.sum() + _EPSILON)


def center_l1_loss(values: Tensor, cells: Tensor, present: Tensor, target: Tensor) -> Tensor:
    """Compute the L1 loss (*Objects as Points*, equations 2 and 3); target: (N, K, C)."""
    return l1_loss(values, cells, present[..., None].expand_as(target), target)


def l1_loss_over_all_slots(
    values: Tensor, cells: Tensor, present: Tensor, target: Tensor
) -> Tensor:
    """Compute the summed L1 error at objects, divided by the number of values in all slots.

    The reference implementation uses this loss for 3D boxes, with 50 slots. Its value depends on
    the number of slots.
    """
    errors = (gather(values, cells) - target).abs() * present[..., None]
    return errors.sum() / target.numel()


def box_iou_loss(
    maps: Mapping[str, Tensor],
    cells: Tensor,
    present: Tensor,
    target_offset: Tensor,
    target_size: Tensor,
) -> Tensor:
    """Compute the mean of 1 - GIoU of the boxes at each center and its eight neighbours.

    Args:
        maps: ``offset`` and ``size``, (N, 2, H, W), in cells.
        cells: int64 (N, K), the cells of the centers.
        present: float32 (N, K).
        target_offset: (N, K, 2), center minus its cell.
        target_size: (N, K, 2).

    GIoU is that of Rezatofighi et al. 2019. The neighbours learn the same box as the center, as in
    TTFNet (Liu et al. 2020, section 3.3): a peak that is one cell beside the center moves no box.
    """
    height, width = maps["size"].shape[2:]
    steps = torch.arange(-1, 2, device=cells.device)
    neighbours = torch.cartesian_prod(steps, steps)  # (9, 2) of x and y
    centers = cell_positions(cells, width)  # (N, K, 2)
    positions = (centers[:, :, None] + neighbours).flatten(1, 2)  # (N, K * 9, 2)
    x, y = positions.unbind(dim=2)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    counted = inside * present.repeat_interleave(len(neighbours), dim=1)
    flat = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    middle = positions + gather(maps["offset"], flat)
    half = gather(maps["size"], flat).clamp(min=_EPSILON) / 2
    target_middle = (centers + target_offset).repeat_interleave(len(neighbours), dim=1)
    target_half = target_size.repeat_interleave(len(neighbours), dim=1).clamp(min=_EPSILON) / 2
    first, last = middle - half, middle + half
    target_first, target_last = target_middle - target_half, target_middle + target_half
    common = torch.minimum(last, target_last) - torch.maximum(first, target_first)
    enclosing = torch.maximum(last, target_last) - torch.minimum(first, target_first)
    intersection = common.clamp(min=0).prod(dim=2)
    union = 4 * (half.prod(dim=2) + target_half.prod(dim=2)) - intersection
    hull = enclosing.prod(dim=2)
    giou = intersection / union - (hull - union) / hull
    return ((1 - giou) * counted).sum() / counted.sum().clamp(min=1)


def smooth_l1_loss(values: Tensor, cells: Tensor, present: Tensor, target: Tensor) -> Tensor:
    """Compute the smooth L1 loss per object (*CornerNet*, equation 3); target: (N, K, C)."""
    mask = present[..., None]
    predicted = gather(values, cells) * mask
    error = functional.smooth_l1_loss(predicted, target * mask, reduction="sum")
    return error / (present.sum() + _EPSILON)


def rotation_loss(
    values: Tensor, cells: Tensor, present: Tensor, bins: Tensor, residuals: Tensor
) -> Tensor:
    """Compute the multi-bin loss (*Objects as Points*, section 4.1; Mousavian et al. 2017).

    Args:
        values: (N, 8, H, W): for each of two bins two logits, sine and cosine.
        cells: int64 (N, K).
        present: float32 (N, K).
        bins: int64 (N, K, 2), 1 where the angle lies in the bin; they overlap.
        residuals: float32 (N, K, 2), angle minus the center of the bin, in radians.

    As in the reference implementation, the cross-entropy of the logits is averaged over all slots,
    with the logits of unused slots set to 0; the errors of sine and cosine are averaged over the
    objects in the bin.
    """
    rows = gather(values, cells).flatten(0, 1)  # (N * K, 8)
    counted = rows * present.reshape(-1, 1)
    total = rows.new_zeros(())
    for index, first in enumerate((0, 4)):
        inside = bins[..., index].flatten()
        residual = residuals[..., index].flatten()
        target = torch.stack((residual.sin(), residual.cos()), dim=1)
        predicted = rows[:, first + 2 : first + 4]
        error = functional.smooth_l1_loss(predicted, target, reduction="none").sum(dim=1)
        total = total + functional.cross_entropy(counted[:, first : first + 2], inside)
        total = total + (error * inside).sum() / inside.sum().clamp(min=1)
    return total


def pull_push_losses(
    top_left: Tensor, bottom_right: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute pull and push losses of embeddings (*CornerNet*, equations 4 and 5).

    ``top_left`` and ``bottom_right`` are the embeddings, float32 (N, K), of both corners of each
    object. Pull is averaged over the objects of an image, push over its pairs of objects; both
    are summed over images.
    """
    objects = present.sum(dim=1, keepdim=True)  # (N, 1)
    mean = (top_left + bottom_right) / 2
    apart = (top_left - mean).square() + (bottom_right - mean).square()
    pull = (apart / (objects + _EPSILON) * present).sum()
    both = present[:, :, None] * present[:, None, :]  # (N, K, K)
    distances = (mean[:, :, None] - mean[:, None, :]).abs()
    objects = objects[:, :, None]
    # Every object is also paired with itself; the second term removes that contribution.
    closeness = functional.relu(PUSH_MARGIN - distances) - 1 / (objects + _EPSILON)
    pairs = (objects - 1) * objects + _EPSILON
    return pull, (closeness / pairs * both).sum()
