"""Engines for a package: which are missing, built one by one, and written into it."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from model_export.engines.child import run_compilation
from model_export.engines.compilation import Compilation, Cost
from model_export.engines.errors import EngineLibraryError, EngineRequestError
from model_export.engines.gpu import find_gpu
from model_export.engines.libraries import Library, choose_library, find_target, import_library
from model_export.engines.profiles import make_profile
from model_package import (
    BatchProfile,
    EngineArtifact,
    EngineRequirements,
    ModelManifest,
    OnnxArtifact,
    Precision,
)
from model_package.directory import sha256_of
from model_package.editing import PackageEdit, edit_package

_NAME_LENGTH = 40
"""Of each part of a file's name that others chose."""


@dataclass(frozen=True)
class EngineRequest:
    """Which engines to build."""

    backend: str | None = None
    """A key of :data:`~model_export.engines.libraries.LIBRARIES`; None: the one installed."""
    precision: Precision | None = None
    """None: every ONNX file of the package."""
    optimal_batch_size: int = 8
    max_batch_size: int = 8
    compute_capability: str | None = None
    """Like 8.9; None: that of the GPU of this machine."""
    tf32: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A request whose every fact is settled."""

    library: Library
    requires: EngineRequirements
    batch: BatchProfile
    tf32: bool
    timing_cache: Path | None


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of the package; ``cost`` is None where it was there already."""

    artifact: EngineArtifact
    cost: Cost | None


class Watcher(Protocol):
    """Who is told what happens."""

    def dropped(self, engine: EngineArtifact) -> None:
        """Hear of an engine that was damaged and is listed no longer."""

    def begin(self, number: int, count: int, step: str) -> None:
        """Hear what is done for engine ``number`` of ``count``, from 1."""

    def progress(self, share: float, phase: str) -> None:
        """Hear how much of this engine is done, 0 to 1, and the library's name of the phase."""

    def end(self, engine: BuiltEngine) -> None:
        """Hear that the package has it."""


def build_engines(directory: Path, request: EngineRequest, watcher: Watcher) -> None:
    """Build what the package in ``directory`` lacks of ``request``, and add it.

    Each engine is added when it is finished; whatever stops the next, those stay and the package
    is whole. Raises :class:`~model_export.engines.errors.EngineError` and
    :class:`~model_package.PackageError`.
    """
    plan = make_plan(request)
    target = f"{plan.library.title} {plan.requires.version}, {_machine(plan.requires)}"
    with edit_package(directory) as edit:
        for engine in edit.damaged:
            watcher.dropped(engine)
        files = choose_files(edit.manifest, request.precision, directory)
        for number, file in enumerate(files, start=1):
            watcher.begin(number, len(files), f"Build {file.file} for {target}")
            known = find_engine(edit.manifest, file, plan)
            built = BuiltEngine(known, None) if known else _build(edit, file, plan, watcher)
            watcher.end(built)


def make_plan(request: EngineRequest) -> Plan:
    """Settle what ``request`` leaves open.

    Raises :class:`EngineRequestError` and :class:`EngineLibraryError`.
    """
    library = choose_library(request.backend)
    try:
        batch = BatchProfile(min=1, opt=request.optimal_batch_size, max=request.max_batch_size)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip()
            for item in error.errors(include_url=False, include_context=False)
        )
        raise EngineRequestError(
            f"--optimal-batch-size {request.optimal_batch_size} and --max-batch-size "
            f"{request.max_batch_size} are no batch sizes to build for: {problems}."
        ) from error
    if request.timing_cache is not None and not library.has_timing_cache:
        raise EngineRequestError(
            f"{library.title} keeps no timings: it tunes at run time. Leave out --timing-cache."
        )
    trt = import_library(library)
    requires = _requirements(request, library, trt.__version__)
    if library.builds_without_gpu:
        find_target(trt, requires.compute_capability)
    return Plan(library, requires, batch, request.tf32, request.timing_cache)


