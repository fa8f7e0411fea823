"""Connections and name look-ups of a process, as seen by strace."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.tools import find_tool

_CALLS = "connect,sendto,sendmsg,sendmmsg"
_LOCAL = re.compile(
    r'sin_addr=inet_addr\("127\.|inet_pton\(AF_INET6, "::(1|ffff:127\.[\d.]+)"|sun_path='
)


def traced(output: Path, command: Sequence[str]) -> list[str]:
    """Return the command that runs ``command`` and writes its network calls to ``output``."""
    strace = find_tool("strace", "apt-get install strace")
    options = ["-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e", f"trace={_CALLS}"]
    return [strace, *options, "-o", str(output), *command]


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment with a new home directory and no variable that disables telemetry."""
    hidden = ("CI", "ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"HOME": str(home)}


def outside_calls(output: Path) -> list[str]:
    """Return the calls in ``output`` with an address that is not of this machine."""
    lines = output.read_text().splitlines()
    return [line for line in lines if "sa_family=AF_INET" in line and not _LOCAL.search(line)]


def outside_calls_of(command: Sequence[str], directory: Path, cwd: Path) -> list[str]:
    """Run a command and return its calls with an address that is not of this machine."""
    output = directory / "strace.txt"
    environment = clean_environment(directory) | {"PYTHONPATH": f"{cwd}"}
    run = subprocess.run(
        traced(output, command), cwd=cwd, env=environment, capture_output=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return outside_calls(output)
