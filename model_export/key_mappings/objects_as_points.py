"""Parameter names of the upstream *Objects as Points* checkpoints (xingyizhou/CenterNet)."""

import re
from collections.abc import Collection, Mapping
from functools import cache

from model_export.key_mappings import hourglass
from model_export.key_mappings.key_mapping import KeyMapping

HEADS: Mapping[str, str] = {
    "hm": "heatmap",
    "wh": "size",
    "reg": "offset",
    "hps": "keypoint_offsets",
    "hm_hp": "keypoint_heatmap",
    "hp_offset": "keypoint_heatmap_offset",
    "dep": "depth",
    "dim": "dimensions",
    "rot": "rotation",
    "hm_t": "top_heatmap",
    "hm_l": "left_heatmap",
    "hm_b": "bottom_heatmap",
    "hm_r": "right_heatmap",
    "hm_c": "center_heatmap",
    "reg_t": "top_offset",
    "reg_l": "left_offset",
    "reg_b": "bottom_offset",
    "reg_r": "right_offset",
}
"""Upstream head names to network head names."""

OTHER_HEADS: Mapping[str, str] = {
    "tracking": "displacements since the previous image",
    "ltrb": "distances to the sides of boxes",
    "ltrb_amodal": "distances to the sides of boxes that extend beyond the image",
    "amodel_offset": "offsets to the centers of 3D boxes",
    "nuscenes_att": "attributes of nuScenes",
    "velocity": "velocities",
    "conv_weight": "weights of the convolutions that predict masks",
    "seg_feat": "features for masks",
}
"""What heads of forks predict that are not supported: CenterTrack, CenterNet-CondInst."""

NEEDED_HEADS = ("amodel_offset",)
"""Those of :data:`OTHER_HEADS` without which the results of supported heads are wrong."""

_EARLIER_INPUTS = re.compile(r"base\.pre_(img|hm)_layer")


def describe_tracker(state: Collection[str]) -> str | None:
    """Return why a tracker of CenterTrack is not supported; None if ``state`` is of none."""
    if not any(_EARLIER_INPUTS.match(key) for key in state):
        return None
    return (
        "the checkpoint is a tracker of CenterTrack, whose network also takes the previous image "
        "or the heatmap of its objects. Only networks with one image as input are supported."
    )


def _heads(first: str, second: str) -> dict[str, str]:
    """Map the two convolutions of every head, stored upstream as ``first`` and ``second``."""
    return {
        f"{upstream}.{position}": f"heads.{local}.{layer}"
        for upstream, local in HEADS.items()
        for position, layer in ((first, "0"), (second, "2"))
    }


_HEADS: Mapping[str, str] = {
    **_heads("0", "2"),
    # Without a hidden layer (``head_conv`` 0), a head is a single convolution.
    **{upstream: f"heads.{local}" for upstream, local in HEADS.items()},
}


_RESNET_PREFIXES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
_PARTS = {"conv_offset_mask": "offsets_and_mask"}

RESNET = KeyMapping(
    names={
        **{prefix: f"backbone.{prefix}" for prefix in _RESNET_PREFIXES},
        "deconv_layers": "neck",
        **_HEADS,
    },
    parts=_PARTS,
)
"""``res_*`` and ``resdcn_*``."""

TIMM = KeyMapping(
    names={
        "backbone": "backbone.features",
        "neck": "neck",
        **_HEADS,
    }
)
"""``timm/...``: this project's layout, with timm's own names under ``backbone``."""

DLA = KeyMapping(
    names={"base": "backbone", "dla_up": "neck", "ida_up": "neck.final", **_HEADS},
    parts={
        **_PARTS,
        "base_layer": "stem",
        "actf": "activation",
        **{f"proj_{index}": f"project_{index}" for index in (1, 2, 3)},
    },
    # The ImageNet classifier, and projections of two outer trees whose inner trees have their own.
    unused=r"base\.(fc\.(weight|bias)|level[34]\.project\.[01]\.\w+)",
)
"""``dla_34`` and ``dlav0_34``."""


@cache
def hourglass_keys(stacks: int) -> KeyMapping:
    """Return the mapping of ``hourglass``; every stack has heads, the last stack's are used."""
    last = stacks - 1
    return KeyMapping(
        names={
            **{upstream: f"backbone.{local}" for upstream, local in hourglass.KEY_PREFIXES.items()},
            **_heads(f"{last}.0.conv", f"{last}.1"),
        },
        parts=hourglass.PARTS,
        # Heads of the earlier stacks, which only the training loss uses.
        unused=rf"({'|'.join(HEADS)})\.{hourglass.earlier_stacks(last)}\.(0\.conv|1)\.(weight|bias)",
    )


to_network_key = RESNET.to_network_key
to_checkpoint_key = RESNET.to_checkpoint_key
