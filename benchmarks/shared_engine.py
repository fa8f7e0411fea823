"""Prototype of front processes that decode images for one process that owns the engine.

A front is the service with a :class:`RemoteEngine`, which writes batches to shared memory; with
``--workers N`` there are N. ``python -m benchmarks.workers --fronts`` compares them with workers
that have an engine each; docs/adr/0020-fast-engines.md explains why the service has no fronts.
"""

import os
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu import CPU_ENGINES, CpuEngine
from model_package import ModelManifest, ModelPackage, load_package
from service import cli
from service.cpu_cores import available_cores
from service.engines import Engine, EngineUnavailableError, backends
from service.engines.backends import Candidate, open_engine
from service.engines.engine import Images
from service.engines.errors import EngineBrokenError
from service.engines.precision import ComputePrecision

FRONT_ENGINE = CPU_ENGINES["onnxruntime-fp32"]
"""The choice of engine that opens a :class:`RemoteEngine` in a front."""
MAX_BATCH_SIZE = 8
SLOTS = 2
"""Batches of one front that may be in progress, as in the engines of a GPU."""
_RUN = struct.Struct("<I?")
"""Request of a run: number of images, flip. The response is empty, or the text of an error."""


class _Buffer:
    """One batch in shared memory: ``images``, and the ``outputs`` for them."""

    def __init__(self, path: Path, manifest: ModelManifest, *, is_new: bool) -> None:
        spec = manifest.input
        fields = [("images", np.uint8, (MAX_BATCH_SIZE, spec.height_px, spec.width_px, 3))]
        fields += [
            (output.name, np.dtype(output.dtype), (MAX_BATCH_SIZE, *output.shape))
            for output in manifest.decoder.outputs()
        ]
        mode = "w+" if is_new else "r+"
        record = np.memmap(path, np.dtype(fields), mode, shape=(1,))[0]
        self.images: NDArray[np.uint8] = record["images"]
        self.outputs = {name: record[name] for name, *_ in fields[1:]}


class RemoteEngine:
    """Runs batches in the process that owns the engine; see :class:`service.engines.Engine`."""

    precision: ComputePrecision = "fp32"
    concurrency = SLOTS
    max_batch_size: int | None = MAX_BATCH_SIZE
    is_reference = True

    def __init__(self, package: ModelPackage, address: str) -> None:
        self.description = f"engine of the process at {address}"
        self._slots: SimpleQueue[tuple[Connection, _Buffer]] = SimpleQueue()
        for slot in range(SLOTS):
            path = Path(address).with_name(f"{os.getpid()}-{slot}")
            buffer = _Buffer(path, package.manifest, is_new=True)
            try:
                connection = Client(address, "AF_UNIX")
            except OSError as error:
                raise EngineUnavailableError(f"no process owns the engine: {error}") from error
            connection.send_bytes(str(path).encode())
            self._slots.put((connection, buffer))

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :meth:`service.engines.Engine.run`."""
        size = len(images)
        connection, buffer = slot = self._slots.get()
        try:
            np.stack(images, out=buffer.images[:size])
            connection.send_bytes(_RUN.pack(size, flip))
            error = connection.recv_bytes().decode()
            outputs = {name: values[:size].copy() for name, values in buffer.outputs.items()}
        except (EOFError, OSError) as error:
            raise EngineBrokenError("the process that owns the engine has ended") from error
        finally:
            self._slots.put(slot)
        if error:
            raise RuntimeError(error)
        return outputs

    def close(self) -> None:
        """Close the connections; see :meth:`service.engines.Engine.close`."""
        for _ in range(SLOTS):
            self._slots.get()[0].close()


def serve_front(address: str) -> None:
    """Run ``centernet-serve`` with the engine of another process."""
    backend, precision = FRONT_ENGINE
    backends.CANDIDATES = (
        Candidate(backend, (precision,), lambda package, _: RemoteEngine(package, address)),
    )
    cli.main()


def front_program(address: str) -> str:
    """Return the Python program of a front whose engine is that of the process at ``address``."""
    return f"from benchmarks.shared_engine import serve_front; serve_front({address!r})"


@contextmanager
def engine_process(package: Path, engine: CpuEngine) -> Iterator[tuple[int, str]]:
    """Run the process that owns the engine; yields its process id and the address of its socket."""
    context = get_context("spawn")
    with TemporaryDirectory(dir="/dev/shm", prefix="centernet-") as folder:
        address = str(Path(folder, "engine.sock"))
        is_listening = context.Event()
        process = context.Process(
            target=_own_engine, args=(package, engine, address, is_listening), daemon=True
        )
        process.start()
        try:
            if not is_listening.wait(60) or process.pid is None:
                raise RuntimeError("the process that owns the engine did not start")
            yield process.pid, address
        finally:
            process.kill()
            process.join()


def _own_engine(package: Path, choice: CpuEngine, address: str, is_listening: Any) -> None:
    sys.setswitchinterval(cli.SWITCH_INTERVAL_S)
    loaded = load_package(package)
    engine = open_engine(
        loaded, choice.backend, 1, available_cores(), MAX_BATCH_SIZE, choice.precision
    )
    runs = threading.Semaphore(engine.concurrency)
    with Listener(address, "AF_UNIX") as listener:
        is_listening.set()
        while True:
            arguments = (listener.accept(), loaded.manifest, engine, runs)
            threading.Thread(target=_answer, args=arguments, daemon=True).start()


def _answer(
    connection: Connection, manifest: ModelManifest, engine: Engine, runs: threading.Semaphore
) -> None:
    """Run the batches of one slot of a front until the front ends."""
    with connection:
        try:
            path = Path(connection.recv_bytes().decode())
            buffer = _Buffer(path, manifest, is_new=False)
            path.unlink()  # the memory is freed with the two processes, however they end
            while True:
                size, flip = _RUN.unpack(connection.recv_bytes())
                connection.send_bytes(_run(engine, runs, buffer, size, flip).encode())
        except (EOFError, OSError):
            return


def _run(engine: Engine, runs: threading.Semaphore, buffer: _Buffer, size: int, flip: bool) -> str:
    """Run the batch in ``buffer``; return the text of an error, or an empty text."""
    try:
        with runs:
            outputs = engine.run(buffer.images[:size], flip)
    except Exception as error:
        return f"{error!r}"
    for name, values in outputs.items():
        buffer.outputs[name][:size] = values
    return ""
