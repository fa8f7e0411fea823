"""TensorRT plugins for corner pooling, with kernels that become part of the engine.

Quick plugins of TensorRT (10.9 and later) with an ahead-of-time implementation: Python is needed
only during the build, and the engine runs without Python and without a plugin library. The ONNX
parser uses a plugin in place of the function body of the operator in
:mod:`model_export.onnx.corner_pool_ops`. TensorRT-RTX has no quick plugins and uses the body.

TensorRT reads the types of the plugin functions from their annotations. Its types exist only where
it is installed, so the annotations are attached at run time.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from model_export.engines.corner_pooling_kernels import (
    WARPS_PER_BLOCK,
    kernel_name,
    kernel_ptx,
    launch,
)
from model_export.onnx.corner_pool_ops import DOMAIN, INPUTS, PLUGIN_ATTRIBUTES


def register_corner_pooling(trt: Any) -> None:
    """Register a plugin for each corner pooling operator with the module ``tensorrt``.

    The plugins take NCHW tensors with four dynamic or static dimensions, in fp32, fp16 or bf16.
    Does nothing if they are registered already. Raises ``ValueError`` if this version has no
    ahead-of-time quick plugins.
    """
    quick = _quick_plugins(trt)
    registry = trt.get_plugin_registry()
    for op_type in INPUTS:
        if registry.get_creator(op_type, PLUGIN_ATTRIBUTES["plugin_version"], DOMAIN) is None:
            _register(trt, quick, op_type)


def _quick_plugins(trt: Any) -> Any:
    """Return the module ``tensorrt.plugin``."""
    try:
        quick: Any = importlib.import_module(f"{trt.__name__}.plugin")
    except ImportError:
        quick = None
    if not hasattr(quick, "aot_impl"):
        raise ValueError(
            f"{trt.__name__} {trt.__version__} has no ahead-of-time quick plugins. Corner "
            "pooling kernels need TensorRT 10.9 or later; without them an engine uses the "
            "function bodies of the operators."
        )
    return quick


def _register(trt: Any, quick: Any, op_type: str) -> None:
    plugin, inputs = f"{DOMAIN}::{op_type}", ("a", "b")[: INPUTS[op_type]]
    formats = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16"}

    def describe(x: Any, *_others: Any) -> Any:
        return x.like()

    def tune(*_descriptions: Any) -> Any:
        # A tactic is a positive integer: here the warps per block, of which the builder times each.
        tensor_types = ", ".join(["FP32|FP16|BF16"] * (len(inputs) + 1))
        return [quick.AutoTuneCombination(tensor_types, "LINEAR", list(WARPS_PER_BLOCK))]

    def implement(x: Any, *others: Any) -> Any:
        shape = (x.shape_expr[0], x.shape_expr[1], x.shape_expr[2], x.shape_expr[3])
        configuration = launch(op_type, shape, warps=others[-1])
        parameters = quick.KernelLaunchParams()
        parameters.grid_x = configuration.blocks
        parameters.block_x, parameters.block_y = configuration.block_size
        arguments = quick.SymIntExprs(len(configuration.arguments))
        for index, argument in enumerate(configuration.arguments):
            arguments[index] = quick.SymInt32(argument)
        name = kernel_name(op_type, formats[x.dtype])
        return name, kernel_ptx(name), parameters, arguments

    tensors = dict.fromkeys(inputs, quick.TensorDesc)
    outputs = {**tensors, "outputs": tuple[quick.TensorDesc]}
    implementation = tuple[str | bytes, str | bytes, quick.KernelLaunchParams, quick.SymExprs]
    quick.register(plugin)(_annotated(describe, tensors, quick.TensorDesc))
    quick.autotune(plugin)(_annotated(tune, outputs, list[quick.AutoTuneCombination]))
    quick.aot_impl(plugin)(_annotated(implement, {**outputs, "tactic": int}, implementation))


def _annotated(
    function: Callable[..., Any], parameters: Mapping[str, Any], returned: Any
) -> Callable[..., Any]:
    """Set the signature that TensorRT reads from ``function``."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=type_) for name, type_ in parameters.items()],
        return_annotation=returned,
    )
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
