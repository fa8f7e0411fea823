"""Table of the supported architectures, by the name that ``--arch`` takes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, Self

from torch import Tensor, nn

from model_export.errors import ConfigError
from model_export.key_mappings import corner_nets, mmdetection, objects_as_points
from model_export.key_mappings.key_mapping import KeyMapping
from model_export.networks import hourglass, squeeze
from model_export.networks.aggregation import DeformableNeck, PlainNeck
from model_export.networks.center_point import CenterPointNetwork
from model_export.networks.corner_networks import (
    KeypointNetwork,
    corner_net_pooling,
    keypoint_triplets_pooling,
)
from model_export.networks.deformable import DeformableConvolution
from model_export.networks.dla import DLABackbone
from model_export.networks.resnet import (
    BasicBlock,
    Bottleneck,
    DeconvolutionNeck,
    ResNetBackbone,
    conv3x3,
)
from model_export.networks.timm_backbone import LateralNeck, TimmBackbone, timm_features

OUTPUT_STRIDE = 4
"""Input pixels per cell of the output maps by default (*Objects as Points*, section 3: R = 4)."""

INPUT_MULTIPLE = 32
"""Smallest total stride of a backbone; input height and width must be multiples of it."""

_BACKBONE_STRIDE = 32
_DECONVOLUTIONS = (2, 3, 4)
"""Accepted numbers of transposed convolutions, for output strides of 8, 4 and 2."""
_MAX_STACKS = 4
"""Most hourglasses that are built to compare a checkpoint with them."""

_SLIM_WIDTHS, _SLIM_DEPTHS = (48, 48, 64, 64, 64, 96), (1, 1, 1, 1, 1, 1)

OBJECTS_AS_POINTS_TASKS = (
    "boxes",
    "poses",
    "boxes_3d",
    "poses_and_boxes_3d",
    "extreme_points",
    "extreme_points_agnostic",
)
"""Tasks of the *Objects as Points* code base, keys of :data:`model_export.tasks.TASKS`."""


class Architecture(Protocol):
    """A network architecture and the parameter names of its checkpoints."""

    @property
    def key_mapping(self) -> KeyMapping:
        """Mapping between checkpoint keys and network keys."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Supported tasks, keys of :data:`model_export.tasks.TASKS`; the first is the default."""

    @property
    def input_multiple(self) -> Literal[32, 128]:
        """Total stride; height and width of the input must be multiples of it."""

    @property
    def output_stride(self) -> int:
        """Input pixels per cell of the output maps."""

    @property
    def head_hidden_channels(self) -> int:
        """Default number of channels between a head's two convolutions."""

    def variant(self, state: Mapping[str, Tensor]) -> "Architecture":
        """Return the variant that the names and shapes of ``state`` (upstream keys) determine.

        Numbers of layers and channels that ``state`` does not determine stay as they are.
        """

    def build(
        self, head_channels: Mapping[str, int], hidden_channels: Mapping[str, int] | None = None
    ) -> nn.Module:
        """Build the network with newly initialised weights.

        ``head_channels``: channels of the output, by head name. ``hidden_channels``: channels
        between the two convolutions of a head, by default :attr:`head_hidden_channels`; 0 for heads
        of one convolution.
        """


class _FixedArchitecture:
    """An architecture without variants."""

    output_stride: int = OUTPUT_STRIDE

    def variant(self, state: Mapping[str, Tensor]) -> Self:
        """Return the architecture itself."""
        del state
        return self


def _hidden_channels(
    heads: Iterable[str], found: Mapping[str, int] | None, default: int
) -> dict[str, int]:
    return {**dict.fromkeys(heads, default), **(found or {})}


