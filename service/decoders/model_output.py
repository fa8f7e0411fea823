"""What a decoder is given of one image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from service.imaging.geometry import ImageTransform


@dataclass(frozen=True)
class ModelOutput:
    """One network input's row of outputs, without the batch axis, and where the image lay."""

    outputs: Mapping[str, NDArray[Any]]
    placement: ImageTransform
