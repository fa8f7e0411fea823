"""Engines that are built before the service is ready."""

import sys
from pathlib import Path

import pytest
from support.serving import make_manifest

from model_package import ModelPackage
from service.engines import EngineUnavailableError
from service.engines import build_engines as engine_building
from service.engines.build_engines import build_engines
from service.model_registry import load_models
from service.observability.metrics import Metrics
from service.settings import Settings


def have_builder(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Put a program in the builder's place."""
    monkeypatch.setattr(engine_building, "BUILD_COMMAND", (sys.executable, "-c", program))


def test_progress_is_told_and_the_package_is_read_again(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_builder(
        monkeypatch,
        "import sys\n"
        "assert sys.argv[2:] == ['--backend', 'tensorrt', '--progress', 'json', "
        "'--optimal-batch-size', '4', '--max-batch-size', '4'], sys.argv\n"
        'for share in (0, 0.5, 1): print(\'{"progress": %s, "step": "tactics"}\' % share)\n',
    )
    told: list[tuple[float, str]] = []
    package = ModelPackage(bundled, make_manifest())
    again = build_engines(package, "tensorrt", 4, lambda *facts: told.append(facts))
    assert told == [(0, "tactics"), (0.5, "tactics"), (1, "tactics")]
    assert again.manifest.name == "blood_cells"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('TensorRT is not installed.', file=sys.stderr); sys.exit(2)",
         "TensorRT is not installed"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
    ],
)  # fmt: skip
def test_a_build_that_fails_stops_the_start_with_its_reason(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    have_builder(monkeypatch, program)
    settings = Settings(models=bundled, backend="tensorrt", build_engines=True)
    with pytest.raises(EngineUnavailableError, match=reason):
        load_models(settings, Metrics(), print)


def test_the_real_builder_is_found_and_says_what_it_lacks(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A library that cannot be imported stands for one that is not installed.
    (tmp_path / "tensorrt.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(EngineUnavailableError, match=r"could not be built: .*TensorRT"):
        build_engines(ModelPackage(bundled, make_manifest()), "tensorrt", 4, print)


def test_what_to_build_must_be_said() -> None:
    with pytest.raises(
        ValueError, match="needs the backend tensorrt or tensorrt-rtx, received auto"
    ):
        Settings(build_engines=True)
