"""Batched inference on a GPU, shared by TensorRT, TensorRT-RTX and ONNX Runtime with CUDA.

The runtime supplies an :class:`ExecutionContext`, which enqueues the network on a stream. A
:class:`GpuEngine` has two :class:`ExecutionInstance` objects, so that the copies of one batch
overlap the computation of another. Each has a stream, buffers and execution contexts of its own,
created once. One run copies the images into pinned memory, then enqueues their copy to the GPU,
the network, and one copy of all outputs back.

Launching the kernels of a network one by one takes more CPU time than a small batch takes on the
GPU. For the default input size the launches are therefore captured as one CUDA graph per batch
size, and batches are padded to the next captured size: 1, 2, 4, 8 and so on. If a capture fails,
the engine is opened again without graphs (:func:`open_with_cuda_graphs`).
"""

import logging
import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from model_package.manifest import TensorSpec
from service.engines.batch_sizes import power_of_two_batch_sizes
from service.engines.cuda import CudaDevice, HostDeviceBuffer, Stream
from service.engines.engine import Images
from service.engines.errors import EngineBrokenError
from service.engines.precision import ComputePrecision

_log = logging.getLogger(__name__)

NUM_INSTANCES = 2

_ALIGNMENT_BYTES = 256  # required by TensorRT for the address of a tensor

Shape = tuple[int, int, int, int]
"""Batch size, height, width, 3."""


@dataclass(frozen=True)
class DeviceTensors:
    """Device pointers of one batch."""

    shape: Shape
    images: int
    outputs: Mapping[str, int]
    """By the name of the output."""


class GraphCaptureError(Exception):
    """The work of the network cannot be captured as a CUDA graph."""


class ExecutionContext(Protocol):
    """A network that is ready to run on the GPU, for one :class:`ExecutionInstance`."""

    def enqueue(self, tensors: DeviceTensors, stream: Stream) -> None:
        """Enqueue one run of the network on the stream and return without waiting for it."""
        ...


ContextFactory = Callable[[int, bool], ExecutionContext]
"""Returns a new context for the instance with the given index (first) and flip (second)."""


@dataclass(frozen=True)
class CapturedGraph:
    """A CUDA graph with the context that it was captured from, which it needs for its replay."""

    graph: Any
    context: ExecutionContext


@dataclass
class ExecutionInstance:
    """Resources of one batch in progress; instances share no mutable state."""

    stream: Stream
    images: HostDeviceBuffer
    outputs: HostDeviceBuffer
    contexts: Mapping[bool, ExecutionContext]
    """For runs without a graph, by flip."""
    graphs: dict[tuple[bool, int], CapturedGraph] = field(default_factory=dict)
    """By flip and batch size."""


