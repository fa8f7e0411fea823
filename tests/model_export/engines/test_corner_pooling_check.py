"""The GPU check of the kernels, with an emulation on the CPU in place of the GPU."""

from collections.abc import Callable

import pytest
import torch
from support.cuda_emulation import Emulation
from support.pooling import bits, from_bits
from torch import Tensor

from benchmarks.gpu_check import kernels
from benchmarks.gpu_check.kernels import Device, Launch, check, parity, speed
from model_export.engines.corner_pooling_kernels import FORMATS, WARPS_PER_BLOCK
from model_export.onnx.corner_pool_ops import INPUTS

SHAPES = ((1, 2, 9, 12), (2, 1, 5, 7))


def _two_milliseconds(call: Callable[[int], None]) -> float:
    call(0)
    return 2.0


@pytest.fixture
def emulated(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(kernels, "PARITY_SHAPES", SHAPES)
    monkeypatch.setattr(kernels, "SPEED_SHAPES", SHAPES[:1])
    monkeypatch.setattr(kernels, "_BUFFERS_BYTES", 4096)

    def run(kernel: str, configuration: Launch, inputs: list[Tensor], output: Tensor) -> None:
        pooled = emulation.run(kernel, configuration, *map(bits, inputs))
        output.copy_(from_bits(pooled, kernel.rpartition("_")[2]))

    return Device("emulation", run, _two_milliseconds)


def test_correct_kernels_pass(emulated: Device) -> None:
    rows = list(parity(emulated, "cpu"))
    assert {(row["op_type"], row["format"], row["shape"]) for row in rows} == {
        (o, f, s) for o in INPUTS for f in FORMATS for s in SHAPES
    }
    assert all(row["equal"] for row in rows)


@pytest.mark.parametrize("wrong", [0.5, torch.nan])
def test_wrong_kernels_fail(emulated: Device, wrong: float) -> None:
    def run(kernel: str, configuration: Launch, inputs: list[Tensor], output: Tensor) -> None:
        emulated.run(kernel, configuration, inputs, output)
        output[0, 0, 0, 0] = wrong

    rows = list(parity(Device("wrong", run, _two_milliseconds), "cpu"))
    assert not any(row["equal"] for row in rows)


def test_bandwidth_counts_every_map_that_is_read_or_written(emulated: Device) -> None:
    rows = list(speed(emulated, "cpu"))
    assert len(rows) == len(FORMATS) * (1 + len(INPUTS) * len(WARPS_PER_BLOCK) + 2)
    map_bytes = 4 * 1 * 2 * 9 * 12
    passes = {"copy": 2, "corner_pool_left": 2, "corner_pool_top_left_sum": 3}
    passes |= {"corner_pool_top_left_sum, separate": 7}
    for row in rows:
        if row["format"] == "fp32" and row["op_type"] in passes:
            count = passes[row["op_type"]]
            assert row["microseconds"] == 2000
            assert row["gigabytes_per_second"] == pytest.approx(count * map_bytes / 2e6)
            assert row["of_copy"] == pytest.approx(count / 2)


def test_reports_a_missing_gpu_and_no_measurements() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    result = check()
    assert result == {
        "device": None,
        "not_run": "torch finds no CUDA device",
        "parity": [],
        "speed": [],
    }
