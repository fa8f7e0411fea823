"""Reading and writing of packages: verified by digest, published atomically by a rename."""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from model_package.errors import (
    PackageError,
    PackageExistsError,
    PackageInvalidError,
    PackageNotFoundError,
)
from model_package.manifest import (
    Artifact,
    ModelManifest,
    OnnxArtifact,
    References,
    Verification,
)
from model_package.onnx_file import check_self_contained

MANIFEST_FILE = "model.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_MANIFEST_VALUES = 25_000
"""Maximum values in ``model.json``, nested ones included: twice as many as with the most classes
and keypoints. An invalid value takes up to 7 kB of memory."""
_MAX_PROBLEMS, _MAX_PROBLEM_CHARACTERS = 5, 300


@dataclass(frozen=True)
class ModelPackage:
    """A package on disk whose artifacts match the digests in its manifest."""

    directory: Path
    manifest: ModelManifest

    def path_of(self, artifact: Artifact) -> Path:
        """Return the path of the file of ``artifact``."""
        return self.directory / artifact.file


def load_package(directory: Path) -> ModelPackage:
    """Read the package in ``directory`` and check every artifact against its digest.

    Raises :class:`PackageNotFoundError` if there is no ``model.json``, and
    :class:`PackageInvalidError` if the manifest or an artifact is invalid.
    """
    return check_files(directory, read_manifest(directory))


def check_files(directory: Path, manifest: ModelManifest) -> ModelPackage:
    """Check every artifact of ``manifest``; raises :class:`PackageInvalidError`."""
    for artifact in manifest.artifacts:
        check_artifact(directory / artifact.file, artifact)
    if manifest.references is not None:
        _check_content(directory / manifest.references.file, manifest.references)
    return ModelPackage(directory, manifest)


def read_manifest(directory: Path) -> ModelManifest:
    """Read only ``model.json``; raises like :func:`load_package`."""
    path = directory / MANIFEST_FILE
    try:
        _check_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise PackageNotFoundError(
            f"{path.parent} is not a model package: it has no {MANIFEST_FILE}. "
            "Create one with centernet-export, or give another directory."
        ) from None
    except OSError as error:
        raise PackageInvalidError(f"{path} cannot be read: {error}") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise PackageInvalidError(
            f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, the limit of a manifest."
        )
    if _count_values(content) > MAX_MANIFEST_VALUES:
        raise PackageInvalidError(
            f"{path} has more than {MAX_MANIFEST_VALUES} values, the limit of a manifest."
        )
    try:
        return ModelManifest.model_validate_json(content)
    except ValidationError as error:
        raise PackageInvalidError(
            f"{path} is not a manifest that this version supports: {_describe(error)}. "
            "Export the model again with this version's centernet-export."
        ) from error


def _count_values(document: bytes) -> int:
    """Return at least the number of values in a JSON document, without parsing it."""
    without_escapes = document.replace(rb"\\", b"").replace(rb"\"", b"")
    quotes = without_escapes.count(b'"')
    if quotes > 4 * MAX_MANIFEST_VALUES:  # a value has at most two strings, one of them its key
        return quotes
    structure = b"".join(without_escapes.split(b'"')[::2])  # what is outside of strings
    return 1 + sum(structure.count(character) for character in (b",", b"[", b"{"))


def _describe(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or MANIFEST_FILE}: {item['msg']}"[
            :_MAX_PROBLEM_CHARACTERS
        ]
        for item in problems[:_MAX_PROBLEMS]
    )


def check_artifact(path: Path, artifact: Artifact) -> None:
    """Raise :class:`PackageInvalidError` unless ``path`` is the file that ``artifact`` describes.

    It must be a regular file of that size and digest; an ONNX file must contain its weights.
    """
    _check_content(path, artifact)
    if isinstance(artifact, OnnxArtifact):
        check_self_contained(path)


def _check_content(path: Path, entry: Artifact | References) -> None:
    try:
        size_bytes = _check_regular(path).st_size
        if size_bytes != entry.size_bytes:
            raise PackageInvalidError(
                f"{path} has {size_bytes} bytes, but the manifest says {entry.size_bytes}: "
                "the package is damaged or was modified. Copy or export it again."
            )
        digest = sha256_of(path)
    except OSError as error:
        raise PackageInvalidError(f"artifact {path} cannot be read: {error}") from error
    if digest != entry.sha256:
        raise PackageInvalidError(
            f"{path} has the SHA-256 {digest}, but the manifest says {entry.sha256}: "
            "the package is damaged or was modified. Copy or export it again."
        )


def _check_regular(path: Path) -> os.stat_result:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise PackageInvalidError(
            f"{path} is a symbolic link, a directory or a device; only regular files inside the "
            "package are accepted. Copy the file into the package."
        )
    return status


def write_manifest(manifest: ModelManifest, path: Path) -> None:
    """Write ``manifest`` to ``path`` and sync it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class PackageDraft:
    """A package under construction: write artifacts to ``directory``, then publish it."""

    directory: Path
    output: Path
    _published: bool = field(default=False, init=False)

    def describe_artifact(
        self, file: str, *, flip: bool = False, agreement: Verification | None = None
    ) -> OnnxArtifact:
        """Return the manifest entry of a finished ONNX file in the draft.

        ``agreement`` is the comparison of an fp16 file with the fp32 file; None for fp32 files.
        """
        path = self.directory / file
        return OnnxArtifact(
            file=file,
            precision="fp32" if agreement is None else "fp16",
            flip=flip,
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
            agreement=agreement,
        )

    def publish(self, manifest: ModelManifest) -> ModelPackage:
        """Write ``model.json`` and move the draft to ``output`` atomically.

        Raises :class:`PackageError` if an artifact does not match its digest in the manifest.
        """
        write_manifest(manifest, self.directory / MANIFEST_FILE)
        load_package(self.directory)
        self.directory.chmod(0o755)  # temporary directories have mode 0700
        try:
            self.directory.rename(self.output)
        except OSError as error:
            raise _exists_error(self.output) from error
        self._published = True
        return ModelPackage(self.output, manifest)


@contextmanager
def draft_package(output: Path) -> Iterator[PackageDraft]:
    """Create a draft of a package at ``output``; it is removed unless published.

    Raises :class:`PackageExistsError` if ``output`` exists.
    """
    if output.exists():
        raise _exists_error(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # In the parent of the output, because a rename cannot cross file systems; hidden, so that
        # a service that scans for packages ignores it.
        directory = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise PackageError(f"cannot write a package to {output}: {error}") from error
    draft = PackageDraft(directory, output)
    try:
        yield draft
    finally:
        if not draft._published:
            shutil.rmtree(directory, ignore_errors=True)


def _exists_error(output: Path) -> PackageExistsError:
    return PackageExistsError(
        f"{output} exists already. Remove it, or choose another --output: "
        "an export never changes a package in place."
    )