@dataclass(frozen=True)
class ResNetArchitecture:
    """ResNet backbone and a neck of transposed convolutions, whose number and widths may vary."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    neck_channels: tuple[int, ...] = (256, 256, 256)
    neck_convolution: Callable[[int, int], nn.Module] | None = None
    """Makes the convolution before each transposed one; see :class:`DeconvolutionNeck`."""
    head_hidden_channels: int = 64
    input_multiple: Literal[32] = 32
    key_mapping: KeyMapping = objects_as_points.RESNET
    tasks: tuple[str, ...] = OBJECTS_AS_POINTS_TASKS

    @property
    def output_stride(self) -> int:
        """Input pixels per cell of the output maps."""
        return _BACKBONE_STRIDE >> len(self.neck_channels)

    def variant(self, state: Mapping[str, Tensor]) -> "ResNetArchitecture":
        """Return the variant with the transposed convolutions of ``state``, if 2 to 4."""
        layers = 3 if self.neck_convolution is None else 6  # per transposed convolution
        channels: list[int] = []
        while len(channels) <= max(_DECONVOLUTIONS):
            key = f"neck.{layers * len(channels) + 1}.weight"  # of a batch normalization
            weight = state.get(self.key_mapping.to_checkpoint_key(key))
            if weight is None or weight.ndim != 1:
                break
            channels += weight.shape
        if len(channels) not in _DECONVOLUTIONS:
            return self
        return replace(self, neck_channels=tuple(channels))

    def build(
        self, head_channels: Mapping[str, int], hidden_channels: Mapping[str, int] | None = None
    ) -> CenterPointNetwork:
        """Build the network with newly initialised weights; see :meth:`Architecture.build`.

        ``head_channels`` holds the output channels of each head: ``heatmap`` (number of classes),
        ``size`` (2), ``offset`` (2), and the further heads of the task.
        """
        backbone = ResNetBackbone(self.block, self.depths, self.widths)
        neck = DeconvolutionNeck(backbone.out_channels, self.neck_channels, self.neck_convolution)
        return CenterPointNetwork(
            backbone,
            neck,
            neck.out_channels,
            head_channels,
            _hidden_channels(head_channels, hidden_channels, self.head_hidden_channels),
        )


@dataclass(frozen=True)
class TimmArchitecture(_FixedArchitecture):
    """A timm model and a :class:`LateralNeck` with the widths of ``resdcn_*``.

    The neck doubles the size of the coarsest feature map until it has the stride of the output.
    """

    model: str
    """Name in timm, such as ``mobilenetv3_large_100``."""
    head_hidden_channels: int = 64
    input_multiple: Literal[32] = 32
    output_stride: int = OUTPUT_STRIDE
    key_mapping: KeyMapping = objects_as_points.TIMM
    tasks: tuple[str, ...] = OBJECTS_AS_POINTS_TASKS

    def build(
        self, head_channels: Mapping[str, int], hidden_channels: Mapping[str, int] | None = None
    ) -> CenterPointNetwork:
        """Build the network with newly initialised weights; nothing is downloaded."""
        features = timm_features(self.model, self.output_stride)
        doublings = (features[-1].stride // self.output_stride).bit_length() - 1
        neck = LateralNeck(features, (256, 128, 64)[-doublings:])
        return CenterPointNetwork(
            TimmBackbone(self.model, features),
            neck,
            neck.out_channels,
            head_channels,
            _hidden_channels(head_channels, hidden_channels, self.head_hidden_channels),
        )


@dataclass(frozen=True)
class DLAArchitecture(_FixedArchitecture):
    """DLA-34 backbone with plain or deformable deep aggregation."""

    neck: type[PlainNeck] | type[DeformableNeck]
    head_hidden_channels: int = 256
    input_multiple: Literal[32] = 32
    output_stride: int = OUTPUT_STRIDE
    key_mapping: KeyMapping = objects_as_points.DLA
    tasks: tuple[str, ...] = OBJECTS_AS_POINTS_TASKS

    def build(
        self, head_channels: Mapping[str, int], hidden_channels: Mapping[str, int] | None = None
    ) -> CenterPointNetwork:
        """Build the network with newly initialised weights."""
        return CenterPointNetwork(
            DLABackbone(),
            self.neck(),
            self.neck.out_channels,
            head_channels,
            _hidden_channels(head_channels, hidden_channels, self.head_hidden_channels),
        )


@dataclass(frozen=True)
class HourglassArchitecture:
    """Stacked hourglasses, whose number may vary, with prediction heads on the last stack."""

    stacks: int
    widths: Sequence[int] = hourglass.WIDTHS
    depths: Sequence[int] = hourglass.DEPTHS
    input_multiple: Literal[128] = hourglass.INPUT_MULTIPLE
    output_stride: int = OUTPUT_STRIDE
    tasks: tuple[str, ...] = OBJECTS_AS_POINTS_TASKS

    @property
    def head_hidden_channels(self) -> int:
        """Width of a stack's feature map."""
        return self.widths[0]

    @property
    def key_mapping(self) -> KeyMapping:
        """Mapping between checkpoint keys and network keys."""
        return objects_as_points.hourglass_keys(self.stacks)

    def variant(self, state: Mapping[str, Tensor]) -> "HourglassArchitecture":
        """Return the variant with the number of stacks in ``state``, if 1 to 4."""
        outputs = (f"backbone.outputs.{stack}.conv.weight" for stack in range(_MAX_STACKS + 1))
        stacks = sum(self.key_mapping.to_checkpoint_key(key) in state for key in outputs)
        return replace(self, stacks=stacks) if 1 <= stacks <= _MAX_STACKS else self

    def build(
        self, head_channels: Mapping[str, int], hidden_channels: Mapping[str, int] | None = None
    ) -> CenterPointNetwork:
        """Build the network with newly initialised weights."""
        return CenterPointNetwork(
            hourglass.StackedHourglass(self.stacks, self.widths, self.depths),
            hourglass.LastStack(),
            self.widths[0],
            head_channels,
            _hidden_channels(head_channels, hidden_channels, self.head_hidden_channels),
        )


