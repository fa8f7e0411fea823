"""The exported graph: pixel normalization, network and head decoding."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model_export.graph.heads import activate, average_with_flip
from model_export.graph.normalization import Normalization, PixelNormalization
from model_export.tasks import TASKS, Task


class DetectionGraph(nn.Module):
    """Pixel normalization, network and decoding to the outputs of the task's decoder.

    Takes ``images``, uint8 RGB (N, H, W, 3). Returns the outputs of the task's
    ``decoder.outputs()``, by descending score; for boxes: scores float32 (N, K), class ids int32
    (N, K), centers and sizes float32 (N, K, 2), x before y, in cells of the output map (*Objects
    as Points*, section 4).

    With ``flip``, the network also runs on the horizontally flipped images, and the maps of both
    are averaged before decoding; ``keypoint_pairs`` are the keypoint indices that a flip swaps.
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
        """Return the top-K detections of each image."""
        return self.decode(self.maps(images))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the activated maps by head, float32 (N, C, H/4, W/4); scores are in [0, 1]."""
        pixels = self.normalize(images)
        return self._averaged_maps(pixels) if self.flip else self._maps(pixels)

    def decode(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Decode the result of :meth:`maps`."""
        return self.task.decode(maps, self.top_k)

    def _maps(self, pixels: Tensor) -> dict[str, Tensor]:
        return activate(self.network(pixels), self.task.heads)

    def _averaged_maps(self, pixels: Tensor) -> dict[str, Tensor]:
        count = pixels.shape[0]
        both = self._maps(torch.cat((pixels, pixels.flip(3))))
        maps = {name: values[:count] for name, values in both.items()}
        flipped_maps = {name: values[count:] for name, values in both.items()}
        return average_with_flip(maps, flipped_maps, self.task.heads, self.keypoint_pairs)
