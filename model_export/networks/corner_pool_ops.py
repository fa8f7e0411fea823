"""Names and attributes of the custom ONNX operators for corner pooling.

:mod:`model_export.networks.corner_pooling` emits them,
:mod:`model_export.onnx.corner_pool_functions` implements them with standard operators, and
:mod:`model_export.engines.corner_pooling_plugin` with CUDA kernels.
"""

from collections.abc import Mapping

DOMAIN = "centernet"
"""ONNX domain and TensorRT plugin namespace of the operators."""

DIRECTIONS = ("top", "bottom", "left", "right")

OP_TYPES: Mapping[str, str] = {direction: f"corner_pool_{direction}" for direction in DIRECTIONS}
"""Operators on one map, by pooling direction."""

SUM_OP_TYPES: Mapping[tuple[str, str], str] = {
    pair: f"corner_pool_{'_'.join(pair)}_sum" for pair in (("top", "left"), ("bottom", "right"))
}
"""Operators that pool two maps in two directions and add them."""

INPUTS: Mapping[str, int] = {
    **dict.fromkeys(OP_TYPES.values(), 1),
    **dict.fromkeys(SUM_OP_TYPES.values(), 2),
}
"""Number of inputs of each operator."""

PLUGIN_ATTRIBUTES: Mapping[str, str] = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""Attributes by which TensorRT's parser finds the plugin; other runtimes ignore them."""
