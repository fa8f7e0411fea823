"""Build the engines that a package lacks and add them to it."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from model_export.engines.child_process import BuildCost, compile_in_child_process
from model_export.engines.compile_engine import CompileJob
from model_export.engines.errors import EngineLibraryError, EngineRequestError
from model_export.engines.interruption import Interruption
from model_export.engines.libraries import find_target, import_library, select_library
from model_export.engines.optimization_profile import make_optimization_profile
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
from model_package.gpu import find_gpu
from model_package.tensorrt_libraries import TensorRTLibrary

_MAX_NAME_LENGTH = 40
"""Of the ONNX file's stem and of the GPU's name in the file name of an engine."""


@dataclass(frozen=True)
class EngineRequest:
    """The engines to build."""

    backend: str | None = None
    """``tensorrt`` or ``tensorrt-rtx``; None for the library that is installed."""
    precision: Precision | None = None
    """Precision of the ONNX files to build from; None for all files."""
    optimal_batch_size: int = 8
    max_batch_size: int = 8
    compute_capability: str | None = None
    """For example ``8.9``; None for the GPU of this machine."""
    tf32: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuildPlan:
    """A validated request with every default filled in."""

    library: TensorRTLibrary
    requires: EngineRequirements
    batch: BatchProfile
    tf32: bool
    timing_cache: Path | None


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of the package; ``cost`` is None if the package already had it."""

    artifact: EngineArtifact
    cost: BuildCost | None


class BuildObserver(Protocol):
    """Receives the events of a build, in the calling thread."""

    def removed(self, engine: EngineArtifact) -> None:
        """Handle an engine that was damaged and is no longer listed in the package."""

    def started(self, number: int, count: int, step: str) -> None:
        """Handle the start of engine ``number`` of ``count``, from 1."""

    def progress(self, fraction: float, phase: str) -> None:
        """Handle progress of the current engine: fraction, 0 to 1, and the library's phase."""

    def finished(self, engine: BuiltEngine) -> None:
        """Handle the end of an engine, which the package now has."""


def build_engines(
    directory: Path,
    request: EngineRequest,
    observer: BuildObserver,
    interruption: Interruption | None = None,
) -> None:
    """Build the engines of ``request`` that the package in ``directory`` lacks, and add them.

    Each engine is added as soon as it is built. If a later build fails or is interrupted, the
    engines before it stay and the package is valid. Raises
    :class:`~model_export.engines.errors.EngineBuildError`, :class:`~model_package.PackageError` and
    the exceptions of ``interruption``.
    """
    interruption = interruption or Interruption()
    plan = make_build_plan(request)
    target = f"{plan.library.title} {plan.requires.version}, {_describe_gpu(plan.requires)}"
    with edit_package(directory) as edit:
        for engine in edit.damaged:
            observer.removed(engine)
        files = select_onnx_files(edit.manifest, request.precision, directory)
        for number, file in enumerate(files, start=1):
            interruption.check()
            observer.started(number, len(files), f"Build {file.file} for {target}")
            existing = find_engine(edit.manifest, file, plan)
            if existing:
                observer.finished(BuiltEngine(existing, None))
            else:
                observer.finished(_build(edit, file, plan, observer, interruption))


def make_build_plan(request: EngineRequest) -> BuildPlan:
    """Validate a request and fill in its defaults.

    Raises :class:`EngineRequestError` and :class:`EngineLibraryError`.
    """
    library = select_library(request.backend)
    try:
        batch = BatchProfile(min=1, opt=request.optimal_batch_size, max=request.max_batch_size)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip()
            for item in error.errors(include_url=False, include_context=False)
        )
        raise EngineRequestError(
            f"--optimal-batch-size {request.optimal_batch_size} and --max-batch-size "
            f"{request.max_batch_size} are not valid batch sizes: {problems}."
        ) from error
    if request.timing_cache is not None and not library.has_timing_cache:
        raise EngineRequestError(
            f"{library.title} has no timing cache: it tunes at run time. Leave out --timing-cache."
        )
    trt = import_library(library)
    requires = _make_requirements(request, library, trt.__version__)
    if library.builds_without_gpu:
        find_target(trt, requires.compute_capability)
    return BuildPlan(library, requires, batch, request.tf32, request.timing_cache)


