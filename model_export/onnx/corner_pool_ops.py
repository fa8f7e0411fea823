"""The corner pooling operators of exported files: their names, and where TensorRT looks for them.

Networks record them, :mod:`model_export.onnx.corner_pool_functions` gives them bodies of standard ONNX, and
:mod:`model_export.engines.corner_pooling_plugin` gives them kernels.
"""

from collections.abc import Mapping

DOMAIN = "centernet"
"""ONNX domain, and TensorRT plugin namespace, of all operators."""

DIRECTIONS = ("top", "bottom", "left", "right")

OP_TYPES: Mapping[str, str] = {direction: f"corner_pool_{direction}" for direction in DIRECTIONS}
"""Operators of one map, by the side that maxima are collected towards."""

SUM_OP_TYPES: Mapping[tuple[str, str], str] = {
    pair: f"corner_pool_{'_'.join(pair)}_sum" for pair in (("top", "left"), ("bottom", "right"))
}
"""Operators of two maps, each pooled towards its side, added up."""

INPUTS: Mapping[str, int] = {
    **dict.fromkeys(OP_TYPES.values(), 1),
    **dict.fromkeys(SUM_OP_TYPES.values(), 2),
}
"""Number of maps that each operator takes."""

PLUGIN_ATTRIBUTES: Mapping[str, str] = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""Where TensorRT's parser looks for a plugin of the operator's name; all others ignore them."""
