"""Corner pooling plugins, run by TensorRT's own Python code, and the kernels they launch."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.cuda_emulation import Emulation
from support.pooling import assert_same, bits, maps

from benchmarks.gpu_check.kernels import reference
from model_export.engines.corner_pooling_kernels import FORMATS, WARPS_PER_BLOCK, Launch
from model_export.engines.corner_pooling_plugin import register_corner_pooling
from model_export.onnx.corner_pool_ops import INPUTS

VERSIONS = ("10.16.1.11", "11.4.0.106")


@pytest.fixture(scope="module", params=VERSIONS)
def records(
    request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Return values of the plugins with one version of TensorRT."""
    folder = Path(sys.prefix, "tensorrt", request.param)
    if not (folder / "installed").exists():
        pytest.skip(f"no bindings of TensorRT {request.param}: run `make tensorrt-bindings`")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile stubs of TensorRT's libraries")
    script = project / "tests" / "support" / "tensorrt_on_cpu.py"
    output = tmp_path_factory.mktemp("tensorrt") / "result.json"
    environment = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, script, folder, output]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    result = json.loads(output.read_text())
    assert result["version"] == request.param
    return result["records"]


@pytest.fixture(scope="module")
def verified_launches() -> set[str]:
    """Records whose launches were run and verified, with any version."""
    return set()


def test_every_operator_takes_every_format_and_tactic(records: list[dict[str, Any]]) -> None:
    seen = {(record["op_type"], record["format"], record["tactic"]) for record in records}
    assert seen == {(o, f, w) for o in INPUTS for f in FORMATS for w in WARPS_PER_BLOCK}
    for record in records:
        maps_ = INPUTS[record["op_type"]] + 1
        names = ["FLOAT"] * maps_ + ["HALF"] * maps_ + ["BF16"] * maps_
        assert record["combinations"] == [f"DataType.{name}" for name in names]
        assert record["layouts"] == ["TensorFormat.LINEAR"]


def test_outputs_have_the_shape_of_the_inputs(records: list[dict[str, Any]]) -> None:
    assert {len(record["shape"]) for record in records} == {4}
    for record in records:
        assert record["output_shape"] == record["shape"]


def test_the_ptx_contains_only_the_launched_kernel(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert record["kernel"] == f"{record['op_type']}_{record['format']}"
        assert record["ptx_entries"] == [record["kernel"]]


def test_the_launches_compute_corner_pooling(
    records: list[dict[str, Any]], emulation: Emulation, verified_launches: set[str]
) -> None:
    assert {tuple(record["grid"][1:]) for record in records} == {(1, 1)}
    assert {record["shared_mem"] for record in records} == {0}
    for record in records:
        if json.dumps(record) in verified_launches:
            continue
        op_type, kernel_format = record["op_type"], record["format"]
        inputs = maps(op_type, tuple(record["shape"]), kernel_format, seed=3)
        width, height, depth = record["block"]
        assert depth == 1
        configuration = Launch(record["grid"][0], (width, height), tuple(record["arguments"]))
        pooled = emulation.run(record["kernel"], configuration, *map(bits, inputs))
        assert_same(pooled, reference(op_type, inputs), kernel_format)
        verified_launches.add(json.dumps(record))


def test_rejects_libraries_without_quick_plugins() -> None:
    old = types.ModuleType("tensorrt_rtx")
    old.__version__ = "1.7.1.116"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"tensorrt_rtx 1\.7\.1\.116 .* 10\.9 or later"):
        register_corner_pooling(old)


def test_registration_does_not_import_torch(project: Path) -> None:
    code = (
        "import sys, model_export.engines.corner_pooling_plugin; "
        "sys.exit(bool({'torch', 'onnx', 'tensorrt'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True)
