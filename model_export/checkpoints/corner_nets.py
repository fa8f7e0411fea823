"""Parameter names of the upstream *CornerNet* and *Keypoint Triplets* checkpoints.

The only place where their names stand, besides the backbone's (princeton-vl/CornerNet,
Duankaiwen/CenterNet). For ``tl``, ``br`` and ``ct`` they keep pooling under
``<keypoint>_cnvs.<stack>`` and heads under ``<keypoint>_<head>.<stack>``.
"""

from collections.abc import Mapping
from functools import cache

from model_export.checkpoints import hourglass
from model_export.checkpoints.key_mapping import KeyMapping

_KEYPOINTS: Mapping[str, str] = {"tl": "top_left", "br": "bottom_right", "ct": "center"}
_HEADS: Mapping[str, str] = {"heats": "heatmap", "tags": "embedding", "regrs": "offset"}
_HEAD_LAYERS: Mapping[str, str] = {"0.conv": "0", "1": "2"}
_POOLING_LAYERS: Mapping[str, str] = {
    "p1_conv1": "vertical_branch",
    "p2_conv1": "horizontal_branch",
    "p_conv1": "merge.0",
    "p_bn1": "merge.1",
    "conv1": "shortcut.0",
    "bn1": "shortcut.1",
    "conv2": "output",
    "look_conv1": "vertical_look",
    "look_conv2": "horizontal_look",
    "P1_look_conv": "vertical_join",
    "P2_look_conv": "horizontal_join",
}


@cache
def layout(stacks: int) -> KeyMapping:
    """Names of a network on ``stacks`` hourglasses, which predicts from the last one."""
    last = stacks - 1
    pooling = {
        f"{upstream}_cnvs.{last}.{their_layer}": f"pooling.{local}.{our_layer}"
        for upstream, local in _KEYPOINTS.items()
        for their_layer, our_layer in _POOLING_LAYERS.items()
    }
    heads = {
        f"{upstream}_{their_head}.{last}.{their_layer}": f"heads.{local}_{our_head}.{our_layer}"
        for upstream, local in _KEYPOINTS.items()
        for their_head, our_head in _HEADS.items()
        for their_layer, our_layer in _HEAD_LAYERS.items()
    }
    return KeyMapping(
        names={
            **{upstream: f"backbone.{local}" for upstream, local in hourglass.KEY_PREFIXES.items()},
            **pooling,
            **heads,
        },
        parts=hourglass.PARTS,
        # What the stacks before the last predict, which only the loss looks at.
        unused=rf"(tl|br|ct)_(cnvs|heats|tags|regrs)\.{hourglass.before(last)}\..+",
    )
