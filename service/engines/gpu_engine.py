"""Batches on a GPU: two at a time, so that the copies of one overlap the computation of the other.

What runs the network is a :class:`Program`; everything around it is the same for all of them. Each
slot has a stream and buffers of its own, made once. One run of it is: the images into pinned
memory, their copy to the GPU, the program, one copy of all outputs back.

Launching a network kernel by kernel costs the CPU more time than a small batch takes on the GPU.
For inputs of the usual size the launches are therefore recorded once per batch size, and batches
are padded to the next size that was: 1, 2, 4, 8 and so on.
"""

import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from model_package.manifest import TensorSpec
from service.engines.cuda import Buffer, Cuda, Stream
from service.engines.engine import Images

SLOTS = 2

_ALIGNMENT_BYTES = 256  # what TensorRT asks of the address of a tensor

Shape = tuple[int, int, int, int]
"""Images, height, width, 3."""


@dataclass(frozen=True)
class Tensors:
    """Where a batch lies on the GPU: pointers of the images and of each output by name."""

    shape: Shape
    images: int
    outputs: Mapping[str, int]


class Program(Protocol):
    """A network that belongs to one slot."""

    def enqueue(self, tensors: Tensors, stream: Stream) -> None:
        """Put one run on the stream, without waiting for it."""
        ...


@dataclass
class Slot:
    """What one batch at a time uses."""

    stream: Stream
    images: Buffer
    outputs: Buffer
    programs: Mapping[bool, Program] = field(default_factory=dict)
    """By whether they average over the flipped images."""
    graphs: dict[tuple[bool, int], Any] = field(default_factory=dict)
    """Captured work by flip and batch size."""


class GpuEngine:
    """Runs programs on one GPU; see :class:`service.engines.Engine`.

    ``open_programs`` makes those of one slot. ``smallest`` and ``max_batch_size`` are the batch
    sizes that they take. ``capture``: whether this class is to record their launches; a program
    that does it by itself is only run once per size, to have done it.
    """

    concurrency = SLOTS
    is_reference = False

    def __init__(
        self,
        cuda: Cuda,
        manifest: ModelManifest,
        description: str,
        max_batch_size: int,
        open_programs: Callable[[int], Mapping[bool, Program]],
        capture: bool,
        smallest: int = 1,
    ) -> None:
        self.description = f"{description} on {cuda.gpu}"
        self.max_batch_size: int | None = max_batch_size
        self._cuda = cuda
        self._specs = manifest.decoder.outputs()
        self._default = (manifest.input.height_px, manifest.input.width_px, 3)
        self._sizes = batch_sizes(smallest, max_batch_size)
        self._slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for index in range(SLOTS):
            self._slots.put(self._make_slot(manifest, index, open_programs, capture))

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :class:`service.engines.Engine`."""
        slot = self._slots.get()
        try:
            return self._run(slot, images, flip)
        finally:
            # After an error, too: whatever is left on the stream is done before the next batch.
            self._slots.put(slot)

    def close(self) -> None:
        """Free the GPU's memory; see :class:`service.engines.Engine`."""
        with suppress(queue.Empty):
            while True:
                self._slots.get_nowait()  # programs go first: they may still use streams
        self._cuda.close()

    def _run(self, slot: Slot, images: Images, flip: bool) -> Mapping[str, NDArray[Any]]:
        count, shape = len(images), images[0].shape
        size = self._size(count, shape)
        places, outputs_bytes = layout(self._specs, size)
        size_bytes = _put_images(slot.images, images)
        slot.stream.to_device(slot.images, size_bytes)
        graph = slot.graphs.get((flip, size)) if shape == self._default else None
        if graph is None:
            self._enqueue(slot, flip, (size, *shape))
        else:
            slot.stream.launch(graph)
        slot.stream.finish()
        host = slot.outputs.host[:outputs_bytes]
        # Copies: the slot's next batch will overwrite its memory. Padded rows stay behind.
        return {
            spec.name: _view(host, places[spec.name], size, spec)[:count].copy()
            for spec in self._specs
        }

    def _size(self, count: int, shape: tuple[int, ...]) -> int:
        """Batch size to run ``count`` images with."""
        if not 0 < count <= self._sizes[-1]:
            raise ValueError(f"a batch of {count} images; {self._sizes[-1]} are the most")
        if shape == self._default:
            return next(size for size in self._sizes if size >= count)
        return max(count, self._sizes[0])

    def _enqueue(self, slot: Slot, flip: bool, shape: Shape) -> None:
        """Put the program and the copy of its outputs on the slot's stream."""
        if prod(shape) > slot.images.size_bytes:
            raise ValueError(f"a batch of shape {shape} is larger than the buffers of the engine")
        places, size_bytes = layout(self._specs, shape[0])
        pointers = {name: slot.outputs.device_pointer + place for name, place in places.items()}
        tensors = Tensors(shape, slot.images.device_pointer, pointers)
        slot.programs[flip].enqueue(tensors, slot.stream)
        slot.stream.to_host(slot.outputs, size_bytes)

    def _make_slot(
        self,
        manifest: ModelManifest,
        index: int,
        open_programs: Callable[[int], Mapping[bool, Program]],
        capture: bool,
    ) -> Slot:
        largest = self._sizes[-1]
        slot = Slot(
            Stream(self._cuda),
            Buffer(self._cuda, _images_bytes(manifest, largest)),
            Buffer(self._cuda, layout(self._specs, largest)[1]),
            open_programs(index),
        )
        for flip in slot.programs:
            for size in self._sizes:
                self._record(slot, flip, size, capture)
        return slot

    def _record(self, slot: Slot, flip: bool, size: int, capture: bool) -> None:
        """Run a batch size once, which settles what is settled late, then capture it."""

        def put_work() -> None:
            self._enqueue(slot, flip, (size, *self._default))

        put_work()
        slot.stream.finish()
        if capture:
            slot.graphs[flip, size] = slot.stream.capture(put_work)


def batch_sizes(smallest: int, largest: int) -> list[int]:
    """Sizes that batches are padded to: the powers of two between the two, and both."""
    powers = (2**exponent for exponent in range(largest.bit_length()))
    return sorted({smallest, largest, *(size for size in powers if smallest < size < largest)})


def layout(specs: Sequence[TensorSpec], rows: int) -> tuple[dict[str, int], int]:
    """Byte offset of each output when all lie together, and the size of the whole."""
    places: dict[str, int] = {}
    end = 0
    for spec in specs:
        places[spec.name] = end
        end += rows * prod(spec.shape) * np.dtype(spec.dtype).itemsize
        end = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return places, end


def _view(host: NDArray[np.uint8], place: int, rows: int, spec: TensorSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    end = place + rows * prod(spec.shape) * dtype.itemsize
    return host[place:end].view(dtype).reshape(rows, *spec.shape)


def _put_images(buffer: Buffer, images: Images) -> int:
    """Copy the images into pinned memory, one behind the other, and give their size in bytes."""
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


def _images_bytes(manifest: ModelManifest, max_batch_size: int) -> int:
    """Room for the largest batch of the usual size, and for one image of the largest size."""
    spec = manifest.input
    pixels = max_batch_size * spec.height_px * spec.width_px
    if spec.free_size is not None:
        pixels = max(pixels, spec.free_size.max_side_px**2)
    return 3 * pixels