@dataclass(frozen=True)
class CornerArchitecture(_FixedArchitecture):
    """Stacked hourglasses with one corner or center pooling block per kind of keypoint."""

    stacks: int
    """Two stacks are Hourglass-104, one is Hourglass-52."""
    pooling: Callable[[int], Mapping[str, nn.Module]]
    tasks: tuple[str, ...]
    widths: Sequence[int] = hourglass.WIDTHS
    depths: Sequence[int] = hourglass.DEPTHS
    keys: Callable[[int], KeyMapping] = corner_nets.corner_keys
    """Returns the mapping of a number of stacks."""
    layers: hourglass.HourglassLayers = hourglass.RESIDUAL_LAYERS
    head_kernel: int = 3
    """Side of the first convolution of a head."""
    input_multiple: Literal[128] = hourglass.INPUT_MULTIPLE
    output_stride: int = OUTPUT_STRIDE

    @property
    def head_hidden_channels(self) -> int:
        """Width of a stack's feature map."""
        return self.widths[0]

    @property
    def key_mapping(self) -> KeyMapping:
        """Mapping between checkpoint keys and network keys."""
        return self.keys(self.stacks)

    def build(
        self, head_channels: Mapping[str, int], hidden_channels: Mapping[str, int] | None = None
    ) -> KeypointNetwork:
        """Build the network with newly initialised weights; ``head_channels`` by head name."""
        return KeypointNetwork(
            hourglass.StackedHourglass(self.stacks, self.widths, self.depths, self.layers),
            self.pooling(self.widths[0]),
            self.widths[0],
            head_channels,
            _hidden_channels(head_channels, hidden_channels, self.head_hidden_channels),
            self.head_kernel,
        )


_RESNETS: Mapping[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
_TAPERED_CHANNELS = (256, 128, 64)
# The convolutions before the upsampling, by the end of the name.
_MMDETECTION_CONVOLUTIONS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "": conv3x3,
    "_dcnv2": partial(DeformableConvolution, bias=False),
}

