"""PTX and launch configurations of the corner pooling kernels.

``make kernels`` compiles the source, ``corner_pooling.cu``, to ``corner_pooling.ptx`` with nvcc
13.0. The PTX is part of the package, so a GPU host needs no compiler. Drivers of CUDA 13.0 and
later load it, for GPUs of compute capability 7.5 (Turing) and later.
"""

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from model_export.onnx.corner_pool_ops import OP_TYPES

FORMATS = ("fp32", "fp16", "bf16")

WARPS_PER_BLOCK = (4, 8, 16)
"""Block sizes, which affect only the speed; the largest is ``MOST_WARPS`` in the source."""

_WARP_SIZE = 32
_VECTOR_WIDTH = 4
_ROWS_PER_WARP = 4


class Launch(NamedTuple):
    """Grid, block and arguments of one launch, as ints or as symbolic expressions of TensorRT.

    The kernel takes the pointers to its inputs, ``arguments`` as 32-bit integers, and the pointer
    to its output.
    """

    blocks: Any
    block_size: tuple[int, int]
    arguments: tuple[Any, Any, Any]


def kernel_name(op_type: str, kernel_format: str) -> str:
    """Return the name of an operator's kernel for one of ``FORMATS``."""
    return f"{op_type}_{kernel_format}"


def launch(op_type: str, shape: tuple[Any, Any, Any, Any], warps: int) -> Launch:
    """Return the launch configuration for maps of ``shape`` (N, C, H, W), all at least 1.

    The calculation uses only ``+ - * //`` with an expression on the left, the operations that
    TensorRT's symbolic expressions support.
    """
    batch, channels, height, width = shape
    planes = batch * channels
    if op_type in (OP_TYPES["top"], OP_TYPES["bottom"]):
        vectors = width // _VECTOR_WIDTH
        # 0 if a row is a whole number of vectors, else 1: each thread then takes one column.
        is_unaligned = (width + (_VECTOR_WIDTH - 1)) // _VECTOR_WIDTH - vectors
        blocks = _ceil_divide(planes * (vectors + is_unaligned * (width - vectors)), _WARP_SIZE)
    elif op_type in (OP_TYPES["left"], OP_TYPES["right"]):
        blocks = _ceil_divide(planes * height, warps * _ROWS_PER_WARP)
    else:
        blocks = planes
    return Launch(blocks, (_WARP_SIZE, warps), (planes, height, width))


@cache
def kernel_ptx(name: str) -> str:
    """Return the PTX of one kernel; an engine contains a copy for each of its pooling layers.

    Raises ``KeyError`` if there is no kernel of that name.
    """
    header, *entries = all_ptx().split("\t// .globl\t")
    bodies = dict(entry.split("\n", maxsplit=1) for entry in entries)
    return f"{header}{bodies[name]}"


def all_ptx() -> str:
    """Return the PTX of all kernels."""
    return files(__package__).joinpath("corner_pooling.ptx").read_text()


def _ceil_divide(dividend: Any, divisor: int) -> Any:
    return (dividend + (divisor - 1)) // divisor
