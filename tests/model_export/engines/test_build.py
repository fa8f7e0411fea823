"""Which engines are built, with which settings, and when they are built again."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.builds import (
    ADA,
    FREE,
    FULL,
    build,
    contents,
    deform_graph,
    engines_of,
    settings_of,
    tiny_graph,
    write_package,
)

from model_export.engines import build as build_module
from model_export.engines.build import BuiltEngine, EngineRequest
from model_export.engines.errors import EngineCompileError
from model_package import InputSpec, ModelPackage, PackageInvalidError, load_package
from model_package.gpu import Gpu

pytestmark = pytest.mark.usefixtures("fakes", "in_process")

BLACKWELL = replace(ADA, compute_capability="12.0")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "find_gpu", lambda: Gpu("NVIDIA H200", "9.0"))


@pytest.mark.usefixtures("child_process")
def test_builds_an_engine_from_every_file(package: ModelPackage) -> None:
    observer = build(package.directory, replace(ADA, precision=None))
    assert [step.partition(" for ")[0] for step in observer.steps] == [
        "1/4 Build model.onnx",
        "2/4 Build model_flip.onnx",
        "3/4 Build model_fp16.onnx",
        "4/4 Build model_flip_fp16.onnx",
    ]
    engines = engines_of(package.directory)
    assert [(engine.precision, engine.flip) for engine in engines] == [
        ("fp32", False),
        ("fp32", True),
        ("fp16", False),
        ("fp16", True),
    ]
    for engine, source in zip(engines, package.manifest.artifacts, strict=True):
        assert engine.built_from == source.sha256
        assert engine.requires.model_dump() == {
            "version": "1.7.1.116",
            "compute_capability": "8.9",
            "gpu": None,
        }
        stem = source.file.removesuffix(".onnx")
        assert engine.file.startswith(f"{stem}.sm89.tensorrt_rtx-1.7.1.116.")
    fractions = observer.fractions[: len(observer.fractions) // 4]
    assert fractions == sorted(set(fractions)), "progress increases"
    assert fractions[-1] == 1.0
    files = {*contents(package.directory)}
    assert files == {"model.json", *(a.file for a in (*package.manifest.artifacts, *engines))}


def test_passes_the_settings_to_the_library(small: Path) -> None:
    build(small, replace(ADA, optimal_batch_size=3, max_batch_size=5))
    (engine,) = engines_of(small)
    assert settings_of(small, engine) == {
        "flags": 1,
        "operators": ["Cast"],
        "profiles": [["images", [1, 64, 96, 3], [3, 64, 96, 3], [5, 64, 96, 3]]],
        "tf32": False,
        "targets": ["SM89"],
        "timings": None,
    }
    assert engine.batch.model_dump() == {"min": 1, "opt": 3, "max": 5}
    assert not engine.tf32


def test_the_profile_covers_all_allowed_sizes(tmp_path: Path) -> None:
    spec = InputSpec(width_px=96, height_px=64, free_size=FREE)
    directory = tmp_path / "free"
    write_package(directory, {"model.onnx": tiny_graph()}, spec)
    build(directory, ADA)
    (engine,) = engines_of(directory)
    shapes = [[1, 32, 32, 3], [8, 64, 96, 3], [8, 96, 96, 3]]
    assert settings_of(directory, engine)["profiles"] == [["images", *shapes]]


def test_does_not_build_an_existing_engine_again(small: Path) -> None:
    first = build(small, ADA)
    before = contents(small)
    again = build(small, ADA)
    assert contents(small) == before
    assert again.built == [BuiltEngine(first.built[0].artifact, None)]
    assert again.fractions == []


@pytest.mark.parametrize(
    "change", [{"max_batch_size": 16}, {"optimal_batch_size": 4}, {"tf32": True}]
)
def test_replaces_an_engine_for_the_same_gpu(small: Path, change: dict[str, object]) -> None:
    build(small, ADA)
    (old,) = engines_of(small)
    build(small, replace(ADA, **change))
    (new,) = engines_of(small)
    assert new.file != old.file
    assert {*contents(small)} == {"model.json", "model.onnx", new.file}


def test_replaces_an_engine_of_another_version(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(small, ADA)
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx, "__version__", "1.8.0.1")
    build(small, ADA)
    (engine,) = engines_of(small)
    assert engine.requires.version == "1.8.0.1"
    assert {*contents(small)} == {"model.json", "model.onnx", engine.file}


def test_keeps_engines_for_other_gpus(small: Path) -> None:
    for request in (ADA, BLACKWELL, ADA):
        build(small, request)
    capabilities = [engine.requires.compute_capability for engine in engines_of(small)]
    assert capabilities == ["8.9", "12.0"]


@pytest.mark.usefixtures("gpu")
def test_full_tensorrt_builds_for_the_gpu_of_the_machine(small: Path) -> None:
    build(small, FULL)
    (engine,) = engines_of(small)
    assert engine.backend == "tensorrt"
    assert engine.requires.gpu == "NVIDIA H200"
    assert engine.file.startswith("model.sm90.nvidia-h200.tensorrt-10.9.0.34.")
    settings = settings_of(small, engine)
    assert settings["flags"] == 0b1001  # strongly typed; plugins are compiled into the engine
    assert settings["targets"] == []


@pytest.mark.usefixtures("gpu", "child_process")
def test_a_build_that_dies_leaves_no_partial_timing_cache(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    cache.write_bytes(b"fail")  # the child process ends while it writes the cache
    with pytest.raises(EngineCompileError, match="ended without an engine"):
        build(small, replace(FULL, timing_cache=cache))
    assert {path.name for path in tmp_path.iterdir()} == {"timings", "tiny"}


@pytest.mark.usefixtures("gpu")
def test_the_timing_cache_is_read_and_extended(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    for batch, timings in ((1, ""), (2, "measured;")):
        request = replace(FULL, timing_cache=cache, optimal_batch_size=batch)
        build(small, request)
        (engine,) = engines_of(small)
        assert settings_of(small, engine)["timings"] == timings
    assert {path.name for path in tmp_path.iterdir()} == {"timings", "tiny"}
    cache.write_bytes(b"other GPU;")
    with pytest.raises(EngineCompileError, match=r"timing cache .* is of another GPU"):
        build(small, replace(FULL, timing_cache=cache))


@pytest.mark.usefixtures("gpu")
def test_deform_conv_is_lowered_for_rtx_only(tmp_path: Path) -> None:
    directory = tmp_path / "deform"
    write_package(directory, {"model.onnx": deform_graph()})
    build(directory, ADA)
    build(directory, FULL)
    rtx, full = (settings_of(directory, engine)["operators"] for engine in engines_of(directory))
    assert full == ["DeformConv"]
    assert "GridSample" in rtx
    assert "DeformConv" not in rtx


def test_the_default_target_is_the_gpu_of_the_machine(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "find_gpu", lambda: Gpu("NVIDIA L4", "8.9"))
    build(small, EngineRequest(backend="tensorrt-rtx"))
    (engine,) = engines_of(small)
    assert engine.requires.compute_capability == "8.9"
    assert engine.requires.gpu is None  # other GPUs of this compute capability can run it too


def test_builds_a_damaged_engine_again(small: Path) -> None:
    build(small, ADA)
    build(small, BLACKWELL)
    (ada, blackwell) = engines_of(small)
    (small / ada.file).write_bytes(b"x" * ada.size_bytes)
    (small / blackwell.file).unlink()
    with pytest.raises(PackageInvalidError, match="SHA-256"):
        load_package(small)
    observer = build(small, ADA)
    assert observer.removed_files == [ada.file, blackwell.file]
    assert engines_of(small) == [ada]


def test_a_damaged_onnx_file_is_an_error(small: Path) -> None:
    (small / "model.onnx").write_bytes(b"short")
    with pytest.raises(PackageInvalidError, match="has 5 bytes"):
        build(small, ADA)
