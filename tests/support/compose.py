"""The configuration that Docker Compose makes of docker-compose.yml."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from support.tools import find_compose


def compose_config(project: Path, *profiles: str, **variables: str) -> dict[str, Any]:
    """Return the configuration of these profiles, as ``docker compose config`` prints it.

    ``variables``: variables of the shell that calls Compose.
    """
    command = [*find_compose(), "--project-directory", str(project)]
    command += [part for profile in profiles for part in ("--profile", profile)]
    # Ignore variables of the calling shell, so that only the files determine the configuration.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= variables
    result = subprocess.run(
        [*command, "config", "--format", "json"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr  # warnings, for example about unset variables
    config: dict[str, Any] = json.loads(result.stdout)
    return config
