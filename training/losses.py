"""Losses of *Objects as Points* (section 3), as the authors coded them."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

OFFSET_WEIGHT = 1.0
SIZE_WEIGHT = 0.1
_PROBABILITY_MARGIN = 1e-4


def focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Penalty-reduced focal loss (equation 1, alpha 2, beta 4) of raw (N, C, H, W) maps.

    The sigmoid is kept away from 0 and 1, which also stops the gradient of saturated cells. The sum
    is divided by the number of centers in the batch, or by nothing when there is none.
    """
    probability = logits.sigmoid().clamp(_PROBABILITY_MARGIN, 1 - _PROBABILITY_MARGIN)
    is_center = heatmap.eq(1).to(logits.dtype)
    at_centers = probability.log() * (1 - probability) ** 2 * is_center
    elsewhere = (1 - probability).log() * probability**2 * (1 - heatmap) ** 4 * (1 - is_center)
    return -(at_centers.sum() + elsewhere.sum()) / is_center.sum().clamp(min=1)


def center_l1_loss(values: Tensor, cells: Tensor, present: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error at the center cells (equations 2 and 3).

    Args:
        values: float32 (N, 2, H, W), a head's map.
        cells: int64 (N, K), flat center cells.
        present: float32 (N, K), 1 where the row describes an object.
        target: float32 (N, K, 2).
    """
    index = cells[:, None, :].expand(-1, values.shape[1], -1)
    at_centers = values.flatten(2).gather(2, index).transpose(1, 2)  # (N, K, 2)
    mask = present[..., None].expand_as(target)
    return ((at_centers - target).abs() * mask).sum() / (mask.sum() + 1e-4)


@dataclass(frozen=True)
class CenterLosses:
    """The three scalar losses of one batch."""

    heatmap: Tensor
    offset: Tensor
    size: Tensor

    @property
    def total(self) -> Tensor:
        """Weighted sum (equation 4)."""
        return self.heatmap + OFFSET_WEIGHT * self.offset + SIZE_WEIGHT * self.size


def center_losses(maps: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> CenterLosses:
    """Compare the network's raw maps with batched :class:`~training.targets.CenterTargets`."""
    cells, present = targets["cells"], targets["present"]
    return CenterLosses(
        heatmap=focal_loss(maps["heatmap"], targets["heatmap"]),
        offset=center_l1_loss(maps["offset"], cells, present, targets["offset"]),
        size=center_l1_loss(maps["size"], cells, present, targets["size"]),
    )
