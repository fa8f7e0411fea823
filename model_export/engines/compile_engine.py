"""Build one engine from one ONNX file, in the calling process."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from model_export.engines.corner_pooling_plugin import register_corner_pooling
from model_export.engines.deform_conv_lowering import lower_deform_convs
from model_export.engines.errors import EngineCompileError
from model_export.engines.libraries import find_target, import_library
from model_export.engines.optimization_profile import OptimizationProfile
from model_export.engines.progress import PhaseProgress, Progress
from model_export.networks.corner_pool_ops import DOMAIN
from model_package.gpu import MIN_DRIVER
from model_package.tensorrt_libraries import TensorRTLibrary, register_plugins

INPUT_NAME = "images"
_MAX_MESSAGES = 5
"""Number of the library's messages that an error repeats."""


@dataclass(frozen=True)
class CompileJob:
    """Input, output and settings of one build."""

    library: TensorRTLibrary
    onnx_file: Path
    engine_file: Path
    profile: OptimizationProfile
    compute_capability: str
    tf32: bool
    timing_cache: Path | None


def compile_engine(job: CompileJob, progress: Progress) -> None:
    """Build the engine and write it to ``job.engine_file``, flushed to disk.

    Raises :class:`~model_export.engines.errors.EngineBuildError`.
    """
    library = job.library
    trt = import_library(library)
    messages: list[str] = []
    logger = _make_logger(trt, messages)
    register_plugins(library, trt, logger)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # of the bindings, when the library returns no builder
        raise EngineCompileError(
            f"{library.title} {trt.__version__} cannot start on this machine: "
            f"{_last_messages(messages)}. It needs the NVIDIA driver {MIN_DRIVER} or newer."
        ) from error
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(_read_onnx_file(job, trt)):
        raise EngineCompileError(
            f"{library.title} {trt.__version__} does not accept {job.onnx_file.name}: "
            f"{'; '.join(_parser_errors(parser)) or _last_messages(messages)}"
        )
    config = _make_builder_config(trt, builder, job)
    monitor = _make_progress_monitor(trt, PhaseProgress(progress))
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineCompileError(
            f"{library.title} {trt.__version__} could not build an engine from "
            f"{job.onnx_file.name}: {_last_messages(messages)}"
        )
    _write(job.engine_file, plan)
    if job.timing_cache is not None:
        partial = partial_timing_cache(job.timing_cache, os.getpid())
        _write(partial, config.get_timing_cache().serialize())
        partial.replace(job.timing_cache)


def partial_timing_cache(path: Path, process_id: int) -> Path:
    """Return the file in which a process writes the timing cache ``path`` before it renames it."""
    return path.with_name(f".{path.name}.{process_id}.partial")


def _read_onnx_file(job: CompileJob, trt: Any) -> bytes:
    """Return the ONNX file with operators that the library supports.

    Registers the corner pooling plugins if the file uses them and the library takes plugins.
    """
    content = job.onnx_file.read_bytes()
    model = onnx.ModelProto.FromString(content)
    domains = {entry.domain for entry in model.opset_import}
    if job.library.has_python_plugins and DOMAIN in domains:
        register_corner_pooling(trt)
    if job.library.has_deform_conv or not lower_deform_convs(model):
        return content
    lowered: bytes = model.SerializeToString()
    return lowered


def _network_flags(trt: Any) -> int:
    """Return the flags for strongly typed networks and for plugins compiled into the engine."""
    flags = trt.NetworkDefinitionCreationFlag
    result = 1 << int(flags.STRONGLY_TYPED)
    if hasattr(flags, "PREFER_AOT_PYTHON_PLUGINS"):  # not in TensorRT-RTX
        result |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    return result


def _make_builder_config(trt: Any, builder: Any, job: CompileJob) -> Any:
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, *job.profile)
    config.add_optimization_profile(profile)
    if not job.tf32:  # the library's default is on
        config.clear_flag(trt.BuilderFlag.TF32)
    if job.library.builds_without_gpu:
        target = find_target(trt, job.compute_capability)
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(target, 0):
            raise EngineCompileError(
                f"{job.library.title} {trt.__version__} rejects its own target {target}."
            )
    if job.timing_cache is not None:
        path = job.timing_cache
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        ignore_mismatch = False  # timings of another GPU or version are rejected
        if not config.set_timing_cache(cache, ignore_mismatch):
            raise EngineCompileError(
                f"the timing cache {path} is of another GPU or another version of "
                f"{job.library.title}. Delete it, or give the path of another file."
            )
    return config


def _make_logger(trt: Any, errors: list[str]) -> Any:
    """Return a logger that appends errors to ``errors`` and drops all other messages."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message.strip())

    return Logger()


def _make_progress_monitor(trt: Any, progress: PhaseProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.complete(phase_name, step)
            return True  # False would cancel; a build is cancelled by ending the process

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def _parser_errors(parser: Any) -> Iterator[str]:
    for index in range(min(parser.num_errors, _MAX_MESSAGES)):
        error = parser.get_error(index)
        yield f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"


def _last_messages(messages: list[str]) -> str:
    return "; ".join(messages[-_MAX_MESSAGES:]) or "it reported no reason"


def _write(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
