"""Check the corner pooling kernels on a GPU against PyTorch, and their speed against a copy.

Loads the same PTX that engines contain. Needs torch, CuPy, a GPU and its driver, but no compiler
and no TensorRT. If one is missing, the result names it and contains no measurements.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_export.engines.corner_pooling_kernels import (
    FORMATS,
    WARPS_PER_BLOCK,
    Launch,
    kernel_name,
    launch,
)
from model_export.networks.corner_pool_ops import INPUTS, OP_TYPES, SUM_OP_TYPES
from model_export.networks.corner_pooling import (
    BOTTOM_RIGHT,
    TOP_LEFT,
    bottom_pool,
    left_pool,
    right_pool,
    top_pool,
)

Row = dict[str, Any]
Run = Callable[[str, Launch, list[Tensor], Tensor], None]
"""Takes the kernel's name, its launch configuration, the input maps and the output map."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARITY_SHAPES = (
    (1, 1, 1, 1),
    (2, 3, 33, 70),
    (9, 5, 7, 129),
    (1, 2, 191, 128),
    (3, 16, 128, 128),
    (1, 2, 70, 1061),
    (1, 2, 33, 2116),
)
SPEED_SHAPES = ((1, 256, 128, 128), (8, 256, 128, 128), (16, 256, 128, 128), (8, 128, 96, 160))
_BUFFERS_BYTES = 512 * 2**20
"""Size of the maps that successive calls cycle through, so that no input is in the cache."""
_RUNS = 50
_SEPARATE_WARPS = 8


@dataclass(frozen=True)
class Device:
    """Functions that run and time kernels."""

    name: str
    run: Run
    milliseconds: Callable[[Callable[[int], None]], float]
    """Returns the time of one call; the callable receives the index of the call."""


def check() -> Row:
    """Run all checks and return ``{"device", "not_run", "parity", "speed"}``."""
    lacking = None
    if not torch.cuda.is_available():
        lacking = "torch finds no CUDA device"
    elif find_spec("cupy") is None:
        lacking = "CuPy is not installed: pip install cupy-cuda13x"
    if lacking:
        return {"device": None, "not_run": lacking, "parity": [], "speed": []}
    device = cuda_device()
    with torch.inference_mode():
        return {
            "device": device.name,
            "not_run": None,
            "parity": list(parity(device, "cuda")),
            "speed": list(speed(device, "cuda")),
        }


def parity(device: Device, torch_device: str) -> Iterator[Row]:
    """Yield one row per operator, format and shape: whether all block sizes equal PyTorch."""
    for op_type, kernel_format, shape in itertools.product(INPUTS, FORMATS, PARITY_SHAPES):
        inputs = _maps(INPUTS[op_type], shape, kernel_format, torch_device)
        inputs[0].view(-1)[inputs[0].numel() // 2 :: 977] = torch.nan
        inputs[-1].view(-1)[::13] = -torch.inf
        expected = reference(op_type, inputs)
        equal = True
        for warps in WARPS_PER_BLOCK:
            output = torch.empty_like(expected)
            device.run(
                kernel_name(op_type, kernel_format), launch(op_type, shape, warps), inputs, output
            )
            equal &= torch.equal(output.isnan(), expected.isnan())
            equal &= torch.equal(output.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))
        yield {"op_type": op_type, "format": kernel_format, "shape": shape, "equal": equal}


def speed(device: Device, torch_device: str) -> Iterator[Row]:
    """Yield one row per operator, format, shape and block size, and one per unfused pair."""
    for shape, kernel_format in itertools.product(SPEED_SHAPES, FORMATS):
        case = {"format": kernel_format, "shape": shape}
        single, double = (_Buffers(count, shape, kernel_format, torch_device) for count in (1, 2))
        copy_ms = device.milliseconds(partial(_copy, single))
        yield _row(case | {"op_type": "copy", "warps": None}, single, 2, copy_ms, copy_ms)
        for op_type, warps in itertools.product(INPUTS, WARPS_PER_BLOCK):
            buffers = single if INPUTS[op_type] == 1 else double
            name, configuration = kernel_name(op_type, kernel_format), launch(op_type, shape, warps)
            ms = device.milliseconds(partial(_pool, device, name, configuration, buffers))
            row = case | {"op_type": op_type, "warps": warps}
            yield _row(row, buffers, INPUTS[op_type] + 1, ms, copy_ms)
        for pair, op_type in SUM_OP_TYPES.items():
            ms = device.milliseconds(_unfused(device, pair, shape, kernel_format, double))
            row = case | {"op_type": f"{op_type}, separate", "warps": _SEPARATE_WARPS}
            yield _row(row, double, 7, ms, copy_ms)