def _requirements(request: EngineRequest, library: Library, version: str) -> EngineRequirements:
    if request.compute_capability is not None:
        if not library.builds_without_gpu:
            raise EngineRequestError(
                f"{library.title} builds only for the GPU of the machine it runs on. Leave out "
                "--compute-capability, or choose --backend tensorrt-rtx."
            )
        try:
            return EngineRequirements(
                version=version, compute_capability=request.compute_capability, gpu=None
            )
        except ValidationError as error:
            raise EngineRequestError(
                f"--compute-capability {request.compute_capability!r} is not one. "
                "Give it like 8.9 or 12.0."
            ) from error
    gpu = find_gpu()
    if gpu is None:
        raise EngineLibraryError(
            f"there is no GPU here to build for with {library.title}, or no driver for it. "
            + (
                "Say which one will run the engine, for instance --compute-capability 8.9."
                if library.builds_without_gpu
                else "Build on the machine that will run the engine, or with "
                "--backend tensorrt-rtx and --compute-capability for a GPU elsewhere."
            )
        )
    tuned_on = None if library.builds_without_gpu else gpu.name
    return EngineRequirements(
        version=version, compute_capability=gpu.compute_capability, gpu=tuned_on
    )


def choose_files(
    manifest: ModelManifest, precision: Precision | None, directory: Path
) -> list[OnnxArtifact]:
    """ONNX files of that precision. Raises :class:`EngineRequestError` where there is none."""
    files = [
        artifact
        for artifact in manifest.artifacts
        if isinstance(artifact, OnnxArtifact) and precision in (None, artifact.precision)
    ]
    if not files:
        raise EngineRequestError(
            f"{directory} has no ONNX file in {precision}. Export the checkpoint again into a "
            f"new directory: centernet-export package --checkpoint FILE --output DIR "
            f"--precision {precision}"
        )
    return files


def find_engine(manifest: ModelManifest, file: OnnxArtifact, plan: Plan) -> EngineArtifact | None:
    """Return the engine that a build would make again, if the package has it."""
    wanted = _key(file, plan)
    for artifact in manifest.artifacts:
        if isinstance(artifact, EngineArtifact) and wanted == (
            artifact.built_from,
            artifact.flip,
            artifact.backend,
            artifact.requires,
            artifact.batch,
            artifact.tf32,
        ):
            return artifact
    return None


def _key(file: OnnxArtifact, plan: Plan) -> tuple[object, ...]:
    """All that decides what a build makes; heights and widths follow from the package."""
    return file.sha256, file.flip, plan.library.backend, plan.requires, plan.batch, plan.tf32


def _build(edit: PackageEdit, file: OnnxArtifact, plan: Plan, watcher: Watcher) -> BuiltEngine:
    content = edit.new_file()
    compilation = Compilation(
        library=plan.library,
        onnx_file=edit.directory / file.file,
        engine_file=content,
        profile=make_profile(edit.manifest.input, plan.batch),
        compute_capability=plan.requires.compute_capability,
        tf32=plan.tf32,
        timing_cache=plan.timing_cache,
    )
    cost = run_compilation(compilation, watcher.progress)
    engine = EngineArtifact(
        backend=plan.library.backend,
        file=_file_name(file, plan),
        precision=file.precision,
        flip=file.flip,
        sha256=sha256_of(content),
        size_bytes=content.stat().st_size,
        built_from=file.sha256,
        requires=plan.requires,
        batch=plan.batch,
        tf32=plan.tf32,
    )
    edit.add_engine(engine, content)
    return BuiltEngine(engine, cost)


def _file_name(file: OnnxArtifact, plan: Plan) -> str:
    """Like ``model_fp16.sm89.tensorrt_rtx-1.7.1.116.1a2b3c4d.engine``; the digits are the key's."""
    requires = plan.requires
    parts = [Path(file.file).stem[:_NAME_LENGTH], f"sm{requires.compute_capability}"]
    if requires.gpu is not None:
        parts.append(requires.gpu.lower()[:_NAME_LENGTH])
    digits = hashlib.sha256(repr(_key(file, plan)).encode()).hexdigest()[:8]
    parts += [f"{plan.library.backend}-{requires.version[:20]}", digits, "engine"]
    parts[1] = parts[1].replace(".", "")
    return ".".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)


def _machine(requires: EngineRequirements) -> str:
    if requires.gpu is not None:
        return requires.gpu
    return f"compute capability {requires.compute_capability}"
