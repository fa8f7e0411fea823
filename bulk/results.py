"""The results: Parquet files with a row per image, and a COCO dataset made from them."""

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.plan import Plan, result_file
from bulk.storage import Location
from client.formats import coco_annotation, coco_categories
from client.results import Detection, parse_detection
from model_package import ModelManifest

_NUMBERS = pa.list_(pa.float64())
_BOX_3D = pa.struct(
    [
        ("dimensions_hwl", _NUMBERS),
        ("location_xyz", _NUMBERS),
        ("rotation_y", pa.float64()),
        ("alpha", pa.float64()),
        ("depth", pa.float64()),
        ("corners_px", pa.list_(_NUMBERS)),
    ]
)
_DETECTION = pa.struct(
    [
        ("class_id", pa.int32()),
        ("class_name", pa.string()),
        ("score", pa.float64()),
        ("bbox", _NUMBERS),
        ("keypoints", pa.list_(_NUMBERS)),
        ("box3d", _BOX_3D),
        ("extreme_points", pa.list_(_NUMBERS)),
        ("octagon", pa.list_(_NUMBERS)),
    ]
)
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("detections", pa.list_(_DETECTION)),
        ("model", pa.string()),
        ("version", pa.string()),
        ("error", pa.string()),
        ("detail", pa.string()),
    ]
)
"""Columns of an image. ``detections``: those of a response of the service, null with an ``error``,
which is the code of the problem document, as ``detail`` is its detail."""


def to_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return rows as a table; fields that are left out are null."""
    return pa.Table.from_pylist(rows, SCHEMA)


def write_results(output: Location, chunk: int, table: pa.Table) -> None:
    """Write the file of a chunk at once; an earlier one is replaced."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    output.child(result_file(chunk)).write(buffer.getvalue().to_pybytes())


def write_coco(output: Location, plan: Plan, manifest: ModelManifest, file: IO[str]) -> None:
    """Write the results as a COCO dataset with scores, one file of results in memory at a time.

    As with ``centernet-detect --format coco``, images with an error are left out.
    """
    keypoints = getattr(manifest.decoder, "keypoints", ())
    skeleton = getattr(manifest.decoder, "skeleton", ())
    categories = coco_categories(manifest.classes, keypoints, skeleton)
    file.write('{"images":[')
    _write_items(file, _images(output, plan))
    file.write(f'],"categories":{json.dumps(categories)},"annotations":[')
    _write_items(file, _annotations(output, plan))
    file.write("]}\n")


def _write_items(file: IO[str], items: Iterator[dict[str, Any]]) -> None:
    for index, item in enumerate(items):
        file.write(",\n" * bool(index) + json.dumps(item))


def _images(output: Location, plan: Plan) -> Iterator[dict[str, Any]]:
    for number, row in _detected(output, plan, ["path", "width", "height", "error"]):
        sides = {side: row[side] for side in ("width", "height")}
        yield {"id": number, "file_name": row["path"], **sides}


def _annotations(output: Location, plan: Plan) -> Iterator[dict[str, Any]]:
    identifier = 0
    for number, row in _detected(output, plan, ["detections", "error"]):
        for detection in map(_parse, row["detections"]):
            identifier += 1
            yield coco_annotation(detection, identifier, number)


def _detected(
    output: Location, plan: Plan, columns: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows without error, and their numbers, from 1."""
    number = 0
    for chunk in range(plan.chunks.num_rows):
        place = output.child(result_file(chunk))
        with place.files.open_input_file(place.path) as file:
            rows = pq.read_table(file, columns=columns).to_pylist()
        for row in rows:
            if row["error"] is None:
                number += 1
                yield number, row


def _parse(raw: dict[str, Any]) -> Detection:
    return parse_detection({name: value for name, value in raw.items() if value is not None})
