"""Pascal VOC's labels: one XML file per image."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from training.data.image_files import (
    NO_PIXELS,
    DatasetError,
    Images,
    check_boxes,
    find_image,
    image_size,
    read_names,
)
from training.data.sample import AnnotatedImage


def read_voc_split(
    list_file: Path, image_dir: Path, label_dir: Path, classes: Sequence[str]
) -> Images:
    """Read the labels of all images whose names stand in ``list_file``, one per line.

    Objects marked as difficult count like others, as with the authors. Raises
    :class:`DatasetError` for what does not fit, a class that is not listed included.
    """
    return Images(
        [_read(find_image(image_dir, name), label_dir, classes) for name in read_names(list_file)]
    )


def _read(path: Path, label_dir: Path, classes: Sequence[str]) -> tuple[Path, AnnotatedImage]:
    label_file = label_dir / f"{path.stem}.xml"
    try:
        root = ElementTree.parse(label_file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DatasetError(f"{label_file}: not readable as XML: {error}") from error
    boxes, class_ids = [], []
    for number, entry in enumerate(root.iter("object"), start=1):
        where = f"{label_file}: object {number}"
        name = (entry.findtext("name") or "").strip()
        if name not in classes:
            raise DatasetError(f"{where}: class {name!r} is not among {list(classes)}")
        boxes.append(_box(entry, where))
        class_ids.append(classes.index(name))
    rows = np.asarray(boxes, np.float32).reshape(-1, 4)
    check_boxes(path, rows, image_size(path))
    return path, AnnotatedImage(NO_PIXELS, rows, np.asarray(class_ids, np.int64))


def _box(entry: ElementTree.Element, where: str) -> tuple[float, float, float, float]:
    """Left, top, width, height; VOC counts pixels from 1 and names the last one inside."""
    texts = [entry.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError as error:
        raise DatasetError(f"{where}: bndbox {texts} is not four numbers") from error
    if not np.isfinite([left, top, right, bottom]).all() or right < left or bottom < top:
        raise DatasetError(f"{where}: bndbox {texts} is no box")
    return left - 1, top - 1, right - left + 1, bottom - top + 1
