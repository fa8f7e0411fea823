"""The corner pooling kernels as PTX, and how to launch them.

``corner_pooling.cu`` beside this file is the source; ``make kernels`` compiles it (nvcc 13.0) to
``corner_pooling.ptx``, which is part of the package, so that a GPU host needs no compiler. Every
driver since CUDA 13.0 takes it, for every GPU since Turing.
"""

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from model_export.onnx.corner_pool_ops import OP_TYPES

FORMATS = ("fp32", "fp16", "bf16")

WARPS_PER_BLOCK = (4, 8, 16)
"""Choices that differ in speed alone; the largest is ``MOST_WARPS`` in the source."""

_WORKERS = 32
_VECTOR = 4
_ROWS_AT_ONCE = 4


class Launch(NamedTuple):
    """Numbers of one launch: ints, or TensorRT's expressions of them.

    Arguments go between the pointers to the inputs and that to the output, as 32-bit integers.
    """

    blocks: Any
    block_size: tuple[int, int]
    arguments: tuple[Any, Any, Any]


def kernel_name(op_type: str, kernel_format: str) -> str:
    """Entry point of an operator for maps of one of ``FORMATS``."""
    return f"{op_type}_{kernel_format}"


def launch(op_type: str, shape: tuple[Any, Any, Any, Any], warps: int) -> Launch:
    """Numbers for maps of ``shape`` (N, C, H, W), all at least 1.

    Only ``+ - * //`` with an expression on the left: all that TensorRT's expressions can do.
    """
    batch, channels, height, width = shape
    planes = batch * channels
    if op_type in (OP_TYPES["top"], OP_TYPES["bottom"]):
        vectors = width // _VECTOR
        # 0 if rows are whole vectors, else 1: then workers take one column each.
        ragged = (width + (_VECTOR - 1)) // _VECTOR - vectors
        blocks = _ceil_divide(planes * (vectors + ragged * (width - vectors)), _WORKERS)
    elif op_type in (OP_TYPES["left"], OP_TYPES["right"]):
        blocks = _ceil_divide(planes * height, warps * _ROWS_AT_ONCE)
    else:
        blocks = planes
    return Launch(blocks, (_WORKERS, warps), (planes, height, width))


@cache
def kernel_ptx(name: str) -> str:
    """PTX of one entry point alone: an engine keeps a copy for each of its pooling layers.

    Raises ``KeyError`` if there is no such kernel.
    """
    header, *entries = all_ptx().split("\t// .globl\t")
    bodies = dict(entry.split("\n", maxsplit=1) for entry in entries)
    return f"{header}{bodies[name]}"


def all_ptx() -> str:
    """PTX of every entry point."""
    return files(__package__).joinpath("corner_pooling.ptx").read_text()


def _ceil_divide(dividend: Any, divisor: int) -> Any:
    return (dividend + (divisor - 1)) // divisor
