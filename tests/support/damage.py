"""Small mistakes in an exported network, each of which the verification must notice."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from model_export.detection_graph import DetectionGraph


def _swap_channels(graph: DetectionGraph) -> None:
    """Exchange two colour channels of the first convolution."""
    first = next(one for one in graph.modules() if isinstance(one, nn.Conv2d))
    first.weight[:, [0, 1]] = first.weight[:, [1, 0]]


def _change_a_mean(graph: DetectionGraph) -> None:
    """Change the mean of one colour channel by 0.01, of values from 0 to 1."""
    graph.normalize.shift[0, 2] -= 0.01 / 0.28


def _shift_offsets(graph: DetectionGraph) -> None:
    """Shift all centers by 0.005 cells: 0.02 pixels of the input."""
    _last_layer(graph, "offset").bias += 0.005


def _scale_sizes(graph: DetectionGraph) -> None:
    """Enlarge the weights of all sizes by 1 %."""
    _last_layer(graph, "size").weight *= 1.01


def _last_layer(graph: DetectionGraph, head: str) -> nn.Conv2d:
    *_, last = (
        module
        for name, module in graph.named_modules()
        if f".{head}." in f"{name}." and isinstance(module, nn.Conv2d)
    )
    return last


DAMAGES: Mapping[str, Callable[[DetectionGraph], None]] = {
    "channels": _swap_channels,
    "mean": _change_a_mean,
    "offsets": _shift_offsets,
    "sizes": _scale_sizes,
}


def damage(graph: DetectionGraph, kind: str) -> None:
    """Damage ``graph`` in the way of :data:`DAMAGES`."""
    with torch.no_grad():
        DAMAGES[kind](graph)
