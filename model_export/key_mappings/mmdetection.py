"""Parameter names of MMDetection's CenterNet and CornerNet (versions 2 and 3)."""

import re
from collections.abc import Collection, Mapping
from functools import cache

from model_export.key_mappings import hourglass
from model_export.key_mappings.key_mapping import KeyMapping

_CENTER_HEADS: Mapping[str, str] = {"heatmap": "heatmap", "wh": "size", "offset": "offset"}
_KEYPOINTS: Mapping[str, str] = {"tl": "top_left", "br": "bottom_right"}
_CORNER_HEADS: Mapping[str, str] = {"heat": "heatmap", "emb": "embedding", "off": "offset"}
_POOLING_LAYERS: Mapping[str, str] = {
    "direction1_conv": "vertical_branch",
    "direction2_conv": "horizontal_branch",
    "aftpool_conv.conv": "merge.0",
    "aftpool_conv.bn": "merge.1",
    "conv1.conv": "shortcut.0",
    "conv1.bn": "shortcut.1",
    "conv2": "output",
}


def _convolution_and_norm(upstream: str, local: str, first: int = 0) -> dict[str, str]:
    """Map both layers of a ``ConvModule`` to consecutive layers of a ``Sequential``."""
    return {f"{upstream}.conv": f"{local}.{first}", f"{upstream}.bn": f"{local}.{first + 1}"}


_NECK: Mapping[str, str] = {
    upstream: local
    for stage in range(5)  # 3 by default
    for step in range(2)
    for upstream, local in _convolution_and_norm(
        f"neck.deconv_layers.{2 * stage + step}", "neck", 6 * stage + 3 * step
    ).items()
}

CENTER_NET = KeyMapping(
    names={
        "backbone": "backbone",
        **_NECK,
        **{
            f"bbox_head.{upstream}_head.{layer}": f"heads.{local}.{layer}"
            for upstream, local in _CENTER_HEADS.items()
            for layer in ("0", "2")
        },
    },
    parts={"conv_offset": "offsets_and_mask"},
    framework="mmdetection",
)
"""``CenterNet`` with the backbone ``ResNet`` and the neck ``CTResNetNeck``."""


@cache
def corner_net_keys(stacks: int) -> KeyMapping:
    """Return the mapping of ``CornerNet`` with ``HourglassNet`` and heads on the last stack."""
    last = stacks - 1
    merges = {
        upstream: local
        for stack in range(last)
        for module, merge in (("conv1x1s", "merge_inputs"), ("remap_convs", "merge_outputs"))
        for upstream, local in _convolution_and_norm(
            f"backbone.{module}.{stack}", f"backbone.{merge}.{stack}"
        ).items()
    }
    pooling = {
        f"bbox_head.{upstream}_pool.{last}.{upstream_layer}": f"pooling.{local}.{layer}"
        for upstream, local in _KEYPOINTS.items()
        for upstream_layer, layer in _POOLING_LAYERS.items()
    }
    heads = {
        f"bbox_head.{upstream}_{upstream_head}.{last}.{upstream_layer}.conv": (
            f"heads.{local}_{head}.{layer}"
        )
        for upstream, local in _KEYPOINTS.items()
        for upstream_head, head in _CORNER_HEADS.items()
        for upstream_layer, layer in (("0", "0"), ("1", "2"))
    }
    return KeyMapping(
        names={
            "backbone.stem.0": "backbone.stem.0",
            "backbone.stem.1.0": "backbone.stem.1",
            "backbone.hourglass_modules": "backbone.hourglasses",
            "backbone.inters": "backbone.merged",
            "backbone.out_convs": "backbone.outputs",
            **merges,
            **pooling,
            **heads,
        },
        parts={**hourglass.PARTS, "downsample": "shortcut"},
        # Predictions of the earlier stacks, which only the training loss uses.
        unused=rf"bbox_head\.(tl|br)_(pool|heat|emb|off)\.{hourglass.earlier_stacks(last)}\..+",
        framework="mmdetection",
    )


_SUPPORTED = (
    "CenterNet (ResNet, CTResNetNeck, CenterNetHead) and CornerNet (HourglassNet, CornerHead)"
)
_UPDATE_HEAD = (
    "bbox_head.conv_cls.weight",
    "bbox_head.conv_reg.weight",
    "bbox_head.scales.0.scale",
)
_OTHER_DETECTORS = re.compile(
    r"(bbox_head\.(?!heatmap_head|wh_head|offset_head|(tl|br)_(pool|heat|emb|off)\.)|rpn_head|roi_head)"
)


def describe_mmdetection(state: Collection[str]) -> str | None:
    """Return why a detector of MMDetection is not supported; None if ``state`` is of none."""
    if (
        all(key in state for key in _UPDATE_HEAD)
        and "bbox_head.conv_centerness.weight" not in state
    ):
        return (
            "the checkpoint is MMDetection's centernet-update (CenterNetUpdateHead, the first "
            "stage of CenterNet2). In spite of its name it is another detector: it predicts the "
            "distances to the four sides at five levels of a feature pyramid, and needs NMS. Of "
            f"MMDetection's detectors, {_SUPPORTED} are supported."
        )
    if any(_OTHER_DETECTORS.match(key) for key in state):
        return f"the checkpoint is of another detector of MMDetection. Supported are {_SUPPORTED}."
    return None
