"""The division of a run into chunks of images, and what of it is done.

A run begins with a plan, which is stored with its output: each image is in one chunk, and each
chunk has one file of results, whose name is the number of the chunk and which is written at once.
Whatever is repeated after a fault therefore replaces a file by an equal one, and what is missing is
the chunks without file.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileType

from bulk.errors import BulkError
from bulk.storage import Location, locate
from client.command.sources import IMAGE_SUFFIXES

PLAN_FILE = "_plan.parquet"
"""Readers of Parquet folders ignore files whose names begin with an underscore."""
_DESCRIPTION = b"centernet"
_PARQUET = ".parquet"
SCHEMA = pa.schema(
    [
        ("paths", pa.list_(pa.string())),
        ("file", pa.string()),
        ("row_group", pa.int64()),
        ("offset", pa.int64()),
        ("first_row", pa.int64()),
        ("count", pa.int64()),
    ]
)
"""A chunk: ``paths`` of images, or ``count`` rows of a row group of a Parquet file
with images, from ``offset`` on, the first of which is row ``first_row`` of the file."""

Chunk = Mapping[str, Any]


class Plan(NamedTuple):
    """``description``: source, model and options; ``chunks``: with the columns of SCHEMA."""

    description: Mapping[str, Any]
    chunks: pa.Table


def make_plan(source: str, column: str, size: int, description: Mapping[str, Any]) -> Plan:
    """Divide the images of a source into chunks of at most ``size``.

    ``source``: path or URI of a folder with images (recursively), of a Parquet file, or of a folder
    with Parquet files, whose ``column`` has encoded images or paths. Raises :class:`BulkError`.
    """
    root = locate(source)
    files = _list_files(source, root)
    parquet = [path for path in files if path.endswith(_PARQUET)]
    chunks: list[Chunk]
    if not parquet:
        images = [path for path in files if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES]
        base = f"{root.path.rstrip('/')}/"
        names = [path.removeprefix(base) for path in images]
        kind, chunks = "folder", list(_chunks_of_paths(names, size))
    else:
        kind, chunks = _read_parquet(root, parquet, column, size)
    if not chunks:
        raise BulkError(
            f"{source}: no image ({' '.join(sorted(IMAGE_SUFFIXES))}) and no row of a Parquet file "
            "was found"
        )
    full = {"source": source, "kind": kind, "column": column, **description}
    return Plan(full, pa.Table.from_pylist(chunks, SCHEMA))


def _list_files(source: str, root: Location) -> list[str]:
    """Return the paths of the files, sorted."""
    try:
        info = root.files.get_file_info(root.path)
        if info.type is FileType.File:
            return [info.path]
        found = root.files.get_file_info(FileSelector(root.path, recursive=True))
    except FileNotFoundError:
        raise BulkError(f"{source}: there is no such file or folder") from None
    return sorted(one.path for one in found if one.type is FileType.File)


def _chunks_of_paths(paths: list[str], size: int) -> Iterator[Chunk]:
    for start in range(0, len(paths), size):
        part = paths[start : start + size]
        yield {"paths": part, "count": len(part)}


def _read_parquet(
    root: Location, files: list[str], column: str, size: int
) -> tuple[str, list[Chunk]]:
    paths: dict[str, None] = {}
    chunks: list[Chunk] = []
    for file in files:
        with root.files.open_input_file(file) as stream:
            parquet = pq.ParquetFile(stream)
            kind = _column_type(file, parquet.schema_arrow, column)
            if kind == "paths":
                for batch in parquet.iter_batches(columns=[column]):
                    # Each image is processed once, even if several rows name it.
                    paths |= dict.fromkeys(path for path in batch[0].to_pylist() if path)
                continue
            first_row = 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                for offset in range(0, rows, size):
                    count = min(size, rows - offset)
                    place = {"file": file, "row_group": group, "offset": offset, "count": count}
                    chunks.append(place | {"first_row": first_row + offset})
                first_row += rows
    if paths and chunks:
        raise BulkError(f"column {column!r}: some files have encoded images, and others have paths")
    return ("paths", list(_chunks_of_paths(list(paths), size))) if paths else ("images", chunks)


def _column_type(file: str, schema: pa.Schema, column: str) -> str:
    if column not in schema.names:
        raise BulkError(
            f"{file} has no column {column!r}; name the column with the images, one of "
            f"{', '.join(schema.names)}, with --image-column"
        )
    found = schema.field(column).type
    if pa.types.is_binary(found) or pa.types.is_large_binary(found):
        return "images"
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return "paths"
    raise BulkError(
        f"{file}: column {column!r} is of type {found}; expected binary (encoded images) or string "
        "(paths or URIs)"
    )


def write_plan(output: Location, plan: Plan) -> None:
    """Store the plan; a run without it has not begun."""
    metadata = {_DESCRIPTION: json.dumps(plan.description).encode()}
    buffer = pa.BufferOutputStream()
    pq.write_table(plan.chunks.replace_schema_metadata(metadata), buffer, compression="zstd")
    output.files.create_dir(output.path, recursive=True)
    output.child(PLAN_FILE).write(buffer.getvalue().to_pybytes())


def read_plan(output: Location, description: Mapping[str, Any]) -> Plan | None:
    """Return the stored plan, or None if there is none.

    ``description``: what must be the same as at its begin. Raises :class:`BulkError` otherwise.
    """
    place = output.child(PLAN_FILE)
    if not place.exists:
        return None
    with place.files.open_input_file(place.path) as file:
        chunks = pq.read_table(file)
    try:
        found = json.loads(chunks.schema.metadata[_DESCRIPTION])
    except (KeyError, TypeError, ValueError):
        raise BulkError(f"{place.path} was not written by this command") from None
    for name, value in description.items():
        if found.get(name) != value:
            raise BulkError(
                f"--resume: the run began with {name} {found.get(name)!r}, now it is {value!r}: "
                "give the same, or a new --output"
            )
    return Plan(found, chunks.replace_schema_metadata(None))


def result_file(chunk: int) -> str:
    """Return the name of the file with the results of a chunk."""
    return f"part-{chunk:08}.parquet"


def missing_chunks(output: Location, plan: Plan) -> list[int]:
    """Return the numbers of the chunks without a file of results."""
    infos = output.files.get_file_info(FileSelector(output.path))
    done = {info.base_name for info in infos}
    return [chunk for chunk in range(plan.chunks.num_rows) if result_file(chunk) not in done]
