"""Building engines before the service is ready."""

import sys
from pathlib import Path

import pytest
from support.serving import make_manifest

from model_package import ModelPackage, load_package
from service.engines import EngineUnavailableError
from service.engines import build_engines as build_engines_module
from service.engines.build_engines import build_engines
from service.model_registry import load_models
from service.observability.metrics import Metrics
from service.settings import Settings


def replace_build_command(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run a Python program instead of the build command."""
    monkeypatch.setattr(build_engines_module, "BUILD_COMMAND", (sys.executable, "-c", program))


def test_reports_progress_and_loads_the_package_again(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_build_command(
        monkeypatch,
        "import sys\n"
        "assert sys.argv[2:] == ['--backend', 'tensorrt', '--progress', 'json', "
        "'--optimal-batch-size', '4', '--max-batch-size', '4'], sys.argv\n"
        'for share in (0, 0.5, 1): print(\'{"progress": %s, "step": "tactics"}\' % share)\n',
    )
    events: list[tuple[float, str]] = []
    package = ModelPackage(bundled, make_manifest())
    rebuilt = build_engines(package, "tensorrt", 4, lambda *event: events.append(event))
    assert events == [(0, "tactics"), (0.5, "tactics"), (1, "tactics")]
    assert rebuilt.manifest.name == "blood_cells"


@pytest.mark.parametrize(("interval_s", "count"), [(-1.0, 3), (1e9, 0)])
def test_a_build_is_logged_at_intervals(
    bundled: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    interval_s: float,
    count: int,
) -> None:
    caplog.set_level("INFO")
    program = 'for share in (0, 0.5, 1): print(\'{"progress": %s, "step": "tactics"}\' % share)'
    replace_build_command(monkeypatch, program)
    monkeypatch.setattr("service.model_repository.BUILD_LOG_INTERVAL_S", interval_s)
    settings = Settings(models=bundled, backend="tensorrt", build_engines=True)
    steps: list[str] = []
    with pytest.raises(EngineUnavailableError):  # the program has built no engine
        load_models(settings, Metrics(), steps.append)
    version = load_package(bundled).manifest.version
    builds = [
        step.removesuffix(", model 1 of 1")
        for step in steps
        if step.startswith(f"building an engine of blood_cells {version}, ")
    ]
    assert [build.partition(", ")[2] for build in builds] == [
        f"{percentage} % done: tactics" for percentage in (0, 50, 100)
    ]
    assert [message for message in caplog.messages if message in builds] == builds[:count]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('TensorRT is not installed.', file=sys.stderr); sys.exit(2)",
         "TensorRT is not installed"),
        ("import os; os.kill(os.getpid(), 9)", "exited with status -9"),
    ],
)  # fmt: skip
def test_a_failed_build_stops_the_start_with_its_message(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    replace_build_command(monkeypatch, program)
    settings = Settings(models=bundled, backend="tensorrt", build_engines=True)
    with pytest.raises(EngineUnavailableError, match=reason):
        load_models(settings, Metrics(), print)


def test_runs_the_exporter_and_reports_its_message(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module that cannot be imported, as if the library were not installed.
    (tmp_path / "tensorrt.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(EngineUnavailableError, match=r"could not be built: .*TensorRT"):
        build_engines(ModelPackage(bundled, make_manifest()), "tensorrt", 4, print)


def test_build_engines_requires_a_tensorrt_backend() -> None:
    with pytest.raises(
        ValueError, match="needs the backend tensorrt or tensorrt-rtx, received auto"
    ):
        Settings(build_engines=True)
