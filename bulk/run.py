"""The run on a Ray cluster: chunks to actors, files of results from them."""

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from bulk.detection import ChunkDetector
from bulk.plan import Plan
from bulk.results import write_results
from bulk.storage import locate
from service.cpu_cores import limit_cores


class Actors(NamedTuple):
    """The actors of a run: their number, and the resources of each."""

    minimum: int
    maximum: int
    cpus: float
    gpus: float


class ChunkCounts(NamedTuple):
    """Numbers of images, of those with an error, and of detections in a chunk."""

    images: int
    failed: int
    detections: int


class _Actor:
    """Detects in chunks and writes their files; Ray Data restarts it where it ends."""

    def __init__(
        self, package: str, description: Mapping[str, Any], cores: float, output: str
    ) -> None:
        limit_cores(cores)
        self._detector = ChunkDetector(package, description)
        self._output = locate(output)

    def __call__(self, batch: pa.Table) -> pa.Table:
        counts = [self._process(row) for row in batch.to_pylist()]
        return pa.Table.from_pylist([one._asdict() for one in counts])

    def _process(self, chunk: dict[str, Any]) -> ChunkCounts:
        table = self._detector.detect(chunk)
        write_results(self._output, chunk["number"], table)
        failed = pc.count(table["error"]).as_py()
        detections = pc.sum(pc.list_value_length(table["detections"])).as_py() or 0
        return ChunkCounts(table.num_rows, failed, detections)


def connect(address: str | None) -> None:
    """Connect to the cluster at ``address`` or in RAY_ADDRESS; without one, use this machine."""
    local = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    ray.init(address, log_to_driver=False, logging_level="error", **local)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)


def detect_chunks(
    package: str, output: str, plan: Plan, missing: list[int], actors: Actors
) -> Iterator[ChunkCounts]:
    """Detect in the missing chunks and yield their counts as they are completed.

    Raises what the actors raise.
    """
    numbered = plan.chunks.append_column("number", pa.array(range(plan.chunks.num_rows)))
    tables = [numbered.slice(number, 1) for number in missing]
    arguments = (package, plan.description, actors.cpus, output)
    counts: Dataset = ray.data.from_arrow(tables).map_batches(
        _Actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=actors.minimum, max_size=actors.maximum),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    for row in counts.iter_rows():
        yield ChunkCounts(**row)
