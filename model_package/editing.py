"""Atomic addition of engines, int8 files and references to a package, by one writer at a time.

Concurrent readers see the package either before or after an edit: a file gets a new name,
then ``model.json`` is replaced by a rename, and only then are old files removed. Not part of the
public names of :mod:`model_package`, because only the exporter needs it and ``fcntl`` is not
available on every platform.
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
from model_package.manifest import EngineArtifact, ModelManifest, OnnxArtifact, References

_LOCK_FILE = ".build.lock"
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.partial|.+\.[0-9a-f]{8}\.(engine|onnx|npz)")
"""Files that a killed edit may leave behind; those with a digest only if they are not listed."""


@dataclass
class PackageEdit:
    """A package that is locked for changes by this process."""

    directory: Path
    manifest: ModelManifest
    """Current content of ``model.json``."""
    damaged: tuple[EngineArtifact, ...]
    """Listed engines whose files were missing or modified; removed from the manifest."""

    def new_file(self) -> Path:
        """Return a new hidden file path; the file is removed after the edit unless added."""
        return self.directory / f".{secrets.token_hex(8)}.partial"

    def add_engine(self, engine: EngineArtifact, content: Path) -> None:
        """Move ``content``, from :meth:`new_file`, into the package as ``engine``.

        It replaces an engine for the same kind of machine. Its file name must end in eight
        hexadecimal digits, derived from its source file and target, and ``.engine``.
        """
        if not _LEFTOVER.fullmatch(engine.file):
            raise ValueError(f"{engine.file} is not a valid engine file name")
        check_artifact(content, engine)
        content.replace(self.directory / engine.file)
        others = [
            artifact
            for artifact in self.manifest.artifacts
            if not (isinstance(artifact, EngineArtifact) and _same_machine(artifact, engine))
        ]
        self._update(artifacts=(*others, engine))

    def add_int8_file(self, artifact: OnnxArtifact, content: Path) -> None:
        """Move ``content``, from :meth:`new_file`, into the package as ``artifact``.

        It replaces an int8 file with the same flip, and the engines that were built from that. Its
        file name must end in eight hexadecimal digits of its digest and ``.onnx``.
        """
        if not _LEFTOVER.fullmatch(artifact.file):
            raise ValueError(f"{artifact.file} is not a valid name of an int8 file")
        check_artifact(content, artifact)
        content.replace(self.directory / artifact.file)
        replaced = {
            other.sha256
            for other in self.manifest.artifacts
            if (other.backend, other.precision, other.flip)
            == (artifact.backend, artifact.precision, artifact.flip)
        }
        others = [
            other
            for other in self.manifest.artifacts
            if other.sha256 not in replaced
            and not (isinstance(other, EngineArtifact) and other.built_from in replaced)
        ]
        self._update(artifacts=(*others, artifact))

    def set_references(self, references: References, content: Path) -> None:
        """Move ``content``, from :meth:`new_file`, into the package as its references.

        The file name must end in eight hexadecimal digits of its digest and ``.npz``.
        """
        if not _LEFTOVER.fullmatch(references.file):
            raise ValueError(f"{references.file} is not a valid name of references")
        content.replace(self.directory / references.file)
        self._update(references=references)

    def _update(self, **changes: object) -> None:
        """Write changed fields to ``model.json`` and remove the files that it no longer lists."""
        fields = {name: getattr(self.manifest, name) for name in ModelManifest.model_fields}
        manifest = ModelManifest.model_validate(fields | changes)
        partial = self.new_file()
        write_manifest(manifest, partial)
        partial.replace(self.directory / MANIFEST_FILE)
        _sync_directory(self.directory)
        self.manifest = manifest
        _remove_leftovers(self.directory, manifest)


@contextmanager
def edit_package(directory: Path) -> Iterator[PackageEdit]:
    """Lock the package in ``directory`` for changes; leftovers of a killed edit are removed.

    Raises :class:`PackageBusyError` while another edit runs, :class:`PackageInvalidError` for an
    invalid manifest or ONNX file, :class:`PackageError` if the directory is not writable. Damaged
    engines are removed from the manifest, since they can be built again.
    """
    read_manifest(directory)  # creates no lock file if this is not a package
    with _locked(directory):
        manifest = read_manifest(directory)
        damaged = tuple(_damaged_engines(directory, manifest))
        edit = PackageEdit(directory, manifest, damaged)
        _remove_leftovers(directory, manifest)
        if damaged:
            edit._update(artifacts=tuple(a for a in manifest.artifacts if a not in damaged))
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
    """Return whether both engines serve the same purpose on the same kind of machine."""

    def kind(engine: EngineArtifact) -> tuple[object, ...]:
        machine = engine.requires.compute_capability, engine.requires.gpu
        return engine.backend, engine.precision, engine.flip, machine

    return kind(one) == kind(other)


def _remove_leftovers(directory: Path, manifest: ModelManifest) -> None:
    listed = {artifact.file for artifact in manifest.artifacts}
    if manifest.references is not None:
        listed.add(manifest.references.file)
    for path in directory.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.name not in listed:
            path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Sync ``directory``, so that renames in it survive a power failure."""
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
    """Lock ``path``, creating it if needed; the kernel releases the lock when the process ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(path, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous owner removed the file meanwhile


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
