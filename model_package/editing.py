"""Adding engines to a package that stands: one writer at a time, and complete or not at all.

Whoever reads meanwhile sees the package as it was or as it will be: an engine gets a name that no
file had, then ``model.json`` is replaced by one rename, and only then do old engines go. Apart
from :mod:`model_package` because only the builder needs it, and ``fcntl`` is not everywhere.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model_package.directory import (
    MANIFEST_FILE,
    check_artifact,
    read_manifest,
    write_manifest,
)
from model_package.errors import PackageBusyError, PackageError, PackageInvalidError
from model_package.manifest import Artifact, EngineArtifact, ModelManifest, OnnxArtifact

_LOCK_FILE = ".build.lock"
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.partial|.+\.[0-9a-f]{8}\.engine")
"""Files that a killed build may leave behind; the engines among them that are not listed."""


@dataclass
class PackageEdit:
    """A package that this process alone may change."""

    directory: Path
    manifest: ModelManifest
    """What ``model.json`` says now."""
    damaged: tuple[EngineArtifact, ...]
    """Engines that were listed but lost or changed; they are listed no longer."""

    def new_file(self) -> Path:
        """Name a hidden file to write an engine to; gone with the edit unless it is added."""
        return self.directory / f".{secrets.token_hex(8)}.partial"

    def add_engine(self, engine: EngineArtifact, content: Path) -> None:
        """Put ``content``, from :meth:`new_file`, into the package as ``engine``.

        It takes the place of another for the same kind of machine. Its name must end in eight
        hexadecimal digits that stand for what it was built from and for, and ``.engine``.
        """
        if not _LEFTOVER.fullmatch(engine.file):
            raise ValueError(f"{engine.file} is not a name that an engine may have")
        check_artifact(content, engine)
        content.replace(self.directory / engine.file)
        others = [
            artifact
            for artifact in self.manifest.artifacts
            if not (isinstance(artifact, EngineArtifact) and _same_machine(artifact, engine))
        ]
        self._list((*others, engine))

    def _list(self, artifacts: tuple[Artifact, ...]) -> None:
        """Have ``model.json`` list these artifacts, and remove the files of others."""
        facts = {name: getattr(self.manifest, name) for name in ModelManifest.model_fields}
        manifest = ModelManifest(**facts | {"artifacts": artifacts})
        partial = self.new_file()
        write_manifest(manifest, partial)
        partial.replace(self.directory / MANIFEST_FILE)
        _wait_for_disk(self.directory)
        self.manifest = manifest
        _remove_leftovers(self.directory, manifest)


@contextmanager
def edit_package(directory: Path) -> Iterator[PackageEdit]:
    """Change the package in ``directory``; what a killed edit left there is removed.

    Raises :class:`PackageBusyError` while another edit runs, :class:`PackageInvalidError` for a
    manifest or an ONNX file that is not as it should be, :class:`PackageError` where nothing can
    be written. Engines that are not as they should be are dropped: they can be built again.
    """
    read_manifest(directory)  # no lock in what is no package
    with _locked(directory):
        manifest = read_manifest(directory)
        damaged = tuple(_damaged_engines(directory, manifest))
        edit = PackageEdit(directory, manifest, damaged)
        _remove_leftovers(directory, manifest)
        if damaged:
            edit._list(tuple(a for a in manifest.artifacts if a not in damaged))
        try:
            yield edit
        finally:
            _remove_leftovers(directory, edit.manifest)


def _damaged_engines(directory: Path, manifest: ModelManifest) -> Iterator[EngineArtifact]:
    for artifact in manifest.artifacts:
        try:
            check_artifact(directory / artifact.file, artifact)
        except PackageInvalidError:
            if isinstance(artifact, OnnxArtifact):
                raise
            yield artifact


def _same_machine(one: EngineArtifact, other: EngineArtifact) -> bool:
    """Whether both would be taken for the same work on the same machine."""

    def kind(engine: EngineArtifact) -> tuple[object, ...]:
        machine = engine.requires.compute_capability, engine.requires.gpu
        return engine.backend, engine.precision, engine.flip, machine

    return kind(one) == kind(other)


def _remove_leftovers(directory: Path, manifest: ModelManifest) -> None:
    listed = {artifact.file for artifact in manifest.artifacts}
    for path in directory.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.name not in listed:
            path.unlink(missing_ok=True)


def _wait_for_disk(directory: Path) -> None:
    """Return when the renames in ``directory`` would survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    path = directory / _LOCK_FILE
    try:
        descriptor = _take_lock(path)
    except BlockingIOError:
        raise PackageBusyError(
            f"another build is writing to {directory}. Wait for it, or stop it."
        ) from None
    except OSError as error:
        raise PackageError(f"cannot write to the package {directory}: {error}") from error
    try:
        yield
    finally:
        path.unlink()
        os.close(descriptor)


def _take_lock(path: Path) -> int:
    """Lock ``path``, made if need be; a lock dies with its process, however that dies."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner finished and removed it in between


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
