"""Convolutional backbones of the library ``timm`` (PyTorch Image Models), by name."""

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from model_export.errors import ConfigError

_LARGEST_STRIDE = 32
_SMALLEST_STRIDE = 8
_EXAMPLE_PX = (96, 128)
"""Height and width of an input on which a backbone is tried: not square, multiples of 32."""


@dataclass(frozen=True)
class TimmFeatures:
    """The feature map of a timm model that a detector uses.

    Attributes:
        index: its index among the feature maps of the model.
        channels: its channels.
        stride: input pixels per cell, 8, 16 or 32.
    """

    index: int
    channels: int
    stride: int


class TimmBackbone(nn.Module):
    """A timm model without its classifier, with the initialization of timm.

    float32 (N, 3, H, W) to (N, channels, H / stride, W / stride).
    """

    def __init__(self, model: str, features: TimmFeatures) -> None:
        super().__init__()
        self.features = _create(model, (features.index,))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.features(images)[0])


@cache
def timm_features(model: str) -> TimmFeatures:
    """Return the deepest feature map of ``model`` with a stride of at most 32.

    No weights are allocated. Raises :class:`ConfigError` if timm is not installed, has no model
    of this name, or the model is not a convolutional network for inputs of any size.
    """
    timm = _import_timm()
    # Checked here, because create_model() connects to a hub for names such as hf-hub:user/model.
    if model not in timm.list_models():
        raise ConfigError(
            f"timm {timm.__version__} has no model {model!r}. Accepted: a name that "
            "timm.list_models() returns, without a tag of pretrained weights, such as "
            "timm/mobilenetv3_large_100."
        )
    height, width = _EXAMPLE_PX
    try:
        with torch.device("meta"):
            info = cast(Any, _create(model, None)).feature_info
            strides, channels = info.reduction(), info.channels()
            index = max(i for i, stride in enumerate(strides) if stride <= _LARGEST_STRIDE)
            found = TimmFeatures(index, channels[index], strides[index])
            maps = TimmBackbone(model, found)(torch.zeros(1, 3, height, width))
    except Exception as error:  # models without feature maps raise errors of many types
        raise _unsuitable(model, f"{type(error).__name__}: {error}"[:200]) from error
    expected = (1, found.channels, height // found.stride, width // found.stride)
    if tuple(maps.shape) != expected or found.stride < _SMALLEST_STRIDE:
        raise _unsuitable(
            model, f"the deepest feature map of a {width}x{height} input is {tuple(maps.shape)}"
        )
    return found


def _create(model: str, indices: tuple[int, ...] | None) -> nn.Module:
    options = {} if indices is None else {"out_indices": indices}
    network: nn.Module = _import_timm().create_model(
        model, pretrained=False, features_only=True, **options
    )
    return network


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backbones of timm need {error.name}, which is not installed. "
            "Run pip install 'centernet-serving[timm]'."
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"timm cannot be imported: {error}. Its dependency torchvision must be built for the "
            f"installed PyTorch ({torch.__version__}); install both from the same index."
        ) from error
    return timm


def _unsuitable(model: str, reason: str) -> ConfigError:
    return ConfigError(
        f"the timm model {model!r} cannot be a backbone: {reason}. Accepted: convolutional "
        "networks for inputs of any size, with a feature map of stride 8, 16 or 32, such as "
        "MobileNet, EfficientNet, RegNet and ConvNeXt."
    )
