"""How pixel values are scaled before the first convolution, as the upstream test code does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Normalization:
    """``(pixel * scale - mean) / std`` per channel, in the order of the training pixels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: Literal["bgr", "rgb"] = "bgr"
    scale: float = 1 / 255


NORMALIZATIONS: Mapping[str, Normalization] = {
    # Data set classes of the upstream test.py; the published accuracies come from these numbers.
    "coco": Normalization(
        mean=(0.40789654, 0.44719302, 0.47026115), std=(0.28863828, 0.27408164, 0.27809835)
    ),
    # The upstream demo.py uses the same numbers rounded.
    "coco-demo": Normalization(mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278)),
    # ImageNet's RGB numbers applied to BGR pixels: the upstream mistake, and what the Pascal VOC
    # and KITTI weights were trained with.
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