def _make_requirements(
    request: EngineRequest, library: TensorRTLibrary, version: str
) -> EngineRequirements:
    if request.compute_capability is not None:
        if not library.builds_without_gpu:
            raise EngineRequestError(
                f"{library.title} builds only for the GPU of the machine it runs on. Leave out "
                "--compute-capability, or use --backend tensorrt-rtx."
            )
        try:
            return EngineRequirements(
                version=version, compute_capability=request.compute_capability, gpu=None
            )
        except ValidationError as error:
            raise EngineRequestError(
                f"--compute-capability {request.compute_capability!r} is not a compute capability. "
                "Give it like 8.9 or 12.0."
            ) from error
    gpu = find_gpu()
    if gpu is None:
        raise EngineLibraryError(
            f"there is no GPU here to build for with {library.title}, or no driver for it. "
            + (
                "Name the GPU that will run the engine, for example --compute-capability 8.9."
                if library.builds_without_gpu
                else "Build on the machine that will run the engine, or with "
                "--backend tensorrt-rtx and --compute-capability for a GPU elsewhere."
            )
        )
    return EngineRequirements(
        version=version,
        compute_capability=gpu.compute_capability,
        gpu=None if library.builds_without_gpu else gpu.name,
    )


def select_onnx_files(
    manifest: ModelManifest, precision: Precision | None, directory: Path
) -> list[OnnxArtifact]:
    """Return the ONNX files in ``precision``, or all of them if it is None.

    Raises :class:`EngineRequestError` if there are none.
    """
    files = [
        artifact
        for artifact in manifest.artifacts
        if isinstance(artifact, OnnxArtifact) and precision in (None, artifact.precision)
    ]
    if not files:
        hint = (
            f"Add one: centernet-export quantize {directory} --images DIR"
            if precision == "int8"
            else "Export the checkpoint again into a new directory: centernet-export package "
            f"--checkpoint FILE --output DIR --precision {precision}"
        )
        raise EngineRequestError(f"{directory} has no ONNX file in {precision}. {hint}")
    return files


def find_engine(
    manifest: ModelManifest, file: OnnxArtifact, plan: BuildPlan
) -> EngineArtifact | None:
    """Return the engine of the package that equals the one that ``plan`` would build, if any."""
    key = _cache_key(file, plan)
    for artifact in manifest.artifacts:
        if isinstance(artifact, EngineArtifact) and key == (
            artifact.built_from,
            artifact.flip,
            artifact.backend,
            artifact.requires,
            artifact.batch,
            artifact.tf32,
        ):
            return artifact
    return None


def _cache_key(file: OnnxArtifact, plan: BuildPlan) -> tuple[object, ...]:
    """Return everything that determines an engine; image sizes follow from the package."""
    return file.sha256, file.flip, plan.library.backend, plan.requires, plan.batch, plan.tf32


def _build(
    edit: PackageEdit,
    file: OnnxArtifact,
    plan: BuildPlan,
    observer: BuildObserver,
    interruption: Interruption,
) -> BuiltEngine:
    engine_file = edit.new_file()
    job = CompileJob(
        library=plan.library,
        onnx_file=edit.directory / file.file,
        engine_file=engine_file,
        profile=make_optimization_profile(edit.manifest.input, plan.batch),
        compute_capability=plan.requires.compute_capability,
        tf32=plan.tf32,
        timing_cache=plan.timing_cache,
    )
    cost = compile_in_child_process(job, observer.progress, interruption)
    engine = EngineArtifact(
        backend=plan.library.backend,
        file=_engine_file_name(file, plan),
        precision=file.precision,
        flip=file.flip,
        sha256=sha256_of(engine_file),
        size_bytes=engine_file.stat().st_size,
        built_from=file.sha256,
        requires=plan.requires,
        batch=plan.batch,
        tf32=plan.tf32,
    )
    edit.add_engine(engine, engine_file)
    return BuiltEngine(engine, cost)


def _engine_file_name(file: OnnxArtifact, plan: BuildPlan) -> str:
    """Return a name such as ``model_fp16.sm89.tensorrt_rtx-1.7.1.116.1a2b3c4d.engine``.

    The last digits are a digest of the cache key.
    """
    requires = plan.requires
    parts = [Path(file.file).stem[:_MAX_NAME_LENGTH], f"sm{requires.compute_capability}"]
    if requires.gpu is not None:
        parts.append(requires.gpu.lower()[:_MAX_NAME_LENGTH])
    digest = hashlib.sha256(repr(_cache_key(file, plan)).encode()).hexdigest()[:8]
    parts += [f"{plan.library.backend}-{requires.version[:20]}", digest, "engine"]
    parts[1] = parts[1].replace(".", "")
    return ".".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)


def _describe_gpu(requires: EngineRequirements) -> str:
    if requires.gpu is not None:
        return requires.gpu
    return f"compute capability {requires.compute_capability}"
