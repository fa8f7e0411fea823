"""Images of docker/Dockerfile, built and run without a container engine.

buildah builds them in a chroot, on a Debian root that debootstrap makes. Commands run in them under
the conditions of a service of docker-compose.yml. Needs root.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.tools import find_tool

BASE = "localhost/debian"
_INDEXES = ("index-url", "extra-index-url")


class ImageStore:
    """Images, stored in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._buildah = (
            find_tool("buildah", "apt-get install buildah"),
            *(f"--root={directory / 'storage'}", f"--runroot={directory / 'run'}"),
        )

    def make_base(self) -> None:
        """Make the image :data:`BASE`: Debian 12 without Python."""
        debootstrap = find_tool("debootstrap", "apt-get install debootstrap")
        container = self._call("from", "scratch")
        root = self._call("mount", container)
        options = ("--variant=minbase", "--include=ca-certificates")
        # debootstrap mounts /proc in the new root; with a namespace it does not stay mounted.
        _run("unshare", "--mount", debootstrap, *options, "bookworm", root)
        self._call("commit", "--quiet", "--rm", container, BASE)

    def unmount(self) -> None:
        """Unmount all images, so that the directory can be deleted."""
        self._call("umount", "--all")

    def build(self, project: Path, arguments: Mapping[str, str]) -> "Image":
        """Build docker/Dockerfile on :data:`BASE` with these build arguments."""
        settings, paths = pip_settings()
        pip_conf = self._directory / "pip.conf"
        pip_conf.write_text(settings)
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options.append(f"--volume={pip_conf}:/etc/pip.conf:ro")
        options += [f"--volume={path}:{path}:ro" for path in paths]
        name = self._call(
            *("build", "--quiet", "--isolation=chroot", "--format=docker"),
            *(f"--build-arg=BASE={BASE}", *options),
            *("--file", project / "docker/Dockerfile", project),
        ).splitlines()[-1]
        config = json.loads(self._call("inspect", "--type=image", name))["Docker"]["config"]
        return Image(Path(self._call("mount", self._call("from", name))), config)

    def _call(self, *arguments: object) -> str:
        return _run(*self._buildah, *arguments)


@dataclass(frozen=True)
class Image:
    """The files and the configuration of an image."""

    root: Path
    config: Mapping[str, Any]

    def command(
        self,
        service: Mapping[str, Any],
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        volumes: Mapping[str, Path] | None = None,
        control_group: Path | None = None,
    ) -> list[str]:
        """Return the command that runs a service of ``docker compose config`` in this image.

        Its process gets the user, the environment, the temporary and the read-only file systems of
        the service, no capabilities and, with the network mode ``none``, no network. Otherwise
        it shares the network of the host. ``environment``: variables that replace those of the
        service; ``volumes``: directories in place of its volumes, by mount point;
        ``control_group``: directory of the control group that the process joins.
        """
        script = ["set -e", f"mount --bind {self.root} {self.root}"]
        if control_group is not None:
            script.append(f"echo $$ > {control_group}/cgroup.procs")
        script += [f"mount --rbind {path} {self.root}{path}" for path in ("/dev", "/proc", "/sys")]
        for mount in service.get("volumes", ()):
            target = f"{self.root}{mount['target']}"
            source = (volumes or {}).get(mount["target"], mount.get("source"))
            script += [f"mkdir -p {target}", f"mount --bind {source} {target}"]
            if mount.get("read_only"):
                script.append(f"mount -o remount,bind,ro {target}")
        for mount in service["tmpfs"]:
            target, _, options = mount.partition(":")
            script.append(f"mount -t tmpfs -o {options} tmpfs {self.root}{target}")
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        script.append(f"mount -o remount,bind,ro {self.root}")
        variables = dict(entry.split("=", 1) for entry in self.config["Env"])
        variables |= service.get("environment", {}) | (environment or {})
        user, _, group = service["user"].partition(":")
        program = [*(service.get("entrypoint") or self.config["Entrypoint"]), *arguments]
        inside = (
            *("env", "-i", "-C", self.config["WorkingDir"]),
            *(f"{name}={value}" for name, value in variables.items()),
            *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
            *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--", *program),
        )
        script.append(f"exec chroot {self.root} {shlex.join(inside)}")
        network = ["--net"] if service.get("network_mode") == "none" else []
        return [
            "unshare",
            "--mount",
            "--propagation=private",
            *network,
            "sh",
            "-c",
            "\n".join(script),
        ]


@dataclass(frozen=True)
class MemoryGroup:
    """A control group that limits the memory of its processes."""

    path: Path
    is_v2: bool

    @property
    def peak_bytes(self) -> int:
        """Largest memory so far, the cached pages of files included."""
        name = "memory.peak" if self.is_v2 else "memory.max_usage_in_bytes"
        return int((self.path / name).read_text())

    @property
    def killed(self) -> int:
        """Number of processes that were killed for exceeding the limit."""
        text = (self.path / ("memory.events" if self.is_v2 else "memory.oom_control")).read_text()
        return int(re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE)[0])


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Make a control group for the block, which must end its processes."""
    root = Path("/sys/fs/cgroup")
    is_v2 = (root / "cgroup.controllers").exists()
    mount = root if is_v2 else root / "memory"
    path = mount / f"centernet-{os.getpid()}"
    try:
        path.mkdir()
        limit = "memory.max" if is_v2 else "memory.limit_in_bytes"
        (path / limit).write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    try:
        yield MemoryGroup(path, is_v2)
    finally:
        path.rmdir()


def pip_settings() -> tuple[str, list[Path]]:
    """Return the pip settings of this machine as a configuration file, and the paths they name.

    They lead a build to the package indexes that this machine uses.
    """
    listed = _run(sys.executable, "-m", "pip", "config", "list")
    found = re.findall(r"^([\w:-]+)\.([\w-]+)=(.*)$", listed, re.MULTILINE)
    # Environment variables take precedence. Indexes that cannot be reached are skipped soon.
    found.sort(key=lambda setting: setting[0] == ":env:")
    settings = {"retries": "1"} | {name: ast.literal_eval(value) for _, name, value in found}
    paths = set()
    for name, value in settings.items():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                # The pages of an index link to files beside it.
                paths.add(path.parent if name in _INDEXES else path)
    lines = [f"{name} = " + "\n    ".join(value.split()) for name, value in settings.items()]
    return "\n".join(["[global]", *lines, ""]), sorted(paths)


def _run(*command: object) -> str:
    """Run a command and return its output. Raises AssertionError if it fails."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}:\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
    return result.stdout.strip()