ARCHITECTURES: Mapping[str, Architecture] = {
    **{f"res_{layers}": ResNetArchitecture(*_RESNETS[layers]) for layers in _RESNETS},
    **{
        f"resdcn_{layers}": ResNetArchitecture(
            *_RESNETS[layers],
            neck_channels=_TAPERED_CHANNELS,
            neck_convolution=DeformableConvolution,
        )
        for layers in (18, 101)
    },
    "dla_34": DLAArchitecture(DeformableNeck),
    "dlav0_34": DLAArchitecture(PlainNeck),
    "hourglass": HourglassArchitecture(stacks=2),
    "cornernet_hourglass52": CornerArchitecture(1, corner_net_pooling, ("corner_pairs",)),
    "cornernet_hourglass104": CornerArchitecture(2, corner_net_pooling, ("corner_pairs",)),
    "cornernet_squeeze": CornerArchitecture(
        2,
        corner_net_pooling,
        ("corner_pairs",),
        squeeze.WIDTHS,
        squeeze.DEPTHS,
        keys=corner_nets.corner_net_lite_keys,
        layers=squeeze.LAYERS,
        head_kernel=1,
        output_stride=squeeze.OUTPUT_STRIDE,
    ),
    "triplet_centernet52": CornerArchitecture(1, keypoint_triplets_pooling, ("corner_triplets",)),
    "triplet_centernet104": CornerArchitecture(2, keypoint_triplets_pooling, ("corner_triplets",)),
    # Networks of MMDetection. Their names follow those of its configurations.
    **{
        f"mmdet_centernet_r{layers}{ending}": ResNetArchitecture(
            *_RESNETS[layers],
            neck_channels=_TAPERED_CHANNELS,
            neck_convolution=convolution,
            key_mapping=mmdetection.CENTER_NET,
            tasks=("boxes",),
        )
        for layers in _RESNETS
        for ending, convolution in _MMDETECTION_CONVOLUTIONS.items()
    },
    **{
        f"mmdet_cornernet_hourglass{layers}": CornerArchitecture(
            stacks, corner_net_pooling, ("corner_pairs",), keys=mmdetection.corner_net_keys
        )
        for layers, stacks in ((52, 1), (104, 2))
    },
    # For CPUs, not in the papers: res_18 with a tenth of its parameters and arithmetic.
    "res_18_slim": ResNetArchitecture(
        BasicBlock,
        (2, 2, 2, 2),
        widths=(32, 64, 96, 128),
        neck_channels=(64, 64, 64),
        head_hidden_channels=32,
    ),
    # Hourglass with less than a fiftieth of the parameters.
    "hourglass_slim": HourglassArchitecture(2, _SLIM_WIDTHS, _SLIM_DEPTHS),
    # A single narrow stack, small enough to train poses on two CPU cores.
    "hourglass_tiny": HourglassArchitecture(1, (32, 32, 48, 64, 64, 96), _SLIM_DEPTHS),
    "cornernet_slim": CornerArchitecture(
        2, corner_net_pooling, ("corner_pairs",), _SLIM_WIDTHS, _SLIM_DEPTHS
    ),
    "triplet_slim": CornerArchitecture(
        2, keypoint_triplets_pooling, ("corner_triplets",), _SLIM_WIDTHS, _SLIM_DEPTHS
    ),
}


TIMM_PREFIX = "timm/"
"""Names of architectures whose backbone is a timm model begin with it."""


def find_architecture(name: str) -> Architecture:
    """Return the architecture of this name: a key of :data:`ARCHITECTURES`, or ``timm/MODEL``.

    Raises :class:`ConfigError` for an unknown name, and where timm is missing or has no such model.
    """
    if name.startswith(TIMM_PREFIX):
        model = name.removeprefix(TIMM_PREFIX)
        timm_features(model, OUTPUT_STRIDE)
        return TimmArchitecture(model)
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"there is no architecture {name!r}. Accepted: {', '.join(ARCHITECTURES)}, and "
            f"{TIMM_PREFIX}MODEL with the name of a model of timm."
        )
    return ARCHITECTURES[name]


def box_head_channels(num_classes: int) -> dict[str, int]:
    """Return the channels of each head of the 2D box detector."""
    return {"heatmap": num_classes, "size": 2, "offset": 2}
