"""External programs that some tests need; tests are skipped if they are not installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REQUIRE_TOOLS = "REQUIRE_TOOLS"
"""Environment variable: names of tools that must be present, separated by spaces."""

MIN_COMPOSE = (2, 24)
"""Oldest version of Docker Compose that can read docker-compose.yml."""


def required_tool(skip_reason: str) -> str | None:
    """Return the tool of ``REQUIRE_TOOLS`` that the reason of a skipped test names, if any.

    tests/conftest.py fails such a test: .ci/run lists what it has installed.
    """
    names = os.environ.get(REQUIRE_TOOLS, "").split()
    return next((name for name in names if name in skip_reason), None)


def find_tool(name: str, source: str) -> str:
    """Return the path of the program ``name``; skip the test if it is not installed."""
    beside_python = Path(sys.executable).parent / name
    path = shutil.which(name) or (str(beside_python) if os.access(beside_python, os.X_OK) else "")
    if not path:
        pytest.skip(f"{name} is not installed ({source})")
    return path


def find_compose() -> list[str]:
    """Return the command of Docker Compose; skip the test if there is none that is new enough.

    ``docker compose config`` does not need a Docker daemon.
    """
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = subprocess.run(
                [*command, "version", "--short"], capture_output=True, text=True, check=False
            )
            found = re.match(r"v?(\d+)\.(\d+)", version.stdout)
            if found and (int(found[1]), int(found[2])) >= MIN_COMPOSE:
                return command
    needed = "Docker Compose {}.{}".format(*MIN_COMPOSE)
    pytest.skip(f"{needed} is not installed (Debian 13: apt-get install docker-compose)")
