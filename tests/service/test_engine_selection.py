"""The engine and the precision of a package, as the service and the library choose them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model_package import load_package
from service.detector import open_model_engine
from service.engines import Engine, EngineUnavailableError
from service.engines.cpu_instructions import bf16_problem
from service.engines.openvino import OpenVinoEngine
from service.self_test import SelfTest
from service.settings import Settings

needs_bf16 = pytest.mark.skipif(bf16_problem() is not None, reason=f"{bf16_problem()}")


def engine_of(package: Path, **settings: object) -> str:
    """Return the description of the engine that the settings open."""
    engine, _ = open_model_engine(load_package(package), Settings(models=package, **settings))  # type: ignore[arg-type]
    engine.close()
    return engine.description


@pytest.fixture
def without_references(bundled: Path, tmp_path: Path) -> Path:
    package = tmp_path / "package"
    shutil.copytree(bundled, package)
    manifest = json.loads((package / "model.json").read_text())
    (package / manifest["references"]["file"]).unlink()
    del manifest["references"]
    (package / "model.json").write_text(json.dumps(manifest))
    return package


@pytest.fixture
def without_int8(bundled: Path, tmp_path: Path) -> Path:
    package = tmp_path / "package_without_int8"
    shutil.copytree(bundled, package)
    manifest = json.loads((package / "model.json").read_text())
    artifacts = manifest["artifacts"]
    manifest["artifacts"] = [one for one in artifacts if one["precision"] != "int8"]
    assert len(manifest["artifacts"]) < len(artifacts)
    (package / "model.json").write_text(json.dumps(manifest))
    return package


def zero_scores(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Make OpenVINO return scores of zero in one precision."""
    run = OpenVinoEngine.run

    def run_wrongly(self: OpenVinoEngine, *args: object) -> object:
        outputs = dict(run(self, *args))  # type: ignore[arg-type]
        if self.precision == precision:
            outputs["scores"] = np.zeros_like(outputs["scores"])
        return outputs

    monkeypatch.setattr(OpenVinoEngine, "run", run_wrongly)


def test_auto_uses_int8_where_the_package_has_it(bundled: Path) -> None:
    assert engine_of(bundled).startswith("OpenVINO 2")
    assert engine_of(bundled).endswith(", int8 on CPU")
    assert engine_of(bundled, precision="fp32").endswith(", fp32 on CPU")


def test_auto_does_not_use_int8_if_it_does_not_agree(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    zero_scores(monkeypatch, "int8")
    assert not engine_of(bundled).endswith(", int8 on CPU")
    (line,) = [line for line in caplog.messages if "(int8)" in line]
    assert "a score of the self-test image differs by" in line
    with pytest.raises(EngineUnavailableError, match="differs by"):
        engine_of(bundled, precision="int8")


def test_auto_does_not_use_int8_without_references(
    without_references: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert not engine_of(without_references).endswith(", int8 on CPU")
    (line,) = [line for line in caplog.messages if "(int8)" in line]
    assert "no recorded references to check int8 with" in line
    # If it is named, the scores of a synthetic image decide, in which int8 finds other objects.
    with pytest.raises(EngineUnavailableError, match="a score of the self-test image differs by"):
        engine_of(without_references, precision="int8")


@needs_bf16
def test_auto_uses_bf16_where_the_processor_has_it(without_int8: Path) -> None:
    assert engine_of(without_int8).startswith("OpenVINO 2")
    assert engine_of(without_int8).endswith(", bf16 on CPU")
    assert engine_of(without_int8, precision="fp32").endswith(", fp32 on CPU")


def test_auto_uses_fp32_where_the_processor_has_no_bf16(
    without_int8: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert engine_of(without_int8).endswith(", fp32 on CPU")
    (line,) = [line for line in caplog.messages if "(bf16)" in line]
    assert "excludes bf16 instructions" in line
    with pytest.raises(EngineUnavailableError, match="excludes bf16 instructions"):
        engine_of(without_int8, precision="bf16")


@needs_bf16
def test_auto_uses_fp32_for_a_package_without_references(
    without_references: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert engine_of(without_references).endswith(", fp32 on CPU")
    (line,) = [line for line in caplog.messages if "(bf16)" in line]
    assert "no recorded references to check bf16 with" in line
    assert engine_of(without_references, precision="bf16").endswith(", bf16 on CPU")


@needs_bf16
def test_auto_uses_fp32_if_bf16_does_not_agree(
    without_int8: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    zero_scores(monkeypatch, "bf16")
    assert engine_of(without_int8).endswith(", fp32 on CPU")
    (line,) = [line for line in caplog.messages if "(bf16)" in line]
    assert "a score of the self-test image differs by" in line
    with pytest.raises(EngineUnavailableError, match="differs by"):
        engine_of(without_int8, precision="bf16")


@pytest.mark.parametrize("has_references", [True, False])
def test_auto_uses_onnxruntime_if_openvino_does_not_agree(
    bundled: Path,
    without_references: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_references: bool,
) -> None:
    package = bundled if has_references else without_references
    zero_scores(monkeypatch, "fp32")
    assert "CPUExecutionProvider" in engine_of(package, precision="fp32")
    with pytest.raises(EngineUnavailableError, match=r"OpenVINO .*differs by"):
        engine_of(package, precision="fp32", backend="openvino")


@pytest.mark.parametrize("long_run_s", [0.0, 1e9])
def test_slow_models_get_all_cores_for_each_run(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, long_run_s: float
) -> None:
    monkeypatch.setattr("service.detector.LONG_RUN_S", long_run_s)
    monkeypatch.setattr("service.detector.available_cores", lambda: 3)
    for backend in ("openvino", "onnxruntime-cpu"):
        settings = Settings(models=bundled, backend=backend, precision="fp32")  # type: ignore[arg-type]
        engine, _ = open_model_engine(load_package(bundled), settings)
        assert engine.concurrency == (3 if long_run_s else 1)
        engine.close()


def test_the_engine_with_all_cores_passes_the_self_test_too(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.detector.LONG_RUN_S", 0.0)
    monkeypatch.setattr("service.detector.available_cores", lambda: 3)
    checked: list[int] = []
    check = SelfTest.check

    def record(self: SelfTest, engine: Engine) -> None:
        checked.append(engine.concurrency)
        check(self, engine)

    monkeypatch.setattr(SelfTest, "check", record)
    engine_of(bundled, backend="openvino", precision="fp32")
    assert checked == [3, 1]
