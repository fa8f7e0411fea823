"""Reading and writing packages: verified by digest, published by one rename."""

import hashlib
import os
import shutil
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
from model_package.manifest import Artifact, ModelManifest, OnnxArtifact, Verification

MANIFEST_FILE = "model.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class ModelPackage:
    """A package on disk whose artifacts have the digests that its manifest states."""

    directory: Path
    manifest: ModelManifest

    def path_of(self, artifact: Artifact) -> Path:
        """Where the file of ``artifact`` is."""
        return self.directory / artifact.file


def load_package(directory: Path) -> ModelPackage:
    """Read the package in ``directory`` and check every artifact against its digest.

    Raises :class:`PackageNotFoundError` without ``model.json`` and :class:`PackageInvalidError`
    for a manifest or an artifact that is not as it should be.
    """
    manifest = _read_manifest(directory / MANIFEST_FILE)
    for artifact in manifest.artifacts:
        _check_artifact(directory / artifact.file, artifact)
    return ModelPackage(directory, manifest)


def _read_manifest(path: Path) -> ModelManifest:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise PackageNotFoundError(
            f"{path.parent} is not a model package: it has no {MANIFEST_FILE}. "
            "Make one with centernet-export, or name another directory."
        ) from None
    except OSError as error:
        raise PackageInvalidError(f"{path} cannot be read: {error}") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise PackageInvalidError(
            f"{path} is larger than the {MAX_MANIFEST_BYTES} bytes that a manifest may have."
        )
    try:
        return ModelManifest.model_validate_json(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'model.json'}: {item['msg']}"
            for item in error.errors(include_url=False, include_context=False)[:5]
        )
        raise PackageInvalidError(
            f"{path} is not a manifest that this version reads: {problems}. "
            "Export the model again with this version's centernet-export."
        ) from error


def _check_artifact(path: Path, artifact: Artifact) -> None:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != artifact.size_bytes:
            raise PackageInvalidError(
                f"{path} has {size_bytes} bytes, its manifest says {artifact.size_bytes}: "
                "the package is damaged or was changed. Copy or export it again."
            )
        digest = sha256_of(path)
    except OSError as error:
        raise PackageInvalidError(f"artifact {path} cannot be read: {error}") from error
    if digest != artifact.sha256:
        raise PackageInvalidError(
            f"{path} has the SHA-256 {digest}, its manifest says {artifact.sha256}: "
            "the package is damaged or was changed. Copy or export it again."
        )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class PackageDraft:
    """A package in the making: put artifacts into ``directory``, then publish it."""

    directory: Path
    output: Path
    _published: bool = field(default=False, init=False)

    def describe_artifact(
        self, file: str, *, flip: bool = False, agreement: Verification | None = None
    ) -> OnnxArtifact:
        """State the digest and size of a finished ONNX file in the draft.

        ``agreement`` says how a file in half precision agrees with the float32 one.
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
        """Write ``model.json`` and move the draft to its place, in one step for any onlooker.

        Raises :class:`PackageError` when an artifact does not have the digest of the manifest.
        """
        path = self.directory / MANIFEST_FILE
        with path.open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        load_package(self.directory)
        self.directory.chmod(0o755)  # temporary directories are private
        try:
            self.directory.rename(self.output)
        except OSError as error:
            raise _already_there(self.output) from error
        self._published = True
        return ModelPackage(self.output, manifest)


@contextmanager
def draft_package(output: Path) -> Iterator[PackageDraft]:
    """Start a package that will stand at ``output``; what is not published is removed.

    Raises :class:`PackageExistsError` when ``output`` exists.
    """
    if output.exists():
        raise _already_there(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the output, because a rename does not cross file systems; hidden, so that a
        # service looking for packages passes it over.
        directory = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise PackageError(f"cannot write a package to {output}: {error}") from error
    draft = PackageDraft(directory, output)
    try:
        yield draft
    finally:
        if not draft._published:
            shutil.rmtree(directory, ignore_errors=True)


def _already_there(output: Path) -> PackageExistsError:
    return PackageExistsError(
        f"{output} exists already. Remove it, or choose another --output: "
        "a package is never changed in place."
    )
