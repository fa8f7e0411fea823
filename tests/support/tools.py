"""Programs that some tests need and that not every machine has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def find_tool(name: str, source: str) -> str:
    """Path of the program ``name``; skips the test where there is none."""
    beside_python = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside_python) if os.access(beside_python, os.X_OK) else "")
    if not found:
        pytest.skip(f"no {name} here ({source})")
    return found


def find_compose() -> list[str]:
    """How Docker Compose 2 or newer is called here; its ``config`` needs no Docker engine."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = subprocess.run(
                [*command, "version", "--short"], capture_output=True, text=True, check=False
            )
            major = version.stdout.strip().removeprefix("v").partition(".")[0]
            if version.returncode == 0 and major.isdigit() and int(major) >= 2:
                return command
    pytest.skip("no Docker Compose 2 here (Debian 13: docker-compose)")
