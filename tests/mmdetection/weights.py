"""Weights of MMDetection's networks by the rule of ``upstream.weights_rule``.

The rule distinguishes tensors by the names of the upstream code, to which the names of MMDetection
are translated here. Needs NumPy only, so that both implementations can make the same weights.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from upstream.weights_rule import TABLE, make_state

TABLES = {
    "centernet_r18": "ctdet_res_18",
    "centernet_r18_dcnv2": "ctdet_resdcn_18",
    "cornernet_hourglass104": "cornernet_hourglass104",
}
"""Network to the entry of the rule's table of gains."""

_CENTER_HEADS = {"heatmap_head": "hm", "wh_head": "wh", "offset_head": "reg"}
_CORNER_HEADS = {"heat": "heats", "emb": "tags", "off": "regrs"}
_CORNER_HEAD = re.compile(r"(tl|br)_(heat|emb|off)\.(\d+)\.([01])\.conv\.(weight|bias)")


def weights_of(network: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.generic]]:
    """Return the weights of a network, by the names of MMDetection, given their shapes."""
    rule_keys = {key: _rule_key(key) for key in shapes}
    manifest = {rule_keys[key]: (shape, None) for key, shape in shapes.items()}
    assert len(manifest) == len(shapes)
    state = make_state(manifest, tab=TABLE[TABLES[network]])
    return {key: state[rule_keys[key]] for key in shapes}


def _rule_key(key: str) -> str:
    key = re.sub(r"^(backbone|neck|bbox_head)\.", "", key)
    key = key.replace("conv_offset", "conv_offset_mask")
    if match := _CORNER_HEAD.fullmatch(key):
        keypoint, head, stack, layer, parameter = match.groups()
        return f"{keypoint}_{_CORNER_HEADS[head]}.{stack}.{layer}.{parameter}"
    head, _, rest = key.partition(".")
    return f"{_CENTER_HEADS.get(head, head)}.{rest}"
