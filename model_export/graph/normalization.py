"""Pixel scaling before the first convolution, as in the upstream test code."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Normalization:
    """``(pixel * scale - mean) / std`` per channel, in the channel order of training."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: Literal["bgr", "rgb"] = "bgr"
    scale: float = 1 / 255
    mean_rgb: tuple[int, int, int] | None = None
    """Colour around images that stands for the mean, if the network was trained with padding of
    exactly the mean, which 8-bit pixels cannot express: pixels of this colour become 0."""

    def describe(self) -> str:
        """Return the values as a line of text."""
        mean, std = (" ".join(f"{value:g}" for value in each) for each in (self.mean, self.std))
        return f"{self.channel_order}, pixel * {self.scale:g}, mean {mean}, std {std}"


MMDETECTION = Normalization(
    mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), channel_order="rgb", scale=1.0
)
NORMALIZATIONS: Mapping[str, Normalization] = {
    # Data set classes of the upstream test.py, which produced the published accuracies.
    "coco": Normalization(
        mean=(0.40789654, 0.44719302, 0.47026115), std=(0.28863828, 0.27408164, 0.27809835)
    ),
    # The upstream demo.py uses the same numbers rounded.
    "coco-demo": Normalization(mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278)),
    # ImageNet's RGB numbers applied to BGR pixels: an upstream mistake that the Pascal VOC and
    # KITTI weights were trained with.
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # MMDetection's configurations.
    "mmdetection": MMDETECTION,
    # Its CornerNet pads images with the mean.
    "mmdetection-mean": replace(MMDETECTION, mean_rgb=(124, 116, 104)),
}


class PixelNormalization(nn.Module):
    """Converts uint8 RGB (N, H, W, 3) to the network input, float32 (N, 3, H, W)."""

    scale: Tensor
    shift: Tensor
    mean_rgb: Tensor | None

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.reverse_channels = normalization.channel_order == "bgr"
        mean = np.array(normalization.mean, np.float64)
        std = np.array(normalization.std, np.float64)
        # (pixel * scale - mean) / std as one multiplication and one addition, computed in float64
        # like the upstream normalization.
        self.register_buffer("scale", _per_channel(normalization.scale / std))
        self.register_buffer("shift", _per_channel(-mean / std))
        colour = normalization.mean_rgb
        self.register_buffer("mean_rgb", None if colour is None else _per_channel(np.array(colour)))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize ``images`` and move the channel axis to the front."""
        # The cast comes first: engines accept uint8 inputs only if nothing else reads them.
        pixels = images.to(torch.float32).permute(0, 3, 1, 2)
        ordered = pixels.flip(1) if self.reverse_channels else pixels
        normalized = ordered * self.scale + self.shift
        if self.mean_rgb is None:
            return normalized
        distances = (pixels - self.mean_rgb).abs().amax(1, keepdim=True)
        return torch.where(distances == 0, 0.0, normalized)


def _per_channel(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(1, 3, 1, 1)
