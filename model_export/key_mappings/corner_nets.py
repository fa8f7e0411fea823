"""Parameter names of the checkpoints of *CornerNet*, *CornerNet-Lite* and *Keypoint Triplets*.

Sources: princeton-vl/CornerNet, Duankaiwen/CenterNet and princeton-vl/CornerNet-Lite. For the
keypoints ``tl``, ``br`` and ``ct``, pooling blocks are stored under ``<keypoint>_cnvs.<stack>``, in
*CornerNet-Lite* ``<keypoint>_modules.<stack>``, and heads under ``<keypoint>_<head>.<stack>``.
"""

from collections.abc import Collection, Mapping
from functools import cache

from model_export.key_mappings import hourglass
from model_export.key_mappings.key_mapping import Framework, KeyMapping

_KEYPOINTS: Mapping[str, str] = {"tl": "top_left", "br": "bottom_right", "ct": "center"}
_HEADS: Mapping[str, str] = {"heats": "heatmap", "tags": "embedding", "regrs": "offset"}
_LITE_HEADS: Mapping[str, str] = {"heats": "heatmap", "tags": "embedding", "offs": "offset"}
_LITE_PREFIXES: Mapping[str, str] = {
    "hg.hgs" if upstream == "kps" else f"hg.{upstream}": local
    for upstream, local in hourglass.KEY_PREFIXES.items()
}
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


_SACCADE_PREFIX = "att_modules."


@cache
def corner_keys(stacks: int) -> KeyMapping:
    """Return the mapping for ``stacks`` hourglasses with heads on the last one."""
    return _keys(stacks, hourglass.KEY_PREFIXES, "cnvs", _HEADS, "authors")


@cache
def corner_net_lite_keys(stacks: int) -> KeyMapping:
    """Return the mapping of *CornerNet-Lite* for ``stacks`` hourglasses."""
    return _keys(stacks, _LITE_PREFIXES, "modules", _LITE_HEADS, "cornernet_lite")


def describe_saccade(state: Collection[str]) -> str | None:
    """Return why *CornerNet-Saccade* is not supported; None if ``state`` is not of it."""
    if not any(key.startswith(_SACCADE_PREFIX) for key in state):
        return None
    return (
        "the checkpoint is CornerNet-Saccade (it has attention maps, att_modules), which is not "
        "supported: it detects in two reduced copies of an image, and then in up to 30 crops that "
        "depend on these results, while the inputs of an image must be known before its first run "
        "here (ADR 34). Of CornerNet-Lite, CornerNet-Squeeze is supported."
    )


def _keys(
    stacks: int,
    prefixes: Mapping[str, str],
    pooling_name: str,
    head_names: Mapping[str, str],
    framework: Framework,
) -> KeyMapping:
    last = stacks - 1
    pooling = {
        f"{upstream}_{pooling_name}.{last}.{upstream_layer}": f"pooling.{local}.{layer}"
        for upstream, local in _KEYPOINTS.items()
        for upstream_layer, layer in _POOLING_LAYERS.items()
    }
    heads = {
        f"{upstream}_{upstream_head}.{last}.{upstream_layer}": f"heads.{local}_{head}.{layer}"
        for upstream, local in _KEYPOINTS.items()
        for upstream_head, head in head_names.items()
        for upstream_layer, layer in _HEAD_LAYERS.items()
    }
    return KeyMapping(
        names={
            **{upstream: f"backbone.{local}" for upstream, local in prefixes.items()},
            **pooling,
            **heads,
        },
        parts=hourglass.PARTS,
        # Predictions of the earlier stacks, which only the training loss uses.
        unused=rf"(tl|br|ct)_({'|'.join((pooling_name, *head_names))})\."
        rf"{hourglass.earlier_stacks(last)}\..+",
        framework=framework,
    )
