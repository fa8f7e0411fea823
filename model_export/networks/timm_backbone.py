"""Convolutional backbones of the library ``timm`` (PyTorch Image Models), by name."""

from collections.abc import Sequence
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
    """A feature map of a timm model that a detector uses.

    Attributes:
        index: its index among the feature maps of the model.
        channels: its channels.
        stride: input pixels per cell.
    """

    index: int
    channels: int
    stride: int


class TimmBackbone(nn.Module):
    """A timm model without its classifier, with the initialization of timm.

    float32 (N, 3, H, W) to one map (N, channels, H / stride, W / stride) per entry of ``features``.
    """

    def __init__(self, model: str, features: Sequence[TimmFeatures]) -> None:
        super().__init__()
        self.features = _create(model, tuple(found.index for found in features))

    def forward(self, images: Tensor) -> list[Tensor]:
        return cast(list[Tensor], self.features(images))


class LateralNeck(nn.Module):
    """Transposed convolutions from the coarsest map, to which the finer maps are added.

    As in *Feature Pyramid Networks* (Lin et al. 2017, section 3), each finer map passes a 1x1
    convolution. ``features`` are the maps of the backbone, finest first; ``channels`` are those
    after each doubling of height and width. Strides without a map are only upsampled.
    """

    def __init__(self, features: Sequence[TimmFeatures], channels: Sequence[int]) -> None:
        super().__init__()
        finer = {found.stride: found.channels for found in features[:-1]}
        in_channels, stride = features[-1].channels, features[-1].stride
        self.upsampling, self.lateral = nn.ModuleList(), nn.ModuleDict()
        for out_channels in channels:
            stride //= 2
            self.upsampling.append(
                nn.Sequential(
                    nn.ConvTranspose2d(
                        in_channels, out_channels, 4, stride=2, padding=1, bias=False
                    ),
                    nn.BatchNorm2d(out_channels),
                )
            )
            if stride in finer:
                self.lateral[str(len(self.upsampling) - 1)] = nn.Sequential(
                    nn.Conv2d(finer[stride], out_channels, 1, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
            in_channels = out_channels
        self.out_channels = in_channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, x = maps
        for index, upsampling in enumerate(self.upsampling):
            x = upsampling(x)
            if str(index) in self.lateral:
                x = x + self.lateral[str(index)](finer.pop())
            x = nn.functional.relu(x)
        return x


@cache
def timm_features(model: str, finest_stride: int) -> tuple[TimmFeatures, ...]:
    """Return the feature maps of ``model`` with strides from ``finest_stride`` to 32, finest first.

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
            sizes = enumerate(zip(info.channels(), info.reduction(), strict=True))
            # Of several maps of a stride, the last.
            of_stride = {
                stride: TimmFeatures(i, channels, stride) for i, (channels, stride) in sizes
            }
            found = tuple(
                of_stride[stride]
                for stride in sorted(of_stride)
                if finest_stride <= stride <= _LARGEST_STRIDE
            )
            if not found or found[-1].stride < _SMALLEST_STRIDE:
                raise ValueError(f"the strides of its feature maps are {sorted(of_stride)}")
            maps = TimmBackbone(model, found)(torch.zeros(1, 3, height, width))
    except Exception as error:  # models without feature maps raise errors of many types
        raise _unsuitable(model, f"{type(error).__name__}: {error}"[:200]) from error
    for one, features in zip(reversed(found), reversed(maps), strict=True):
        expected = (1, one.channels, height // one.stride, width // one.stride)
        if tuple(features.shape) != expected:
            raise _unsuitable(
                model, f"a feature map of a {width}x{height} input is {tuple(features.shape)}"
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
