"""Fake of the CUDA runtime bindings that works on host memory, without a GPU.

Streams are queues. With ``lazy``, work is executed only when a caller waits for it, and only as far
as the caller waits; otherwise at once. A GPU may execute in any order between these two extremes:
code that is correct in both neither reads too early nor overwrites too soon. Memory accesses are
checked against the bounds of the allocations, and new memory is filled with 0xCD. An illegal access
is a sticky error, as on a GPU.
"""

# Names and parameters are those of the bindings.
# ruff: noqa: N801, N802, N815, ARG002

import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_package.gpu import Gpu

L4 = Gpu("NVIDIA L4", "8.9")
Job = Callable[[], None]


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class IllegalAddressError(Exception):
    """Raised by a job that accesses memory outside of an allocation."""


class Handle:
    """Opaque handle with a numeric value."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        return self.number


class Marker:
    """Position in a stream, recorded by an event."""

    def __init__(self, stream: "FakeStream") -> None:
        self.stream = stream
        self.reached = False


class FakeStream:
    """Queue of jobs."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.captured: list[Job] | None = None
        self.capturing_thread: int | None = None

    def run_to(self, marker: Marker) -> None:
        while not marker.reached:
            self.jobs.popleft()()


class FakeCudaRuntime:
    """Fake of the module ``cuda.bindings.runtime``."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaEventBlockingSync = 1
    cudaEventDisableTiming = 2

    def __init__(
        self,
        *,
        lazy: bool = True,
        gpu: Gpu | None = L4,
    ) -> None:
        self._lazy = lazy
        self.gpu = gpu
        self._num_devices = 0 if gpu is None else 1
        self._lock = threading.RLock()
        self._numbers = 1000
        self._streams: dict[int, FakeStream] = {}
        self._markers: dict[int, Marker | None] = {}
        self._graphs: dict[int, list[Job]] = {}
        self._memory: dict[str, dict[int, NDArray[np.uint8]]] = {"host": {}, "device": {}}
        self._freed: list[NDArray[np.uint8]] = []  # kept, so that no address is used twice
        self._sticky = cudaError_t.cudaSuccess
        self._failures: dict[str, cudaError_t] = {}
        self.calls: Counter[str] = Counter()

    # For tests, and for fake libraries that enqueue work

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the engines use this runtime and find its GPU."""
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self)
        monkeypatch.setattr("service.engines.cuda.find_gpu", self.find_gpu)

    def find_gpu(self) -> Gpu | None:
        """Fake of :func:`model_package.gpu.find_gpu`."""
        return self.gpu

    def fail_next(self, name: str, error: cudaError_t) -> None:
        """Make the next call of the function ``name`` return ``error``."""
        self._failures[name] = error

    def enqueue(self, stream: int, job: Job) -> None:
        """Enqueue a job on a stream."""
        with self._lock:
            self._enqueue(self._streams[stream], job)

    def is_capturing(self, stream: int) -> bool:
        return self._streams[stream].captured is not None

    def memory(self, kind: str, pointer: int, size_bytes: int) -> NDArray[np.uint8]:
        """Return the bytes at a pointer, which must lie within one allocation of that kind."""
        for start, allocation in self._memory[kind].items():
            if start <= pointer and pointer + size_bytes <= start + len(allocation):
                return allocation[pointer - start : pointer - start + size_bytes]
        raise IllegalAddressError(f"{size_bytes} bytes at {pointer:#x} are not {kind} memory")

    @property
    def alive(self) -> int:
        """Number of streams, events, graphs and allocations that are not destroyed."""
        memory = sum(len(allocations) for allocations in self._memory.values())
        return memory + len(self._streams) + len(self._markers) + len(self._graphs)

    # Devices and errors

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if not self._num_devices:
            return cudaError_t.cudaErrorNoDevice, 0
        return cudaError_t.cudaSuccess, self._num_devices

    def cudaGetErrorString(self, error: int) -> tuple[Any, ...]:
        return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (self._sticky,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        if self._is_capturing_in_this_thread():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None, None
        return self._return("cudaMemGetInfo", 1 << 30, 1 << 34)

    # Memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", "device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        return self._allocate("cudaHostAlloc", "host", size)

    def cudaFree(self, pointer: int) -> tuple[Any, ...]:
        self._freed.append(self._memory["device"].pop(pointer))
        return self._return("cudaFree")

    def cudaFreeHost(self, pointer: int) -> tuple[Any, ...]:
        self._freed.append(self._memory["host"].pop(pointer))
        return self._return("cudaFreeHost")

    def cudaMemcpyAsync(
        self, destination: int, source: int, count: int, kind: int, stream: Handle
    ) -> tuple[Any, ...]:
        to_device = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        kinds = ("device", "host") if to_device else ("host", "device")

        def copy() -> None:
            into = self.memory(kinds[0], destination, count)
            into[:] = self.memory(kinds[1], source, count)

        return self._return_and_enqueue("cudaMemcpyAsync", stream, copy)

    # Streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        result = self._return("cudaStreamCreateWithFlags", self._handle())
        if result[1] is not None:
            self._streams[int(result[1])] = FakeStream()
        return result

    def cudaStreamDestroy(self, stream: Handle) -> tuple[Any, ...]:
        del self._streams[int(stream)]
        return self._return("cudaStreamDestroy")

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        result = self._return("cudaEventCreateWithFlags", self._handle())
        if result[1] is not None:
            self._markers[int(result[1])] = None
        return result

    def cudaEventDestroy(self, event: Handle) -> tuple[Any, ...]:
        del self._markers[int(event)]
        return self._return("cudaEventDestroy")

    def cudaEventRecord(self, event: Handle, stream: Handle) -> tuple[Any, ...]:
        marker = Marker(self._streams[int(stream)])
        self._markers[int(event)] = marker

        def reach() -> None:
            marker.reached = True

        return self._return_and_enqueue("cudaEventRecord", stream, reach)

    def cudaStreamWaitEvent(self, stream: Handle, event: Handle, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        marker = self._markers[int(event)]

        def wait() -> None:
            if marker is not None:
                marker.stream.run_to(marker)

        return self._return_and_enqueue("cudaStreamWaitEvent", stream, wait)

    def cudaEventSynchronize(self, event: Handle) -> tuple[Any, ...]:
        with self._lock:
            if self._is_capturing_in_this_thread():
                return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
            marker = self._markers[int(event)]
            if marker is not None:
                self._run_job(lambda: marker.stream.run_to(marker))
            return self._return("cudaEventSynchronize")

    # Graphs

    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> tuple[Any, ...]:
        assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        result = self._return("cudaStreamBeginCapture")
        if not result[0]:
            fake = self._streams[int(stream)]
            fake.captured, fake.capturing_thread = [], threading.get_ident()
        return result

    def cudaStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:
        fake = self._streams[int(stream)]
        if fake.captured is None:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        jobs, fake.captured = fake.captured, None
        result = self._return("cudaStreamEndCapture", self._handle())
        if result[1] is not None:
            self._graphs[int(result[1])] = jobs
        return result

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        result = self._return("cudaGraphInstantiate", self._handle())
        if result[1] is not None:
            self._graphs[int(result[1])] = self._graphs[int(graph)]
        return result

    def cudaGraphLaunch(self, graph: Handle, stream: Handle) -> tuple[Any, ...]:
        jobs = self._graphs[int(graph)]

        def replay() -> None:
            for job in jobs:
                job()

        return self._return_and_enqueue("cudaGraphLaunch", stream, replay)

    def cudaGraphDestroy(self, graph: Handle) -> tuple[Any, ...]:
        del self._graphs[int(graph)]
        return self._return("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph: Handle) -> tuple[Any, ...]:
        del self._graphs[int(graph)]
        return self._return("cudaGraphExecDestroy")

    # Implementation

    def _handle(self) -> Handle:
        with self._lock:
            self._numbers += 1
            return Handle(self._numbers)

    def _return(self, name: str, *values: Any) -> tuple[Any, ...]:
        with self._lock:
            self.calls[name] += 1
            error = self._sticky or self._failures.pop(name, cudaError_t.cudaSuccess)
            return (error, *(None if error else value for value in values))

    def _return_and_enqueue(self, name: str, stream: Handle, job: Job) -> tuple[Any, ...]:
        with self._lock:
            result = self._return(name)
            if not result[0]:
                self._enqueue(self._streams[int(stream)], job)
            return result

    def _enqueue(self, stream: FakeStream, job: Job) -> None:
        if stream.captured is not None:
            stream.captured.append(job)
        elif self._lazy:
            stream.jobs.append(job)
        else:
            self._run_job(job)

    def _run_job(self, job: Job) -> None:
        try:
            job()
        except IllegalAddressError:
            self._sticky = cudaError_t.cudaErrorIllegalAddress

    def _is_capturing_in_this_thread(self) -> bool:
        here = threading.get_ident()
        return any(
            stream.captured is not None and stream.capturing_thread == here
            for stream in self._streams.values()
        )

    def _allocate(self, name: str, kind: str, size: int) -> tuple[Any, ...]:
        if self._is_capturing_in_this_thread():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        result = self._return(name, 0)
        if result[0]:
            return result
        padded = np.full(size + 256, 0xCD, np.uint8)
        shift = -padded.ctypes.data % 256
        allocation = padded[shift : shift + size]
        self._memory[kind][allocation.ctypes.data] = allocation
        return result[0], allocation.ctypes.data
