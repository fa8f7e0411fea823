"""Corner pooling as TensorRT plugins whose kernels are embedded in the engine.

*Quick plugins* of full TensorRT (10.9 and later) with an ahead-of-time implementation: Python
serves while an engine is built; the engine itself needs neither Python nor a library. A parser
that meets an operator of :mod:`model_export.onnx.corner_pool_ops` then takes the plugin instead of the
operator's body. TensorRT-RTX has no such plugins and runs the body.

The annotations that TensorRT inspects are attached by hand, since its types exist only where it
is installed.
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
    """Register a plugin for each operator with ``trt``, the module ``tensorrt``; once is enough.

    Every shape of 4 axes, free or fixed; fp32, fp16 and bf16, NCHW. Raises ``ValueError`` if this
    TensorRT has no ahead-of-time quick plugins.
    """
    quick = _quick_plugins(trt)
    registry = trt.get_plugin_registry()
    for op_type in INPUTS:
        if registry.get_creator(op_type, PLUGIN_ATTRIBUTES["plugin_version"], DOMAIN) is None:
            _register(trt, quick, op_type)


def _quick_plugins(trt: Any) -> Any:
    """``tensorrt.plugin`` of ``trt``."""
    try:
        quick: Any = importlib.import_module(f"{trt.__name__}.plugin")
    except ImportError:
        quick = None
    if not hasattr(quick, "aot_impl"):
        raise ValueError(
            f"{trt.__name__} {trt.__version__} has no ahead-of-time quick plugins: corner pooling "
            "needs TensorRT 10.9 or later; without the plugins it runs the operators' bodies"
        )
    return quick


def _register(trt: Any, quick: Any, op_type: str) -> None:
    plugin, inputs = f"{DOMAIN}::{op_type}", ("a", "b")[: INPUTS[op_type]]
    formats = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16"}

    def describe(x: Any, *_others: Any) -> Any:
        return x.like()

    def tune(*_descriptions: Any) -> Any:
        # Tactics must be positive: here they are the warps per block, which the builder times.
        every = ", ".join(["FP32|FP16|BF16"] * (len(inputs) + 1))
        return [quick.AutoTuneCombination(every, "LINEAR", list(WARPS_PER_BLOCK))]

    def implement(x: Any, *others: Any) -> Any:
        shape = (x.shape_expr[0], x.shape_expr[1], x.shape_expr[2], x.shape_expr[3])
        numbers = launch(op_type, shape, warps=others[-1])
        parameters = quick.KernelLaunchParams()
        parameters.grid_x = numbers.blocks
        parameters.block_x, parameters.block_y = numbers.block_size
        arguments = quick.SymIntExprs(len(numbers.arguments))
        for place, argument in enumerate(numbers.arguments):
            arguments[place] = quick.SymInt32(argument)
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
    """Give ``function`` the signature that TensorRT shall see."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=type_) for name, type_ in parameters.items()],
        return_annotation=returned,
    )
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
