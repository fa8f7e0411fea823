"""One engine from one ONNX file, in a process of its own: it can be stopped, and may die."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnx

from model_export.engines.corner_pooling_plugin import register_corner_pooling
from model_export.engines.deform_conv_lowering import lower_deform_convs
from model_export.engines.errors import EngineBuildError, EngineError
from model_export.engines.libraries import Library, find_target, import_library
from model_export.engines.profiles import Profile
from model_export.engines.progress import PhaseProgress, Progress
from model_export.onnx.corner_pool_ops import DOMAIN

INPUT = "images"
_MESSAGES = 5
"""How many of the library's messages an error repeats."""


@dataclass(frozen=True)
class Compilation:
    """What to build and where to put it."""

    library: Library
    onnx_file: Path
    engine_file: Path
    profile: Profile
    compute_capability: str
    tf32: bool
    timing_cache: Path | None


@dataclass(frozen=True)
class Cost:
    """What a build took."""

    seconds: float
    peak_bytes: int
    """Largest resident memory of the process that built; 0 where the system does not say."""


def compile_in_child(compilation: Compilation, connection: Connection) -> None:
    """Entry of the child process: sends (share, phase) pairs, then a :class:`Cost` or an error."""
    os.dup2(2, 1)  # standard output belongs to the parent, whatever the library prints
    threading.Thread(target=_die_with_parent, daemon=True).start()
    started_s = time.perf_counter()
    try:
        compile_engine(compilation, lambda share, phase: connection.send((share, phase)))
    except EngineError as error:
        connection.send(error)
    except OSError as error:
        connection.send(EngineBuildError(f"cannot build {compilation.onnx_file.name}: {error}"))
    else:
        connection.send(Cost(time.perf_counter() - started_s, _peak_bytes()))


def _die_with_parent() -> None:
    """End this process when the other is gone, however it went: nobody waits for the engine."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def compile_engine(compilation: Compilation, progress: Progress) -> None:
    """Build and write the engine; returns when the disk has it.

    Raises :class:`~model_export.engines.errors.EngineError`.
    """
    library = compilation.library
    trt = import_library(library)
    messages: list[str] = []
    builder = trt.Builder(_make_logger(trt, messages))
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(_read_graph(compilation, trt)):
        raise EngineBuildError(
            f"{library.title} {trt.__version__} does not accept {compilation.onnx_file.name}: "
            f"{'; '.join(_parser_errors(parser)) or _last(messages)}"
        )
    config = _configure(trt, builder, compilation)
    monitor = _make_monitor(trt, PhaseProgress(progress))
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineBuildError(
            f"{library.title} {trt.__version__} could not build an engine from "
            f"{compilation.onnx_file.name}: {_last(messages)}"
        )
    _write(compilation.engine_file, plan)
    if compilation.timing_cache is not None:
        partial = compilation.timing_cache.with_name(f".{compilation.timing_cache.name}.partial")
        _write(partial, config.get_timing_cache().serialize())
        partial.replace(compilation.timing_cache)


def _read_graph(compilation: Compilation, trt: Any) -> bytes:
    """Return the file as the library takes it."""
    content = compilation.onnx_file.read_bytes()
    model = onnx.ModelProto.FromString(content)
    domains = {entry.domain for entry in model.opset_import}
    if compilation.library.has_plugins and DOMAIN in domains:
        register_corner_pooling(trt)
    if compilation.library.has_deform_conv or not lower_deform_convs(model):
        return content
    lowered: bytes = model.SerializeToString()
    return lowered


def _network_flags(trt: Any) -> int:
    """Types as the file has them; plugins as kernels in the engine, not as Python."""
    flags = trt.NetworkDefinitionCreationFlag
    chosen = 1 << int(flags.STRONGLY_TYPED)
    if hasattr(flags, "PREFER_AOT_PYTHON_PLUGINS"):  # TensorRT-RTX has none
        chosen |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    return chosen


def _configure(trt: Any, builder: Any, compilation: Compilation) -> Any:
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *compilation.profile)
    config.add_optimization_profile(profile)
    if not compilation.tf32:  # on by default
        config.clear_flag(trt.BuilderFlag.TF32)
    if compilation.library.builds_without_gpu:
        target = find_target(trt, compilation.compute_capability)
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(target, 0):
            raise EngineBuildError(
                f"{compilation.library.title} {trt.__version__} refuses its own target {target}."
            )
    if compilation.timing_cache is not None:
        path = compilation.timing_cache
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        # False: timings of another GPU or version are refused.
        if not config.set_timing_cache(cache, False):
            raise EngineBuildError(
                f"the timing cache {path} is of another GPU or another version of "
                f"{compilation.library.title}. Remove it, or name another file."
            )
    return config


def _make_logger(trt: Any, messages: list[str]) -> Any:
    """Collect what goes wrong; everything else the library says is for its own developers."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(message.strip())

    return Logger()


def _make_monitor(trt: Any, progress: PhaseProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.complete(phase_name, step)
            return True  # who wants to stop ends the process

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def _parser_errors(parser: Any) -> Iterator[str]:
    for index in range(min(parser.num_errors, _MESSAGES)):
        error = parser.get_error(index)
        yield f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"


def _last(messages: list[str]) -> str:
    return "; ".join(messages[-_MESSAGES:]) or "it did not say why"


def _write(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _peak_bytes() -> int:
    # Not getrusage: that counts the memory of the parent, from which this process was forked.
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
