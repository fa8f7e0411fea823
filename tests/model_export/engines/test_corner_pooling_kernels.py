"""Corner pooling kernels: the source, run on the CPU, and the PTX, assembled for every GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cuda_emulation import Emulation
from support.pooling import assert_same, bits, from_bits, maps

from benchmarks.gpu_check.kernels import DTYPES, reference
from model_export.engines.corner_pooling_kernels import (
    FORMATS,
    WARPS_PER_BLOCK,
    all_ptx,
    kernel_name,
    kernel_ptx,
    launch,
)
from model_export.onnx.corner_pool_ops import INPUTS, OP_TYPES

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
SHAPES = [
    (1, 1, 1, 1),
    (1, 2, 1, 9),
    (2, 1, 9, 1),
    (2, 3, 7, 5),
    (1, 1, 33, 70),
    (1, 2, 128, 128),  # the size in the networks
    (1, 1, 31, 132),  # one vector more than a warp processes at once
    (1, 1, 70, 191),
    (1, 1, 191, 68),
    (1, 1, 129, 3),  # one row more than the largest block processes at once
    (1, 1, 67, 1028),  # wider than the maxima that a pair kernel stores
    (1, 1, 5, 1061),
    (1, 1, 3, 2116),
    *((batch, 3, 6, 8) for batch in range(2, 10)),
]
ZERO, MINUS_ZERO = 0.0, -0.0


@pytest.mark.parametrize("kernel_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_pytorch(
    emulation: Emulation, shape: tuple[int, int, int, int], kernel_format: str
) -> None:
    for op_type in INPUTS:
        inputs = maps(op_type, shape, kernel_format, seed=shape[-1])
        expected = reference(op_type, inputs)
        for warps in WARPS_PER_BLOCK:
            name = kernel_name(op_type, kernel_format)
            pooled = emulation.run(name, launch(op_type, shape, warps), *map(bits, inputs))
            assert_same(pooled, expected, kernel_format)


@pytest.mark.parametrize("kernel_format", FORMATS)
@pytest.mark.parametrize("op_type", INPUTS)
@pytest.mark.parametrize("negative", [False, True])
def test_nan_of_either_sign_propagates_as_in_pytorch(
    emulation: Emulation, op_type: str, kernel_format: str, negative: bool
) -> None:
    shape = (1, 2, 37, 44)
    special = bits(torch.tensor([torch.nan, -0.0], dtype=DTYPES[kernel_format]))
    nan = special[0] | special[1] if negative else special[0]
    generator = np.random.default_rng(6)
    inputs = []
    for values in map(bits, maps(op_type, shape, kernel_format, seed=5)):
        values[0, 1, generator.integers(0, shape[2], 6), generator.integers(0, shape[3], 6)] = nan
        inputs.append(from_bits(values, kernel_format))
    assert all(torch.signbit(x[x.isnan()]).all() == negative for x in inputs)
    expected = reference(op_type, inputs)
    assert expected.isnan().any()
    assert not expected.isnan().all()
    configuration = launch(op_type, shape, 8)
    name = kernel_name(op_type, kernel_format)
    assert_same(emulation.run(name, configuration, *map(bits, inputs)), expected, kernel_format)


@pytest.mark.parametrize("kernel_format", FORMATS)
@pytest.mark.parametrize("direction", OP_TYPES)
def test_a_maximum_equals_one_of_its_inputs_bit_for_bit(
    emulation: Emulation, direction: str, kernel_format: str
) -> None:
    """Including the payload of NaN; 0 is larger than -0, and -NaN is larger than all else."""
    dtype, vertical = DTYPES[kernel_format], direction in ("top", "bottom")
    ranked = bits(torch.tensor([-torch.inf, -1.0, MINUS_ZERO, ZERO, 1.0, torch.inf], dtype=dtype))
    one = ranked.dtype.type(1)
    infinity, sign = ranked[-1], ranked[2]
    nans = [infinity + one, infinity + one + one, (infinity + one) | sign]
    ranked = np.concatenate([ranked, nans]).astype(ranked.dtype)
    order = np.random.default_rng(1).integers(0, len(ranked), 77)
    forwards = direction in ("bottom", "right")
    running = np.maximum.accumulate(order if forwards else order[::-1])
    expected = ranked[running if forwards else running[::-1]]
    shape = (1, 1, len(order), 1) if vertical else (1, 1, 1, len(order))
    name = kernel_name(OP_TYPES[direction], kernel_format)
    configuration = launch(OP_TYPES[direction], shape, 4)
    pooled = emulation.run(name, configuration, ranked[order].reshape(shape))
    np.testing.assert_array_equal(pooled.ravel(), expected)


@pytest.mark.parametrize("kernel_format", FORMATS)
def test_sums_overflow_and_round_as_in_pytorch(emulation: Emulation, kernel_format: str) -> None:
    top = torch.finfo(DTYPES[kernel_format]).max
    tiny = torch.finfo(DTYPES[kernel_format]).smallest_normal / 4
    values = torch.tensor([top, -top, torch.inf, -torch.inf, tiny, 1.0, 1 / 3, -1e-3])
    a, b = (
        grid.to(DTYPES[kernel_format]) for grid in torch.meshgrid(values, values, indexing="ij")
    )
    a, b = (grid.reshape(-1, 1, 1, 1) for grid in (a, b))
    for op_type in (name for name, count in INPUTS.items() if count == 2):
        configuration = launch(op_type, (64, 1, 1, 1), 4)
        pooled = emulation.run(kernel_name(op_type, kernel_format), configuration, bits(a), bits(b))
        assert_same(pooled, a + b, kernel_format)


def test_ptx_has_every_kernel_and_a_supported_version() -> None:
    names = {kernel_name(op_type, kernel_format) for op_type in INPUTS for kernel_format in FORMATS}
    assert set(re.findall(r"\.entry (\w+)\(", all_ptx())) == names
    (version,) = re.findall(r"^\.version (\d+)\.(\d+)", all_ptx(), re.MULTILINE)
    assert tuple(map(int, version)) <= (9, 0)
    assert re.findall(r"^\.target (\w+)", all_ptx(), re.MULTILINE) == ["sm_75"]
    for name in names:
        assert re.findall(r"\.entry (\w+)\(", kernel_ptx(name)) == [name]
    with pytest.raises(KeyError):
        kernel_ptx("corner_pool_middle_fp32")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ptx_assembles(tmp_path: Path, architecture: int) -> None:
    """Both the whole file and a single kernel, which is what an engine contains."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas: the CUDA toolkit is not installed")
    op_type = list(INPUTS)[ARCHITECTURES.index(architecture) % len(INPUTS)]
    single = kernel_ptx(kernel_name(op_type, FORMATS[architecture % len(FORMATS)]))
    for number, ptx in enumerate((all_ptx(), single)):
        source, target = tmp_path / f"{number}.ptx", tmp_path / f"{number}.cubin"
        source.write_text(ptx)
        subprocess.run([ptxas, "-O1", f"-arch=sm_{architecture}", "-o", target, source], check=True)
        assert target.stat().st_size


def test_ptx_is_compiled_from_the_source(project: Path, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None or shutil.which("make") is None:
        pytest.skip("nvcc or make is not installed")
    result = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    (compiler,) = re.findall(r"V\d+\.\d+\.\d+", result.stdout)
    (original,) = re.findall(r"V\d+\.\d+\.\d+", all_ptx())
    if compiler != original:
        pytest.skip(f"nvcc is {compiler}, the committed PTX was made by {original}")
    target = tmp_path / "compiled.ptx"
    subprocess.run(["make", "-s", "-C", project, "kernels", f"KERNELS_PTX={target}"], check=True)
    assert target.read_text() == all_ptx(), "the source has changed: run `make kernels`"
