"""Files that the command writes."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

from client.command.backends import ModelDescription
from client.command.errors import CommandError
from client.command.sources import Item, Key
from client.errors import ClientError, ResponseError
from client.formats import coco_annotation, coco_categories, kitti_line
from client.results import Detection, DetectionResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Drawing = Union[bytes, "NDArray[np.uint8]"]
"""An encoded image, or a frame as RGB pixels (height, width, 3)."""


@dataclass(frozen=True)
class Outcome:
    """The result of one image or its error, and the drawing where one is wanted."""

    item: Item
    result: DetectionResult | None
    error: ClientError | None
    drawing: Drawing | None = None


class Output:
    """Receives the outcomes in the order of the images; complete when it is closed."""

    def write(self, outcome: Outcome) -> None:
        """Add one outcome."""
        raise NotImplementedError

    def close(self) -> None:
        """Complete the output."""


class JsonLinesOutput(Output):
    """One JSON object per image: the response of the service, or ``error``."""

    def __init__(self, file: IO[str], model: ModelDescription) -> None:
        del model
        self._file = file

    def write(self, outcome: Outcome) -> None:
        """Write one line, so that an interrupted run loses nothing that is complete."""
        self._file.write(json.dumps(_row(outcome), separators=(",", ":")) + "\n")
        self._file.flush()


def _row(outcome: Outcome) -> dict[str, Any]:
    row = _place(outcome.item)
    if outcome.result is not None:
        return row | dict(outcome.result.raw)
    error = outcome.error
    problem: Mapping[str, Any] = error.problem if isinstance(error, ResponseError) else {}
    return row | {"error": dict(problem) or {"detail": str(error)}}


def _place(item: Item) -> dict[str, Any]:
    return {"file": item.file} if item.frame is None else {"file": item.file, "frame": item.frame}


class TextOutput(Output):
    """A table for people: score, box, class, and the 3D box."""

    def __init__(self, file: IO[str], model: ModelDescription) -> None:
        del model
        self._file = file

    def write(self, outcome: Outcome) -> None:
        """Write the name of the image and a line per detection."""
        item = outcome.item
        print(item.file if item.frame is None else f"{item.file} {item.frame}", file=self._file)
        for detection in outcome.result.detections if outcome.result else ():
            box = " ".join(f"{coordinate:9.2f}" for coordinate in detection.bbox)
            text = f"  {detection.score:.3f}  {box}  {detection.class_name}"
            print(text + _format_box_3d(detection), file=self._file)
        self._file.flush()


def _format_box_3d(detection: Detection) -> str:
    box = detection.box3d
    if box is None:
        return ""
    size = " x ".join(f"{metres:.2f}" for metres in box.dimensions_hwl)
    location = " ".join(f"{metres:.2f}" for metres in box.location_xyz)
    return f"  {size} m at {location}, turned {box.rotation_y:.2f} rad"


class CsvOutput(Output):
    """One row per detection; 3D columns are empty for 2D models."""

    COLUMNS = (
        *("file", "frame", "class_id", "class_name", "score", "x1", "y1", "x2", "y2"),
        *("height_m", "width_m", "length_m", "x_m", "y_m", "z_m", "rotation_y", "alpha"),
    )

    def __init__(self, file: IO[str], model: ModelDescription) -> None:
        del model
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(self.COLUMNS)

    def write(self, outcome: Outcome) -> None:
        """Write the rows of one image."""
        item = outcome.item
        for one in outcome.result.detections if outcome.result else ():
            box = one.box3d
            box_3d: Sequence[float | str] = (
                [""] * 8
                if box is None
                else [*box.dimensions_hwl, *box.location_xyz, box.rotation_y, box.alpha]
            )
            place = [item.file, "" if item.frame is None else item.frame]
            row = [*place, one.class_id, one.class_name, one.score, *one.bbox, *box_3d]
            self._rows.writerow(row)


class CocoOutput(Output):
    """A COCO dataset with scores; the category ids are class ids."""

    def __init__(self, file: IO[str], model: ModelDescription) -> None:
        self._file = file
        self._categories = coco_categories(model.classes, model.keypoints, model.skeleton)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def write(self, outcome: Outcome) -> None:
        """Add one image and its annotations."""
        if outcome.result is None:
            return
        image = {
            "id": len(self._images) + 1,
            "file_name": str(outcome.item.name),
            "width": outcome.result.width,
            "height": outcome.result.height,
        }
        self._images.append(image)
        for detection in outcome.result.detections:
            identifier = len(self._annotations) + 1
            self._annotations.append(coco_annotation(detection, identifier, image["id"]))

    def close(self) -> None:
        """Write the file."""
        dataset = {
            "images": self._images,
            "categories": self._categories,
            "annotations": self._annotations,
        }
        json.dump(dataset, self._file)


class KittiOutput(Output):
    """A folder with one KITTI result file per image; unknown fields have KITTI's values for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def path_of(item: Item) -> Path:
        """Return the path of the file for an image, relative to the folder."""
        return item.name.with_suffix(".txt")

    def write(self, outcome: Outcome) -> None:
        """Write the file of one image."""
        if outcome.result is None:
            return
        path = self._folder / self.path_of(outcome.item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(map(kitti_line, outcome.result.detections)))


class DrawnImages(Output):
    """Annotated images: one file, or one per image in a folder."""

    def __init__(self, path_of: Callable[[Item], Path]) -> None:
        self._path_of = path_of

    def write(self, outcome: Outcome) -> None:
        """Write the annotated image."""
        if outcome.drawing is None:
            return
        assert isinstance(outcome.drawing, bytes)
        path = self._path_of(outcome.item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(outcome.drawing)


class DrawnVideo(Output):
    """An annotated video; frames that could not be processed are written as they are."""

    CODECS: Mapping[str, str] = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
    DEFAULT_FPS = 25.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def write(self, outcome: Outcome) -> None:
        """Add one frame."""
        import cv2

        drawing: Any = outcome.drawing
        if drawing is None:
            return
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*self.CODECS[self._path.suffix.lower()])
            size = drawing.shape[1], drawing.shape[0]
            fps = outcome.item.fps or self.DEFAULT_FPS
            self._writer = cv2.VideoWriter(str(self._path), codec, fps, size)
            if not self._writer.isOpened():
                raise CommandError(f"--draw {self._path}: OpenCV cannot write this video")
        self._writer.write(cv2.cvtColor(drawing, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.release()


FORMATS: Mapping[str, Callable[[IO[str], ModelDescription], Output]] = {
    "jsonl": JsonLinesOutput,
    "coco": CocoOutput,
    "csv": CsvOutput,
    "text": TextOutput,
}
"""Formats that are written to one file."""


def read_progress(path: Path, model: ModelDescription) -> set[Key]:
    """Return the images in a JSON Lines file, and cut off a last line that is not complete.

    Raises :class:`CommandError` if the file has other content, or detections of another model.
    """
    if not path.exists():
        return set()
    keys: set[Key] = set()
    complete = 0
    with path.open("r+b") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            keys.add(_read_key(line, f"--resume: line {number} of {path}", model))
            complete += len(line)
        file.truncate(complete)
    return keys


def _read_key(line: bytes, place: str, model: ModelDescription) -> Key:
    try:
        row = json.loads(line)
        key = row["file"], row.get("frame")
        found = row.get("model", {"name": model.name, "version": model.version})
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CommandError(f"{place} was not written by this command") from None
    if (found["name"], found["version"]) != (model.name, model.version):
        raise CommandError(
            f"{place} has detections of {found['name']} {found['version']}, but the model is now "
            f"{model.name} {model.version}: give a new --output"
        )
    return key