def cuda_device() -> Device:
    """Return the GPU and load the kernels onto it. Needs CuPy."""
    import cupy

    with as_file(files("model_export.engines") / "corner_pooling.ptx") as path:
        module = cupy.RawModule(path=str(path))
        kernels = {
            name: module.get_function(name)
            for name in itertools.starmap(kernel_name, itertools.product(INPUTS, FORMATS))
        }

    def run(kernel: str, configuration: Launch, inputs: list[Tensor], output: Tensor) -> None:
        pointers = [np.uint64(tensor.data_ptr()) for tensor in [*inputs, output]]
        arguments = (*pointers[:-1], *map(np.int32, configuration.arguments), pointers[-1])
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            kernels[kernel]((configuration.blocks,), (*configuration.block_size, 1), arguments)

    def milliseconds(call: Callable[[int], None]) -> float:
        call(0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # otherwise the launches from Python would dominate the time
            for number in range(_RUNS):
                call(number)
        graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / _RUNS

    return Device(torch.cuda.get_device_name(), run, milliseconds)


class _Buffers:
    """Enough input maps to exceed the cache several times, and one output map."""

    def __init__(
        self, count: int, shape: tuple[int, ...], kernel_format: str, torch_device: str
    ) -> None:
        self.output = _maps(1, shape, kernel_format, torch_device)[0]
        self.map_bytes = self.output.numel() * self.output.element_size()
        sets = max(1, _BUFFERS_BYTES // (count * self.map_bytes))
        self._sets = [_maps(count, shape, kernel_format, torch_device) for _ in range(sets)]

    def inputs(self, call: int) -> list[Tensor]:
        return self._sets[call % len(self._sets)]


def _copy(buffers: _Buffers, call: int) -> None:
    buffers.output.copy_(buffers.inputs(call)[0])


def _pool(device: Device, kernel: str, configuration: Launch, buffers: _Buffers, call: int) -> None:
    device.run(kernel, configuration, buffers.inputs(call), buffers.output)


def _unfused(
    device: Device,
    pair: tuple[str, str],
    shape: tuple[int, int, int, int],
    kernel_format: str,
    buffers: _Buffers,
) -> Callable[[int], None]:
    """Return a call that pools two maps and adds them, in three kernels instead of one."""
    pooled = _maps(2, shape, kernel_format, str(buffers.output.device))
    op_types = [OP_TYPES[direction] for direction in pair]

    def call(number: int) -> None:
        for op_type, source, target in zip(op_types, buffers.inputs(number), pooled, strict=True):
            configuration = launch(op_type, shape, _SEPARATE_WARPS)
            device.run(kernel_name(op_type, kernel_format), configuration, [source], target)
        torch.add(*pooled, out=buffers.output)

    return call


def _row(case: Row, buffers: _Buffers, passes: int, ms: float, copy_ms: float) -> Row:
    """Add the measurements of a case; ``passes`` is the number of maps read and written."""
    return case | {
        "microseconds": 1e3 * ms,
        "gigabytes_per_second": passes * buffers.map_bytes / ms / 1e6,
        "of_copy": passes * copy_ms / (2 * ms),
    }


def _maps(
    count: int, shape: tuple[int, ...], kernel_format: str, torch_device: str
) -> list[Tensor]:
    return [torch.randn(shape, device=torch_device).to(DTYPES[kernel_format]) for _ in range(count)]


def reference(op_type: str, inputs: list[Tensor]) -> Tensor:
    """Return the output of the operator, computed with PyTorch."""
    pools = {"top": top_pool, "bottom": bottom_pool, "left": left_pool, "right": right_pool}
    for direction, pool in pools.items():
        if op_type == OP_TYPES[direction]:
            return pool(inputs[0])
    pairs = {pair.sum_op_type: pair for pair in (TOP_LEFT, BOTTOM_RIGHT)}
    return pairs[op_type].sum(*inputs)