class GpuEngine:
    """Runs execution contexts on one GPU; see :class:`service.engines.Engine`.

    ``library``: name and version of the runtime. ``create_context`` is called once per instance
    and flip, and once more for every graph that is captured: a runtime may change the state of a
    context, on which its graph depends, when the context runs another shape. ``min_batch_size`` and
    ``max_batch_size`` are the limits of these contexts. ``capture_graphs`` is false for runtimes
    that capture CUDA graphs themselves; each batch size is then only run once at start, which makes
    the runtime capture it.

    Raises :class:`GraphCaptureError` if ``capture_graphs`` is true and a capture fails.
    """

    concurrency = NUM_INSTANCES
    is_reference = False

    def __init__(
        self,
        device: CudaDevice,
        manifest: ModelManifest,
        library: str,
        precision: ComputePrecision,
        max_batch_size: int,
        create_context: ContextFactory,
        capture_graphs: bool,
        min_batch_size: int = 1,
    ) -> None:
        self.description = f"{library}, {precision} on {device.gpu.name}"
        self.precision = precision
        self.max_batch_size: int | None = max_batch_size
        self._device = device
        self._output_specs = manifest.decoder.outputs()
        self._default_shape = (manifest.input.height_px, manifest.input.width_px, 3)
        self._batch_sizes = power_of_two_batch_sizes(max_batch_size, min_batch_size)
        flips = sorted({artifact.flip for artifact in manifest.artifacts})
        self._instances: queue.SimpleQueue[ExecutionInstance] = queue.SimpleQueue()
        for index in range(NUM_INSTANCES):
            instance = ExecutionInstance(
                Stream(device),
                HostDeviceBuffer(device, _image_buffer_bytes(manifest, max_batch_size)),
                HostDeviceBuffer(device, output_layout(self._output_specs, max_batch_size)[1]),
                {flip: create_context(index, flip) for flip in flips},
            )
            for flip, batch_size in product(flips, self._batch_sizes):
                if capture_graphs:
                    context = create_context(index, flip)
                    captured = self._capture_graph(instance, context, batch_size)
                    instance.graphs[flip, batch_size] = captured
                else:
                    self._warm_up(instance, instance.contexts[flip], batch_size)
            self._instances.put(instance)

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :meth:`service.engines.Engine.run`."""
        instance = self._instances.get()
        try:
            return self._run(instance, images, flip)
        finally:
            # Safe after an error too: work that is left on the stream completes before the next
            # batch, because the stream executes in order.
            self._instances.put(instance)

    def close(self) -> None:
        """Free the memory on the GPU; see :meth:`service.engines.Engine.close`."""
        with suppress(queue.Empty):
            while True:
                self._instances.get_nowait()  # contexts may use the streams: drop them first
        self._device.close()

    def _run(
        self, instance: ExecutionInstance, images: Images, flip: bool
    ) -> Mapping[str, NDArray[Any]]:
        count, image_shape = len(images), images[0].shape
        batch_size = self._padded_batch_size(count, image_shape)
        offsets, outputs_bytes = output_layout(self._output_specs, batch_size)
        images_bytes = _copy_to_pinned_memory(images, instance.images)
        instance.stream.copy_to_device(instance.images, images_bytes)
        is_captured = image_shape == self._default_shape
        captured = instance.graphs.get((flip, batch_size)) if is_captured else None
        if captured is None:
            self._enqueue(instance, instance.contexts[flip], (batch_size, *image_shape))
        else:
            instance.stream.launch_graph(captured.graph)
        instance.stream.synchronize()
        host = instance.outputs.host[:outputs_bytes]
        # Copies, because the next batch of this instance overwrites the buffer; rows of the
        # padding are dropped.
        return {
            spec.name: _view(host, offsets[spec.name], batch_size, spec)[:count].copy()
            for spec in self._output_specs
        }

    def _padded_batch_size(self, count: int, image_shape: tuple[int, ...]) -> int:
        """Return the batch size to run ``count`` images with."""
        if not 0 < count <= self._batch_sizes[-1]:
            raise ValueError(
                f"received a batch of {count} images; accepted are 1 to {self._batch_sizes[-1]}"
            )
        if image_shape == self._default_shape:
            return next(size for size in self._batch_sizes if size >= count)
        return max(count, self._batch_sizes[0])

    def _enqueue(
        self, instance: ExecutionInstance, context: ExecutionContext, shape: Shape
    ) -> None:
        """Enqueue the network and the copy of its outputs to the host."""
        if prod(shape) > instance.images.size_bytes:
            raise ValueError(f"a batch of shape {shape} is larger than the buffers of the engine")
        offsets, size_bytes = output_layout(self._output_specs, shape[0])
        base = instance.outputs.device_pointer
        pointers = {name: base + offset for name, offset in offsets.items()}
        tensors = DeviceTensors(shape, instance.images.device_pointer, pointers)
        context.enqueue(tensors, instance.stream)
        instance.stream.copy_to_host(instance.outputs, size_bytes)

    def _warm_up(
        self, instance: ExecutionInstance, context: ExecutionContext, batch_size: int
    ) -> None:
        """Run a batch of the default size once: runtimes defer initialisation to the first run."""
        self._enqueue(instance, context, (batch_size, *self._default_shape))
        instance.stream.synchronize()

    def _capture_graph(
        self, instance: ExecutionInstance, context: ExecutionContext, batch_size: int
    ) -> CapturedGraph:
        """Capture a batch of the default size. The deferred initialisation cannot be captured."""
        self._warm_up(instance, context, batch_size)
        shape = (batch_size, *self._default_shape)
        try:
            graph = instance.stream.capture_graph(partial(self._enqueue, instance, context, shape))
        except EngineBrokenError:
            raise
        except Exception as error:  # each runtime raises its own exceptions
            raise GraphCaptureError(f"a batch of shape {shape}: {error}") from error
        return CapturedGraph(graph, context)


def open_with_cuda_graphs(
    device: CudaDevice, name: str, open_engine: Callable[[bool], GpuEngine]
) -> GpuEngine:
    """Open an engine with CUDA graphs, or without if a capture fails.

    ``open_engine`` is called with whether to use graphs. It raises :class:`GraphCaptureError` if
    that fails; ``device`` is then closed, and the engine's description states that it runs without
    CUDA graphs. ``name`` is that of the model, for the log.
    """
    try:
        return open_engine(True)
    except GraphCaptureError as error:
        reason = str(error)
    # After the exception is dropped, whose traceback refers to the contexts.
    device.close()
    _log.warning("%s runs without CUDA graphs: they could not be captured: %s", name, reason)
    engine = open_engine(False)
    engine.description += ", without CUDA graphs"
    return engine


def output_layout(specs: Sequence[TensorSpec], batch_size: int) -> tuple[dict[str, int], int]:
    """Return the byte offset of each output in the common buffer, and the size of the buffer."""
    offsets: dict[str, int] = {}
    end = 0
    for spec in specs:
        offsets[spec.name] = end
        end += batch_size * prod(spec.shape) * np.dtype(spec.dtype).itemsize
        end = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return offsets, end


def _view(host: NDArray[np.uint8], offset: int, batch_size: int, spec: TensorSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    end = offset + batch_size * prod(spec.shape) * dtype.itemsize
    return host[offset:end].view(dtype).reshape(batch_size, *spec.shape)


def _copy_to_pinned_memory(images: Images, buffer: HostDeviceBuffer) -> int:
    """Copy the images into the host side of a buffer and return their size in bytes."""
    shape = images[0].shape
    size_bytes = len(images) * prod(shape)
    if size_bytes > buffer.size_bytes:
        raise ValueError(
            f"{len(images)} images of shape {shape} are larger than the buffers of the engine"
        )
    rows = buffer.host[:size_bytes].reshape(len(images), *shape)
    for row, image in zip(rows, images, strict=True):
        np.copyto(row, image, casting="no")
    return size_bytes


def _image_buffer_bytes(manifest: ModelManifest, max_batch_size: int) -> int:
    """Return the size of the largest batch of the default size, or of one image of the largest."""
    spec = manifest.input
    pixels = max_batch_size * spec.height_px * spec.width_px
    if spec.free_size is not None:
        pixels = max(pixels, spec.free_size.max_side_px**2)
    return 3 * pixels
