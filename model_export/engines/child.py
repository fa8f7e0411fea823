"""The process that builds an engine, seen from the one that wants it."""

import multiprocessing
import signal
from contextlib import suppress

from model_export.engines.compilation import Compilation, Cost, compile_in_child
from model_export.engines.errors import EngineBuildError, EngineError
from model_export.engines.progress import Progress


def run_compilation(compilation: Compilation, progress: Progress) -> Cost:
    """Build in a child process, which never outlives this call.

    A build is one long call of the library, deaf to Ctrl-C, and some files make the library end
    the process; neither must take the package or the caller along. Raises
    :class:`~model_export.engines.errors.EngineError`.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=compile_in_child, args=(compilation, sender))
    try:
        # Ctrl-C reaches every process of the terminal; the child inherits that it is not to listen.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sender.close()  # so that the end of the child is the end of the messages
        with suppress(EOFError):
            while True:
                message = receiver.recv()
                if isinstance(message, Cost):
                    return message
                if isinstance(message, EngineError):
                    raise message
                progress(*message)
        process.join()
        raise EngineBuildError(
            f"the process that built {compilation.onnx_file.name} with "
            f"{compilation.library.title} ended without an engine ({_ending(process.exitcode)}). "
            "What it said before stands above; out of memory looks like this too."
        )
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        receiver.close()


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit status {exitcode}"
