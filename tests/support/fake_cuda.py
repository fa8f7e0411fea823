"""The CUDA runtime over host memory: what the bindings' functions promise, without a GPU.

Streams are queues. With ``lazy`` their work is done only when somebody waits for it, and only as
much as he waits for; else at once. Between these two extremes lies every order that a GPU may
take: what is right in both neither reads too early nor overwrites too soon. Memory is checked at
its bounds and filled with 0xCD; an error that a job raises is sticky, as a GPU's would be.
"""

# The bindings' names and parameters are not ours.
# ruff: noqa: N801, N802, N815, ARG002

import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """What a job raises that uses memory which is not its own."""


class Handle:
    """An opaque handle that has a number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        return self.number


class Marker:
    """A place in a stream."""

    def __init__(self, stream: "FakeStream") -> None:
        self.stream = stream
        self.reached = False


class FakeStream:
    """Jobs in order."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.captured: list[Job] | None = None
        self.capturing_thread: int | None = None

    def run_to(self, marker: Marker) -> None:
        while not marker.reached:
            self.jobs.popleft()()


class FakeCudaRuntime:
    """Stands in for the module ``cuda.bindings.runtime``."""

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
        gpu: str = "NVIDIA L4",
        compute_capability: tuple[int, int] = (8, 9),
        devices: int = 1,
    ) -> None:
        self._lazy = lazy
        self._gpu, self._compute_capability, self._devices = gpu, compute_capability, devices
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

    # For tests and for libraries that put work on streams

    def fail_next(self, name: str, error: cudaError_t) -> None:
        """Have the next call of that name give ``error``."""
        self._failures[name] = error

    def put(self, stream: int, job: Job) -> None:
        """Put work on a stream."""
        with self._lock:
            self._put(self._streams[stream], job)

    def is_capturing(self, stream: int) -> bool:
        return self._streams[stream].captured is not None

    def memory(self, kind: str, pointer: int, size_bytes: int) -> NDArray[np.uint8]:
        """The bytes behind a pointer, which must lie within one allocation of that kind."""
        for start, allocation in self._memory[kind].items():
            if start <= pointer and pointer + size_bytes <= start + len(allocation):
                return allocation[pointer - start : pointer - start + size_bytes]
        raise IllegalAddressError(f"{size_bytes} bytes at {pointer:#x} are no {kind} memory")

    @property
    def alive(self) -> int:
        """Streams, events, graphs and allocations that were not destroyed."""
        memory = sum(len(allocations) for allocations in self._memory.values())
        return memory + len(self._streams) + len(self._markers) + len(self._graphs)

    # Devices and errors

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if not self._devices:
            return cudaError_t.cudaErrorNoDevice, 0
        return cudaError_t.cudaSuccess, self._devices

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self._compute_capability
        properties = SimpleNamespace(name=self._gpu.encode(), major=major, minor=minor)
        return self._give("cudaGetDeviceProperties", properties)

    def cudaGetErrorString(self, error: int) -> tuple[Any, ...]:
        return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (self._sticky,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self._give("cudaMemGetInfo", 1 << 30, 1 << 34)

    # Memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", "device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        return self._allocate("cudaHostAlloc", "host", size)

    def cudaFree(self, pointer: int) -> tuple[Any, ...]:
        self._freed.append(self._memory["device"].pop(pointer))
        return self._give("cudaFree")

    def cudaFreeHost(self, pointer: int) -> tuple[Any, ...]:
        self._freed.append(self._memory["host"].pop(pointer))
        return self._give("cudaFreeHost")

    def cudaMemcpyAsync(
        self, destination: int, source: int, count: int, kind: int, stream: Handle
    ) -> tuple[Any, ...]:
        to_device = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        kinds = ("device", "host") if to_device else ("host", "device")

        def copy() -> None:
            into = self.memory(kinds[0], destination, count)
            into[:] = self.memory(kinds[1], source, count)

        return self._give_and_put("cudaMemcpyAsync", stream, copy)

    # Streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        given = self._give("cudaStreamCreateWithFlags", self._handle())
        if given[1] is not None:
            self._streams[int(given[1])] = FakeStream()
        return given

    def cudaStreamDestroy(self, stream: Handle) -> tuple[Any, ...]:
        del self._streams[int(stream)]
        return self._give("cudaStreamDestroy")

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        given = self._give("cudaEventCreateWithFlags", self._handle())
        if given[1] is not None:
            self._markers[int(given[1])] = None
        return given

    def cudaEventDestroy(self, event: Handle) -> tuple[Any, ...]:
        del self._markers[int(event)]
        return self._give("cudaEventDestroy")

    def cudaEventRecord(self, event: Handle, stream: Handle) -> tuple[Any, ...]:
        marker = Marker(self._streams[int(stream)])
        self._markers[int(event)] = marker

        def reach() -> None:
            marker.reached = True

        return self._give_and_put("cudaEventRecord", stream, reach)

    def cudaStreamWaitEvent(self, stream: Handle, event: Handle, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        marker = self._markers[int(event)]

        def wait() -> None:
            if marker is not None:
                marker.stream.run_to(marker)

        return self._give_and_put("cudaStreamWaitEvent", stream, wait)

    def cudaEventSynchronize(self, event: Handle) -> tuple[Any, ...]:
        with self._lock:
            if self._captures_here():
                return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
            marker = self._markers[int(event)]
            if marker is not None:
                self._guarded(lambda: marker.stream.run_to(marker))
            return self._give("cudaEventSynchronize")

    # Graphs

    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> tuple[Any, ...]:
        assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        fake = self._streams[int(stream)]
        fake.captured, fake.capturing_thread = [], threading.get_ident()
        return self._give("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:
        fake = self._streams[int(stream)]
        if fake.captured is None:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        handle, jobs = self._handle(), fake.captured
        fake.captured = None
        self._graphs[int(handle)] = jobs
        return self._give("cudaStreamEndCapture", handle)

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        given = self._give("cudaGraphInstantiate", self._handle())
        if given[1] is not None:
            self._graphs[int(given[1])] = self._graphs[int(graph)]
        return given

    def cudaGraphLaunch(self, graph: Handle, stream: Handle) -> tuple[Any, ...]:
        jobs = self._graphs[int(graph)]

        def replay() -> None:
            for job in jobs:
                job()

        return self._give_and_put("cudaGraphLaunch", stream, replay)

    def cudaGraphDestroy(self, graph: Handle) -> tuple[Any, ...]:
        del self._graphs[int(graph)]
        return self._give("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph: Handle) -> tuple[Any, ...]:
        del self._graphs[int(graph)]
        return self._give("cudaGraphExecDestroy")

    # How it works

    def _handle(self) -> Handle:
        with self._lock:
            self._numbers += 1
            return Handle(self._numbers)

    def _give(self, name: str, *values: Any) -> tuple[Any, ...]:
        with self._lock:
            self.calls[name] += 1
            error = self._sticky or self._failures.pop(name, cudaError_t.cudaSuccess)
            return (error, *(None if error else value for value in values))

    def _give_and_put(self, name: str, stream: Handle, job: Job) -> tuple[Any, ...]:
        with self._lock:
            given = self._give(name)
            if not given[0]:
                self._put(self._streams[int(stream)], job)
            return given

    def _put(self, stream: FakeStream, job: Job) -> None:
        if stream.captured is not None:
            stream.captured.append(job)
        elif self._lazy:
            stream.jobs.append(job)
        else:
            self._guarded(job)

    def _guarded(self, job: Job) -> None:
        try:
            job()
        except IllegalAddressError:
            self._sticky = cudaError_t.cudaErrorIllegalAddress

    def _captures_here(self) -> bool:
        here = threading.get_ident()
        return any(
            stream.captured is not None and stream.capturing_thread == here
            for stream in self._streams.values()
        )

    def _allocate(self, name: str, kind: str, size: int) -> tuple[Any, ...]:
        if self._captures_here():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        given = self._give(name, 0)
        if given[0]:
            return given
        room = np.full(size + 256, 0xCD, np.uint8)
        shift = -room.ctypes.data % 256
        allocation = room[shift : shift + size]
        self._memory[kind][allocation.ctypes.data] = allocation
        return given[0], allocation.ctypes.data
