"""The process that builds one engine: both its parent's and its own side.

A build is one long call of the library that ignores signals, and some files make the library abort
the process. In a child process neither affects the package or the caller.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

from model_export.engines.compile_engine import (
    CompileJob,
    compile_engine,
    partial_timing_cache,
)
from model_export.engines.errors import EngineBuildError, EngineCompileError
from model_export.engines.interruption import Interruption
from model_export.engines.progress import Progress


@dataclass(frozen=True)
class BuildCost:
    """Time and memory that a build took."""

    seconds: float
    peak_bytes: int
    """Largest resident memory of the build process; 0 where the system does not report it."""


def compile_in_child_process(
    job: CompileJob, progress: Progress, interruption: Interruption
) -> BuildCost:
    """Build an engine in a child process, which never outlives this call.

    Raises :class:`~model_export.engines.errors.EngineBuildError`, and the exceptions of
    ``interruption``.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child_main, args=(job, sender))
    # The tracker of multiprocessing. When a process starts it, that unblocks signals.
    resource_tracker.ensure_running()
    try:
        with receiver, interruption.child_process(process):
            sender.close()  # the pipe then reports end of file when the child ends
            with suppress(EOFError):
                while True:
                    message = receiver.recv()
                    interruption.check()
                    if isinstance(message, BuildCost):
                        return message
                    if isinstance(message, EngineBuildError):
                        raise message
                    progress(*message)
            process.join()
            interruption.check()
            raise EngineCompileError(
                f"the process that built {job.onnx_file.name} with {job.library.title} ended "
                f"without an engine ({_exit_status(process.exitcode)}). Its output is above. A "
                "process that runs out of memory ends in this way too."
            )
    finally:
        if job.timing_cache is not None and process.pid is not None:
            partial_timing_cache(job.timing_cache, process.pid).unlink(missing_ok=True)


def _child_main(job: CompileJob, connection: Connection) -> None:
    """Build in the child: send (fraction, phase) pairs, then a :class:`BuildCost` or an error."""
    os.dup2(2, 1)  # standard output belongs to the parent, whatever the library prints
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    started_s = time.perf_counter()
    try:
        compile_engine(job, lambda fraction, phase: connection.send((fraction, phase)))
    except EngineBuildError as error:
        connection.send(error)
    except OSError as error:
        connection.send(EngineCompileError(f"cannot build {job.onnx_file.name}: {error}"))
    else:
        connection.send(BuildCost(time.perf_counter() - started_s, _peak_bytes()))


def _exit_with_parent() -> None:
    """End this process when its parent has ended, for whatever reason."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _peak_bytes() -> int:
    # Not getrusage: it includes the memory of the parent, from which this process was forked.
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _exit_status(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit status {exitcode}"
