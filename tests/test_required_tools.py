"""Continuous integration fails where a test is skipped for lack of a tool."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("required", "failed"), [("promtool gcc", False), ("no-such-tool", True)])
def test_a_skip_for_lack_of_a_required_tool_is_a_failure(
    required: str, failed: bool, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_skipped.py").write_text(
        "from support.tools import find_tool\ndef test_it():\n    find_tool('no-such-tool', '?')\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q"],
        cwd=tmp_path,
        env=os.environ
        | {"REQUIRE_TOOLS": required, "PYTHONPATH": f"{project}:{project / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ("no-such-tool is not installed (?), but REQUIRE_TOOLS lists" in result.stdout) == failed
    assert result.returncode == (1 if failed else 0), result.stdout + result.stderr
