"""Measure milliseconds per batch, from uint8 images to outputs, both in host memory.

All contenders alternate within one run, so that changes of clock rate or temperature affect all of
them; the result is the median over the rounds. "two at a time" runs two batches concurrently from
two threads, as the service does.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.gpu_check.cases import Case, make_graph
from benchmarks.gpu_check.engines import CUDA_VARIANTS, open_precision, precisions
from benchmarks.gpu_check.notes import Notes
from model_package import ModelPackage
from service.engines import Engine

Row = dict[str, Any]
Batch = NDArray[np.uint8]


@dataclass(frozen=True)
class Contender:
    """A way to run a network, to be timed."""

    name: str
    run: Callable[[Batch], object]
    workers: int = 1


@dataclass(frozen=True)
class Repetitions:
    """Batch sizes and numbers of repetitions of a measurement."""

    batch_sizes: Sequence[int]
    rounds: int
    calls: int
    warm_up: int


FULL = Repetitions(batch_sizes=(1, 2, 4, 8, 16, 32), rounds=15, calls=10, warm_up=20)
SMOKE = Repetitions(batch_sizes=(1, 2), rounds=2, calls=1, warm_up=1)


def check(
    case: Case,
    weights: dict[str, torch.Tensor],
    package: ModelPackage,
    backends: Sequence[str],
    repetitions: Repetitions,
    threads: int,
    notes: Notes,
) -> list[Row]:
    """Return one row per contender and batch size."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The fastest settings of PyTorch that are as exact as the engines: no TensorFloat-32.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with ExitStack() as stack:
        contenders = list(_pytorch_contenders(case, weights, device, notes))
        variants = CUDA_VARIANTS if "onnxruntime-cuda" in backends else ()
        for backend in (*backends, *variants):
            largest = max(repetitions.batch_sizes)
            contenders += _engine_contenders(package, backend, threads, largest, stack, notes)
        _, plan = make_graph(case, weights, lambda network, _: network)
        shape = (plan.input.height_px, plan.input.width_px, 3)
        rows = []
        for size in repetitions.batch_sizes:
            batch = np.random.default_rng(size).integers(0, 256, (size, *shape), np.uint8)
            rows += _measure(case.name, contenders, batch, repetitions, notes)
        return rows


def _pytorch_contenders(
    case: Case, weights: dict[str, torch.Tensor], device: str, notes: Notes
) -> Iterator[Contender]:
    """Yield PyTorch in both precisions, channels last, and compiled."""
    full, _ = make_graph(case, weights, lambda network, _: network)
    yield Contender("PyTorch fp32", _runner(full, device))
    if device == "cpu":
        notes.skip(f"{case.name}: PyTorch fp16, torch.compile", "there is no GPU")
        return
    with notes.fail_on_error(f"{case.name}: PyTorch fp16"):
        from model_export.networks.fp16 import Fp16Network

        half, _ = make_graph(
            case, weights, lambda network, plan: Fp16Network(network, plan.task.heatmaps)
        )
        yield Contender("PyTorch fp16", _runner(half, device))
        if find_spec("triton") is None or not (os.environ.get("CC") or which("gcc")):
            notes.skip(f"{case.name}: torch.compile", "Triton or a C compiler is not installed")
            return
        # Compiled per batch size and launched as a CUDA graph, like the engines.
        compiled = torch.compile(half, mode="reduce-overhead", dynamic=False)
        yield Contender("torch.compile fp16", _runner(compiled, device))


def _runner(graph: nn.Module, device: str) -> Callable[[Batch], object]:
    graph = graph.to(device).to(memory_format=torch.channels_last)

    def run(batch: Batch) -> object:
        with torch.inference_mode():
            images = torch.from_numpy(batch)
            if device == "cuda":
                images = images.pin_memory().to(device, non_blocking=True)
            return [output.cpu() for output in graph(images)]

    return run


def _engine_contenders(
    package: ModelPackage,
    backend: str,
    threads: int,
    max_batch_size: int,
    stack: ExitStack,
    notes: Notes,
) -> Iterator[Contender]:
    for precision in precisions(package, backend):
        name = f"{backend} {precision}"
        with notes.fail_on_error(f"{package.manifest.name}: speed of {name}"):
            engine: Engine = stack.enter_context(
                open_precision(package, backend, precision, threads, max_batch_size)
            )
            yield Contender(name, engine.run)
            if engine.concurrency > 1:
                yield Contender(f"{name}, two at a time", engine.run, workers=2)


def _measure(
    network: str,
    contenders: Sequence[Contender],
    batch: Batch,
    repetitions: Repetitions,
    notes: Notes,
) -> list[Row]:
    durations_ms: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    remaining = list(contenders)
    for calls in (repetitions.warm_up, *[repetitions.calls] * repetitions.rounds):
        for contender in tuple(remaining):
            try:
                durations_ms[contender.name].append(_milliseconds(contender, batch, calls))
            except Exception as error:
                check_name = f"{network}: {contender.name} at batch {len(batch)}"
                notes.fail(check_name, f"{type(error).__name__}: {error}")
                remaining.remove(contender)
    medians_ms = {
        contender.name: statistics.median(durations_ms[contender.name][1:])  # without the warm-up
        for contender in remaining
    }
    return [
        {
            "network": network,
            "contender": name,
            "batch_size": len(batch),
            "ms_per_batch": round(milliseconds, 4),
            "images_per_s": round(1e3 * len(batch) / milliseconds, 1),
        }
        for name, milliseconds in medians_ms.items()
    ]


def _milliseconds(contender: Contender, batch: Batch, calls: int) -> float:
    """Return the time per batch, over ``calls`` in each of the contender's workers.

    Raises the exception of any worker.
    """

    def run_calls() -> None:
        for _ in range(calls):
            contender.run(batch)

    with ThreadPoolExecutor(contender.workers) as pool:
        started_at = time.perf_counter()
        others = [pool.submit(run_calls) for _ in range(contender.workers - 1)]
        # In this thread: torch.compile keeps its CUDA graphs per thread.
        run_calls()
        for other in others:
            other.result()
    return 1e3 * (time.perf_counter() - started_at) / (calls * contender.workers)
