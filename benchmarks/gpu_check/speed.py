"""Milliseconds per batch, from uint8 images in host memory to outputs in host memory.

All contenders take turns within one run, so that a change of clock or temperature meets all of
them; the median of the turns counts. "two at a time" is what the service does: two threads, each
with a batch under way.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.gpu_check.cases import Case, make_graph
from benchmarks.gpu_check.engines import opened
from benchmarks.gpu_check.notes import Notes
from model_package import ModelPackage
from service.engines import Engine, EngineUnavailableError

Row = dict[str, Any]
Batch = NDArray[np.uint8]


@dataclass(frozen=True)
class Contender:
    """One way to run a network."""

    name: str
    run: Callable[[Batch], object]
    workers: int = 1


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    batch_sizes: Sequence[int]
    rounds: int
    calls: int
    warm_up: int


FULL = Effort(batch_sizes=(1, 2, 4, 8, 16, 32), rounds=15, calls=10, warm_up=20)
SMOKE = Effort(batch_sizes=(1, 2), rounds=2, calls=1, warm_up=1)


def check(
    case: Case,
    weights: dict[str, torch.Tensor],
    package: ModelPackage | None,
    backends: Sequence[str],
    effort: Effort,
    threads: int,
    notes: Notes,
) -> list[Row]:
    """One row per contender and batch size."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # PyTorch at its best, but as exact as the engines: no TensorFloat-32 in float32.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with ExitStack() as stack:
        contenders = list(_eager(case, weights, device, notes))
        if package is not None:
            for backend in backends:
                largest = max(effort.batch_sizes)
                contenders += _engines(package, backend, threads, largest, stack, notes)
        _, plan = make_graph(case, weights, lambda network, _: network)
        shape = (plan.input.height_px, plan.input.width_px, 3)
        rows = []
        for size in effort.batch_sizes:
            batch = np.random.default_rng(size).integers(0, 256, (size, *shape), np.uint8)
            rows += _measure(case.name, contenders, batch, effort, notes)
        return rows


def _eager(
    case: Case, weights: dict[str, torch.Tensor], device: str, notes: Notes
) -> Iterator[Contender]:
    """PyTorch in both precisions, channels last, and compiled."""
    full, _ = make_graph(case, weights, lambda network, _: network)
    yield Contender("PyTorch fp32", _runner(full, device))
    if device == "cpu":
        notes.skip(f"{case.name}: PyTorch fp16, torch.compile", "there is no GPU")
        return
    with notes.instead(f"{case.name}: PyTorch fp16"):
        from model_export.onnx.fp16 import HalfNetwork

        half, _ = make_graph(
            case, weights, lambda network, plan: HalfNetwork(network, plan.task.heatmaps)
        )
        yield Contender("PyTorch fp16", _runner(half, device))
        # Compiled once per batch size, and launched as a CUDA graph, as the engines are.
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


def _engines(
    package: ModelPackage,
    backend: str,
    threads: int,
    max_batch_size: int,
    stack: ExitStack,
    notes: Notes,
) -> Iterator[Contender]:
    for precision in ("fp32", "fp16"):
        name = f"{backend} {precision}"
        try:
            engine: Engine = stack.enter_context(
                opened(package, backend, precision, threads, max_batch_size)
            )
        except (EngineUnavailableError, LookupError) as error:
            notes.skip(f"{package.manifest.name}: speed of {name}", str(error))
            continue
        yield Contender(name, engine.run)
        if engine.concurrency > 1:
            yield Contender(f"{name}, two at a time", engine.run, workers=2)


def _measure(
    network: str, contenders: Sequence[Contender], batch: Batch, effort: Effort, notes: Notes
) -> list[Row]:
    running = []
    for contender in contenders:
        with notes.instead(f"{network}: {contender.name} at batch {len(batch)}"):
            for _ in range(effort.warm_up):
                contender.run(batch)
            running.append(contender)
    taken: dict[str, list[float]] = {contender.name: [] for contender in running}
    for _ in range(effort.rounds):
        for contender in running:
            taken[contender.name].append(_milliseconds(contender, batch, effort.calls))
    return [
        {
            "network": network,
            "contender": contender.name,
            "batch_size": len(batch),
            "ms_per_batch": round(statistics.median(taken[contender.name]), 4),
            "images_per_s": round(1e3 * len(batch) / statistics.median(taken[contender.name]), 1),
        }
        for contender in running
    ]


def _milliseconds(contender: Contender, batch: Batch, calls: int) -> float:
    """Per batch, over ``calls`` of each worker."""

    def work() -> None:
        for _ in range(calls):
            contender.run(batch)

    others = [threading.Thread(target=work) for _ in range(contender.workers - 1)]
    started_at = time.perf_counter()
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    return 1e3 * (time.perf_counter() - started_at) / (calls * contender.workers)
