"""The parts of the CUDA runtime API that engines use: streams, buffers, events and graphs.

A :class:`CudaDevice` owns everything that is created on it and frees it in reverse order.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package.gpu import MIN_DRIVER, find_gpu
from service.engines.errors import EngineBrokenError, EngineUnavailableError

_CAPTURE_ERRORS = range(900, 910)
"""``cudaErrorStreamCaptureUnsupported`` and other errors of a stream capture; none is sticky."""


class CudaError(Exception):
    """A CUDA call failed with an error that is not sticky: later calls can succeed."""


class CudaDevice:
    """Device 0 of this process, and owner of the resources that are created on it.

    Raises :class:`~service.engines.errors.EngineUnavailableError` if the CUDA bindings are not
    installed or there is no usable GPU.
    """

    def __init__(self) -> None:
        try:
            # Importing the bindings and counting the devices works without a GPU.
            self.runtime: Any = import_module("cuda.bindings.runtime")
        except ImportError:
            raise EngineUnavailableError(
                "the CUDA bindings are not installed; to use a GPU install the extra 'gpu'."
            ) from None
        error, count = self.runtime.cudaGetDeviceCount()
        if int(error) or not count:
            raise EngineUnavailableError(
                f"there is no NVIDIA GPU here, or no driver for it ({self._describe(error)}). "
                f"Check that nvidia-smi lists it, with driver {MIN_DRIVER} or newer; start a "
                "container with --gpus all."
            )
        gpu = find_gpu()
        if gpu is None:
            raise EngineUnavailableError(
                f"the CUDA runtime finds {count} GPU(s), but the driver (libcuda.so.1) does not "
                "report the name of the first. Check that nvidia-smi lists it."
            )
        self.gpu = gpu
        self._resources = ExitStack()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and return its result.

        Raises :class:`CudaError`, or :class:`~service.engines.errors.EngineBrokenError` if the
        error is sticky.
        """
        error, *values = getattr(self.runtime, name)(*arguments)
        if int(error):
            self.raise_if_sticky_error(name)
            raise CudaError(f"{name}: {self._describe(error)}")
        return values[0] if values else None

    def raise_if_sticky_error(self, after: str) -> None:
        """Raise :class:`~service.engines.errors.EngineBrokenError` if the last error is sticky.

        CUDA has no query for this. An error is sticky if, after it was cleared, an unrelated call
        fails as well, unless it fails because this thread is capturing a graph. ``after`` is the
        call that failed, for the message.
        """
        self.runtime.cudaGetLastError()
        error = self.runtime.cudaMemGetInfo()[0]
        if int(error) and int(error) not in _CAPTURE_ERRORS:
            raise EngineBrokenError(
                f"the GPU is unusable for this process after {after} ({self._describe(error)}). "
                "Restart the service."
            )

    def create(self, create: str, destroy: str, *arguments: Any) -> Any:
        """Call the function ``create`` and have :meth:`close` call ``destroy`` with its result."""
        resource = self.call(create, *arguments)
        # Errors of destroy are ignored: after a sticky error the process end frees everything.
        self._resources.callback(getattr(self.runtime, destroy), resource)
        return resource

    def add_close_callback(self, callback: Callable[[], object]) -> None:
        """Have :meth:`close` call ``callback`` before it frees what was created earlier."""
        self._resources.callback(callback)

    @contextmanager
    def close_on_error(self) -> Iterator[None]:
        """Free all resources if the block fails.

        Exceptions become :class:`~service.engines.errors.EngineUnavailableError`. Only
        :class:`~service.engines.errors.EngineBrokenError` passes unchanged, because no other
        backend could use the GPU either.
        """
        try:
            yield
        except BaseException as error:
            self.close()
            passes = isinstance(error, EngineUnavailableError | EngineBrokenError)
            if passes or not isinstance(error, Exception):
                raise
            raise EngineUnavailableError(
                f"the engine cannot be loaded on {self.gpu.name}: {error}"
            ) from error

    def close(self) -> None:
        """Free all resources."""
        self._resources.close()

    def _describe(self, error: Any) -> str:
        text = self.runtime.cudaGetErrorString(error)[1]
        return f"CUDA error {int(error)}: {text.decode()}"


class HostDeviceBuffer:
    """A device buffer and a pinned host buffer of the same size.

    Copies between the two are asynchronous only because the host memory is pinned.
    """

    def __init__(self, device: CudaDevice, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.device_pointer: int = device.create("cudaMalloc", "cudaFree", size_bytes)
        self.host_pointer: int = device.create("cudaHostAlloc", "cudaFreeHost", size_bytes, 0)
        memory = (ctypes.c_uint8 * size_bytes).from_address(self.host_pointer)
        self.host: NDArray[np.uint8] = np.ctypeslib.as_array(memory)


class Stream:
    """A CUDA stream: a queue of work that the GPU executes in order."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        runtime = device.runtime
        # Non-blocking: does not synchronise with the default stream, which other libraries use.
        self._stream = device.create(
            "cudaStreamCreateWithFlags", "cudaStreamDestroy", runtime.cudaStreamNonBlocking
        )
        # Blocking sync: a thread that spins until the event completes would occupy a core that
        # can decode images.
        self._event = device.create(
            "cudaEventCreateWithFlags",
            "cudaEventDestroy",
            runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming,
        )

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as an integer, for other libraries."""
        return int(self._stream)

    def copy_to_device(self, buffer: HostDeviceBuffer, size_bytes: int) -> None:
        """Enqueue a copy of the first bytes of a buffer from the host to the device."""
        kind = self._device.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        pointers = buffer.device_pointer, buffer.host_pointer
        self._device.call("cudaMemcpyAsync", *pointers, size_bytes, kind, self._stream)

    def copy_to_host(self, buffer: HostDeviceBuffer, size_bytes: int) -> None:
        """Enqueue a copy of the first bytes of a buffer from the device to the host."""
        kind = self._device.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        pointers = buffer.host_pointer, buffer.device_pointer
        self._device.call("cudaMemcpyAsync", *pointers, size_bytes, kind, self._stream)

    def wait_stream(self, other: "Stream") -> None:
        """Make later work on this stream wait for all work that is now on ``other``."""
        self._device.call("cudaEventRecord", other._event, other._stream)
        self._device.call("cudaStreamWaitEvent", self._stream, other._event, 0)

    def synchronize(self) -> None:
        """Block the calling thread until all work on the stream is complete."""
        self._device.call("cudaEventRecord", self._event, self._stream)
        self._device.call("cudaEventSynchronize", self._event)

    def capture_graph(self, enqueue: Callable[[], None]) -> Any:
        """Capture the work that ``enqueue`` puts on the stream as a CUDA graph.

        The work is not executed. Returns an instantiated graph for :meth:`launch_graph`.
        """
        # Thread-local mode: other threads may allocate memory, for other models, in the meantime.
        mode = self._device.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._device.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            error, graph = self._device.runtime.cudaStreamEndCapture(self._stream)
            if not int(error):
                self._device.runtime.cudaGraphDestroy(graph)
            raise
        graph = self._device.call("cudaStreamEndCapture", self._stream)
        try:
            return self._device.create("cudaGraphInstantiate", "cudaGraphExecDestroy", graph, 0)
        finally:
            self._device.call("cudaGraphDestroy", graph)

    def launch_graph(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        self._device.call("cudaGraphLaunch", graph, self._stream)
