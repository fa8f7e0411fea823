"""Parameter names of the upstream *CornerNet* and *Keypoint Triplets* checkpoints.

Sources: princeton-vl/CornerNet and Duankaiwen/CenterNet. For the keypoints ``tl``, ``br`` and
``ct``, pooling blocks are stored under ``<keypoint>_cnvs.<stack>`` and heads under
``<keypoint>_<head>.<stack>``.
"""

from collections.abc import Mapping
from functools import cache

from model_export.key_mappings import hourglass
from model_export.key_mappings.key_mapping import KeyMapping

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
def corner_keys(stacks: int) -> KeyMapping:
    """Return the mapping for ``stacks`` hourglasses with heads on the last one."""
    last = stacks - 1
    pooling = {
        f"{upstream}_cnvs.{last}.{upstream_layer}": f"pooling.{local}.{layer}"
        for upstream, local in _KEYPOINTS.items()
        for upstream_layer, layer in _POOLING_LAYERS.items()
    }
    heads = {
        f"{upstream}_{upstream_head}.{last}.{upstream_layer}": f"heads.{local}_{head}.{layer}"
        for upstream, local in _KEYPOINTS.items()
        for upstream_head, head in _HEADS.items()
        for upstream_layer, layer in _HEAD_LAYERS.items()
    }
    return KeyMapping(
        names={
            **{upstream: f"backbone.{local}" for upstream, local in hourglass.KEY_PREFIXES.items()},
            **pooling,
            **heads,
        },
        parts=hourglass.PARTS,
        # Predictions of the earlier stacks, which only the training loss uses.
        unused=rf"(tl|br|ct)_(cnvs|heats|tags|regrs)\.{hourglass.earlier_stacks(last)}\..+",
    )
