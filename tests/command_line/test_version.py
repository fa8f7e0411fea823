"""``--version`` and ``--help`` of every command in ``[project.scripts]``."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from command_line.version import describe_versions

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "scripts"
]
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "numpy", "cv2", "fastapi", "matplotlib"}


def run(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command; the names of the modules that it loaded are on standard error."""
    module, function = SCRIPTS[command].split(":")
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"from {module} import {function}\n"
        f"sys.exit({function}())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_command_prints_the_versions_without_its_libraries(command: str) -> None:
    result = run(command, "--version")
    assert result.stdout == f"{describe_versions(command)}\n"
    assert not HEAVY & set(result.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("command", SCRIPTS)
def test_the_help_of_a_command_names_the_option(command: str) -> None:
    if command == "centernet-detect-ray":
        pytest.importorskip("ray", reason="ray is not installed (extra ray)")
    assert "--version " in run(command, "--help").stdout


def test_the_versions_are_those_of_the_installed_libraries() -> None:
    text = describe_versions("centernet-serve")
    assert text.startswith(f"centernet-serve {version('centernet-serving')} (Python 3.")
    for library in ("onnxruntime", "openvino", "torch"):
        assert f", {library} {version(library)}" in text
    assert "onnxruntime-gpu" not in text, "it is not installed"
