"""Parameter names of the authors' *Objects as Points* checkpoints (xingyizhou/CenterNet).

The only place where their names stand. A plain ResNet checkpoint holds, in this order,
``conv1 bn1 layer1..4`` (trunk), ``deconv_layers`` (neck) and ``<head>.0 <head>.2`` per head.
"""

from collections.abc import Mapping

HEADS: Mapping[str, str] = {"hm": "heatmap", "wh": "size", "reg": "offset"}
"""The authors' head names and ours."""

_HEADS_OF_AUTHORS = {ours: theirs for theirs, ours in HEADS.items()}
_NECK = "deconv_layers"


def to_network_key(key: str) -> str:
    """Translate a checkpoint key, ``hm.2.bias``, to the network's, ``heads.heatmap.2.bias``."""
    first, _, rest = key.partition(".")
    if first in HEADS:
        return f"heads.{HEADS[first]}.{rest}"
    if first == _NECK:
        return f"neck.{rest}"
    return f"trunk.{key}"


def to_checkpoint_key(key: str) -> str:
    """Translate a key of the network to the checkpoint's; the inverse of :func:`to_network_key`."""
    room, _, rest = key.partition(".")
    if room == "heads":
        head, _, rest = rest.partition(".")
        return f"{_HEADS_OF_AUTHORS[head]}.{rest}"
    if room == "neck":
        return f"{_NECK}.{rest}"
    return rest
