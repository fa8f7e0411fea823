"""Pascal VOC data sets for training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labels.errors import DatasetError
from labels.voc import read_voc
from training.data.image_files import NO_PIXELS, Images, check_boxes, image_size, list_images
from training.data.sample import AnnotatedImage


def read_voc_split(
    list_file: Path, image_dir: Path, label_dir: Path, classes: Sequence[str]
) -> Images:
    """Read the labels of all images that ``list_file`` names; see :func:`read_voc_images`."""
    return read_voc_images(list_images(list_file, image_dir), label_dir, classes)


def read_voc_images(paths: Sequence[Path], label_dir: Path, classes: Sequence[str]) -> Images:
    """Read the labels of images; a label file has the stem of its image.

    Objects marked as difficult count like others, as in the reference implementation. Raises
    :class:`DatasetError`, also for an object of a class that is not in ``classes``.
    """
    return Images([_read(path, label_dir, classes) for path in paths])


def _read(path: Path, label_dir: Path, classes: Sequence[str]) -> tuple[Path, AnnotatedImage]:
    label_file = label_dir / f"{path.stem}.xml"
    objects = read_voc(label_file).objects
    for number, entry in enumerate(objects, start=1):
        if entry.name not in classes:
            raise DatasetError(
                f"{label_file}: object {number}: class {entry.name!r} is not among {list(classes)}"
            )
    boxes = np.array([entry.box_xyxy for entry in objects], np.float64).reshape(-1, 4)
    boxes_xywh = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).astype(np.float32)
    check_boxes(path, boxes_xywh, image_size(path))
    class_ids = np.asarray([classes.index(entry.name) for entry in objects], np.int64)
    return path, AnnotatedImage(NO_PIXELS, boxes_xywh, class_ids)
