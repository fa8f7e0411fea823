"""Detection of the images of one chunk, in the pipeline of the service."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.errors import BulkError
from bulk.plan import Chunk
from bulk.results import to_table
from bulk.storage import Location, locate
from model_package import load_package
from service.async_detector import AsyncDetector
from service.batching.types import SchedulingOptions
from service.detector import open_detector
from service.errors import (
    BodyTooLargeError,
    EmptyBodyError,
    EngineError,
    ImageFetchError,
    RestartRequiredError,
    ServiceError,
)
from service.http.responses import to_json, to_response
from service.image_pool import ImagePool
from service.observability.metrics import Metrics
from service.option_rules import OptionRules
from service.options import DetectParameters, RequestOptions, validate_options
from service.settings import Settings

READ_AHEAD = 4
"""Images in progress for each place in a batch of each concurrent run."""
_ROWS_AT_A_TIME = 16

Row = dict[str, Any]


class ChunkDetector:
    """A model with batcher, engine and decoding threads, as in one process of the service.

    Settings are those of the service, from the environment. Raises :class:`BulkError` if the
    package is of another model than that of ``description``, and what
    :func:`service.detector.load_detector` raises.
    """

    def __init__(self, package: str, description: Mapping[str, Any]) -> None:
        fields: dict[str, Any] = {"models": Path(package), "default_model": None}
        settings = Settings(**fields)
        loaded = load_package(Path(package))
        found = {"model": loaded.manifest.name, "version": loaded.manifest.version}
        if any(description[name] != value for name, value in found.items()):
            raise BulkError(
                f"{package} on this node is {found['model']} {found['version']}, but the run is of "
                f"{description['model']} {description['version']}: install the same package on "
                "all nodes"
            )
        detector, _ = open_detector(loaded, settings)
        self._max_bytes = settings.max_body_bytes
        self._pool = ImagePool(settings.image_threads, settings.max_decoding_bytes)
        self._detector = AsyncDetector(detector, self._pool, settings, Metrics())
        self._detector.warm_up()
        self._options = complete_options(detector.rules, description["options"])
        self._limit = READ_AHEAD * detector.engine.concurrency * self._detector.max_batch_size
        self._source = locate(description["source"])
        self._kind, self._column = description["kind"], description["column"]
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="detection").start()
        self._loop.call_soon_threadsafe(self._detector.start)

    def detect(self, chunk: Chunk) -> pa.Table:
        """Return a row for each image of a chunk, in their order.

        Images with an error of their own are rows with it. Raises :class:`OSError` if the storage
        fails, and :class:`service.errors.ServiceError` if the engine does.
        """
        rows = asyncio.run_coroutine_threadsafe(self._detect_all(chunk), self._loop).result()
        return to_table(rows)

    async def _detect_all(self, chunk: Chunk) -> list[Row]:
        images = enumerate(self._images(chunk))
        lock = threading.Lock()
        rows: dict[int, Row] = {}

        def read_next() -> tuple[int, str, bytes | ServiceError] | None:
            with lock:
                item = next(images, None)
            if item is None:
                return None
            index, (path, load) = item
            try:
                return index, path, load()
            except ServiceError as error:
                return index, path, error

        async def work() -> None:
            while (item := await asyncio.to_thread(read_next)) is not None:
                index, path, content = item
                rows[index] = {"path": path} | await self._detect(content)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._limit, chunk["count"])):
                tasks.create_task(work())
        if self._detector.problem is not None:
            raise RestartRequiredError(self._detector.problem)
        return [rows[index] for index in range(chunk["count"])]

    async def _detect(self, content: bytes | ServiceError) -> Row:
        """Return the columns of an image, with those of a response of the service or its error."""
        manifest = self._detector.manifest
        row: Row = {"model": manifest.name, "version": manifest.version}
        try:
            if isinstance(content, ServiceError):
                raise content
            prediction = await self._detector.detect(content, self._options, SchedulingOptions())
        except (EngineError, RestartRequiredError):
            raise
        except ServiceError as error:
            return row | {"error": error.code, "detail": error.detail}
        # As a client receives it: with rounded numbers.
        response = json.loads(to_json(to_response(manifest, prediction, "")))
        size = {side: response["image"][side] for side in ("width", "height")}
        return row | size | {"detections": response["detections"]}

    def _images(self, chunk: Chunk) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yield the path of each image, and a function that returns its encoded bytes."""
        if self._kind == "images":
            yield from self._rows_of_parquet(chunk)
            return
        for path in chunk["paths"]:
            place = self._source.child(path) if self._kind == "folder" else locate(path)
            yield path, partial(self._read, place)

    def _rows_of_parquet(self, chunk: Chunk) -> Iterator[tuple[str, Callable[[], bytes]]]:
        offset, end = chunk["offset"], chunk["offset"] + chunk["count"]
        with self._source.files.open_input_file(chunk["file"]) as file:
            batches = pq.ParquetFile(file).iter_batches(
                _ROWS_AT_A_TIME, row_groups=[chunk["row_group"]], columns=[self._column]
            )
            cells = (cell for batch in batches for cell in batch[0])
            for number, cell in enumerate(islice(cells, offset, end), chunk["first_row"]):
                yield f"{chunk['file']}#{number}", partial(self._checked, cell.as_py() or b"")

    def _read(self, place: Location) -> bytes:
        try:
            with place.files.open_input_stream(place.path) as file:
                return self._checked(file.read(self._max_bytes + 1))
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise ImageFetchError(f"The image cannot be read: {error}") from None

    def _checked(self, content: bytes) -> bytes:
        if not content:
            raise EmptyBodyError("The image is empty.")
        if len(content) > self._max_bytes:
            raise BodyTooLargeError(
                f"The image has more than {self._max_bytes} bytes. Compress it more, or set "
                "CENTERNET_MAX_BODY_BYTES."
            )
        return content


def complete_options(rules: OptionRules, options: Mapping[str, Any]) -> RequestOptions:
    """Return the options of all images; raises :class:`service.errors.InvalidOptionError`."""
    return rules.complete(validate_options(DetectParameters, options))
