"""The process that builds one engine: both its parent's and its own side.

A build is one long call of the library that ignores Ctrl-C, and some files make the library abort
the process. In a child process neither affects the package or the caller.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from model_export.engines.compile_engine import CompileJob, compile_engine
from model_export.engines.errors import EngineBuildError, EngineCompileError
from model_export.engines.progress import Progress


@dataclass(frozen=True)
class BuildCost:
    """Time and memory that a build took."""

    seconds: float
    peak_bytes: int
    """Largest resident memory of the build process; 0 where the system does not report it."""


def compile_in_child_process(job: CompileJob, progress: Progress) -> BuildCost:
    """Build an engine in a child process, which never outlives this call.

    Raises :class:`~model_export.engines.errors.EngineBuildError`.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child_main, args=(job, sender))
    try:
        # Ctrl-C reaches every process of the terminal. The child inherits the signal mask, so that
        # only this process handles it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sender.close()  # the pipe then reports end of file when the child ends
        with suppress(EOFError):
            while True:
                message = receiver.recv()
                if isinstance(message, BuildCost):
                    return message
                if isinstance(message, EngineBuildError):
                    raise message
                progress(*message)
        process.join()
        raise EngineCompileError(
            f"the process that built {job.onnx_file.name} with {job.library.title} ended without "
            f"an engine ({_exit_status(process.exitcode)}). Its output is above. A process that "
            "runs out of memory ends in this way too."
        )
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        receiver.close()


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
