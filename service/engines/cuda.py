"""The CUDA runtime in the few terms that engines need: streams, buffers, graphs.

Everything that is made here belongs to one :class:`Cuda` and is freed with it, last made first.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engines.errors import EngineBrokenError, EngineUnavailableError


class CudaError(Exception):
    """A call failed, but the GPU goes on working for this process."""


class Cuda:
    """The first GPU that this process may see.

    Raises :class:`EngineUnavailableError` where there is none.
    """

    def __init__(self) -> None:
        try:
            # No GPU is needed to import it, nor to see that there is none.
            self.api: Any = import_module("cuda.bindings.runtime")
        except ImportError:
            raise EngineUnavailableError(
                "the CUDA bindings are not installed; to use a GPU install the extra 'gpu'."
            ) from None
        error, count = self.api.cudaGetDeviceCount()
        if int(error) or not count:
            raise EngineUnavailableError(
                f"there is no NVIDIA GPU here, or no driver for it ({self._explain(error)}). "
                "See whether nvidia-smi lists it; a container must be given it (--gpus all)."
            )
        self._owned = ExitStack()
        self.gpu = "the first GPU"
        with self.opening():
            properties = self.call("cudaGetDeviceProperties", 0)
        self.gpu = properties.name.decode()
        self.compute_capability = f"{properties.major}.{properties.minor}"

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime and give its result.

        Raises :class:`EngineBrokenError` and :class:`CudaError`.
        """
        error, *values = getattr(self.api, name)(*arguments)
        if int(error):
            self.raise_if_broken(name)
            raise CudaError(f"{name}: {self._explain(error)}")
        return values[0] if values else None

    def raise_if_broken(self, after: str) -> None:
        """Raise :class:`EngineBrokenError` if the GPU does no more work for this process.

        That is so when, after an error was taken note of, an unrelated call gives one as well.
        """
        self.api.cudaGetLastError()
        error = self.api.cudaMemGetInfo()[0]
        if int(error):
            raise EngineBrokenError(
                f"after {after} the GPU does no more work for this process "
                f"({self._explain(error)}); only a new process can go on. Restart the service."
            )

    def make(self, create: str, destroy: str, *arguments: Any) -> Any:
        """Make something that is destroyed with this object."""
        made = self.call(create, *arguments)
        # What a broken GPU refuses to free, the end of the process will.
        self._owned.callback(getattr(self.api, destroy), made)
        return made

    def keep(self, close: Callable[[], object]) -> None:
        """Have ``close`` called before anything is freed that was made earlier."""
        self._owned.callback(close)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Free everything if the block fails, which then raises :class:`EngineUnavailableError`.

        Only :class:`EngineBrokenError` stays what it is: no other backend would work either.
        """
        try:
            yield
        except BaseException as error:
            self.close()
            known = isinstance(error, EngineUnavailableError | EngineBrokenError)
            if known or not isinstance(error, Exception):
                raise
            raise EngineUnavailableError(f"it does not run on {self.gpu}: {error}") from error

    def close(self) -> None:
        """Free everything."""
        self._owned.close()

    def _explain(self, error: Any) -> str:
        text = self.api.cudaGetErrorString(error)[1]
        return f"CUDA error {int(error)}: {text.decode()}"


class Buffer:
    """The same number of bytes on the GPU and, where copies are fast, in the host's memory."""

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.device_pointer: int = cuda.make("cudaMalloc", "cudaFree", size_bytes)
        self.host_pointer: int = cuda.make("cudaHostAlloc", "cudaFreeHost", size_bytes, 0)
        memory = (ctypes.c_uint8 * size_bytes).from_address(self.host_pointer)
        self.host: NDArray[np.uint8] = np.ctypeslib.as_array(memory)


class Stream:
    """Work that the GPU does in order."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        api = cuda.api
        # Non-blocking: it does not wait for the default stream, which other libraries use.
        self._handle = cuda.make(
            "cudaStreamCreateWithFlags", "cudaStreamDestroy", api.cudaStreamNonBlocking
        )
        # A thread that spins until the event comes would take a core from decoding images.
        self._event = cuda.make(
            "cudaEventCreateWithFlags",
            "cudaEventDestroy",
            api.cudaEventBlockingSync | api.cudaEventDisableTiming,
        )

    @property
    def pointer(self) -> int:
        """The handle as other libraries take it."""
        return int(self._handle)

    def to_device(self, buffer: Buffer, size_bytes: int) -> None:
        """Copy the first bytes of a buffer to the GPU."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        places = buffer.device_pointer, buffer.host_pointer
        self._cuda.call("cudaMemcpyAsync", *places, size_bytes, kind, self._handle)

    def to_host(self, buffer: Buffer, size_bytes: int) -> None:
        """Copy the first bytes of a buffer from the GPU."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        places = buffer.host_pointer, buffer.device_pointer
        self._cuda.call("cudaMemcpyAsync", *places, size_bytes, kind, self._handle)

    def follow(self, other: "Stream") -> None:
        """Put what comes next behind all that is on ``other`` now."""
        self._cuda.call("cudaEventRecord", other._event, other._handle)
        self._cuda.call("cudaStreamWaitEvent", self._handle, other._event, 0)

    def finish(self) -> None:
        """Wait until all that is on the stream is done."""
        self._cuda.call("cudaEventRecord", self._event, self._handle)
        self._cuda.call("cudaEventSynchronize", self._event)

    def capture(self, put_work: Callable[[], None]) -> Any:
        """Keep the work that ``put_work`` puts on the stream as a graph, without doing it."""
        # Thread-local: other models may allocate memory in their threads meanwhile.
        mode = self._cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._handle, mode)
        try:
            put_work()
        except BaseException:
            self._cuda.api.cudaStreamEndCapture(self._handle)
            raise
        graph = self._cuda.call("cudaStreamEndCapture", self._handle)
        try:
            return self._cuda.make("cudaGraphInstantiate", "cudaGraphExecDestroy", graph, 0)
        finally:
            self._cuda.call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Put a captured graph on the stream."""
        self._cuda.call("cudaGraphLaunch", graph, self._handle)
