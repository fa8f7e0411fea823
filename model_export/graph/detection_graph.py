"""What is exported: pixels in, peaks out, with a network in between."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from model_export.graph.heads import activate, average_with_flip
from model_export.graph.normalization import Normalization
from model_export.tasks import TASKS, Task


class PixelNormalization(nn.Module):
    """uint8 RGB (N, H, W, 3) to the float32 (N, 3, H, W) that the network was trained on."""

    scale: Tensor
    shift: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.reverse_channels = normalization.channel_order == "bgr"
        mean = np.array(normalization.mean, np.float64)
        std = np.array(normalization.std, np.float64)
        # (x / 255 - mean) / std as one multiplication and one addition; worked out in float64,
        # because the authors normalise in float64.
        self.register_buffer("scale", _per_channel(normalization.scale / std))
        self.register_buffer("shift", _per_channel(-mean / std))

    def forward(self, images: Tensor) -> Tensor:
        """Scale ``images`` and move their channels to the front."""
        # The cast stands first: engines take uint8 inputs only if nothing else reads them.
        pixels = images.to(torch.float32).permute(0, 3, 1, 2)
        if self.reverse_channels:
            pixels = pixels.flip(1)
        return pixels * self.scale + self.shift


def _per_channel(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(1, 3, 1, 1)


class DetectionGraph(nn.Module):
    """Normalisation, network, peaks: the outputs of the task's decoder.

    Takes ``images``, uint8 RGB (N, H, W, 3). Returns, best score first, what the task's
    ``decoder().outputs()`` says, for boxes: scores float32 (N, K), class ids int32 (N, K), centers
    and sizes float32 (N, K, 2), x before y, in cells of the output map (*Objects as Points*,
    section 4).

    With ``flip``, the network also sees the flipped images, and what it says of both is averaged
    before the peaks are taken; ``keypoint_pairs`` are the keypoints that a flip exchanges.
    """

    def __init__(
        self,
        network: nn.Module,
        normalization: Normalization,
        top_k: int,
        task: Task = TASKS["boxes"],
        flip: bool = False,
        keypoint_pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self.normalize = PixelNormalization(normalization)
        self.network = network
        self.top_k = top_k
        self.task = task
        self.flip = flip
        self.keypoint_pairs = tuple(keypoint_pairs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect; K peaks per image."""
        return self.pick(self.maps(images))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """What the heads say of ``images``, by name; scores are in [0, 1]."""
        pixels = self.normalize(images)
        return self._averaged_maps(pixels) if self.flip else self._maps(pixels)

    def pick(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Take the peaks of :meth:`maps`."""
        return self.task.pick(maps, self.top_k)

    def _maps(self, pixels: Tensor) -> dict[str, Tensor]:
        return activate(self.network(pixels), self.task.heads)

    def _averaged_maps(self, pixels: Tensor) -> dict[str, Tensor]:
        count = pixels.shape[0]
        both = self._maps(torch.cat((pixels, pixels.flip(3))))
        maps = {name: values[:count] for name, values in both.items()}
        flip = {name: values[count:] for name, values in both.items()}
        return average_with_flip(maps, flip, self.task.heads, self.keypoint_pairs)
