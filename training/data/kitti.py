"""KITTI's 3D object data sets for training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labels.kitti import DONT_CARE, read_kitti
from training.data.image_files import NO_PIXELS, Images, check_boxes, image_size, list_images
from training.data.sample import ALL_CLASSES, AnnotatedImage, Boxes3D, FloatArray

_SIMILAR = {"Van": "Car", "Truck": "Car", "Person_sitting": "Pedestrian"}
"""Classes that are neither objects nor background of another class (reference implementation)."""


def read_kitti_split(
    list_file: Path, image_dir: Path, label_dir: Path, classes: Sequence[str]
) -> Images:
    """Read the labels of all images that ``list_file`` names; see :func:`read_kitti_images`."""
    return read_kitti_images(list_images(list_file, image_dir), label_dir, classes)


def read_kitti_images(paths: Sequence[Path], label_dir: Path, classes: Sequence[str]) -> Images:
    """Read the labels of images; a label file has the stem of its image.

    ``DontCare`` regions become ignored regions of all classes. Vans and trucks become ignored
    regions of cars, and sitting persons those of pedestrians, as in the reference implementation.
    Objects of other classes that are not in ``classes``, and boxes without an area, are dropped.
    Raises :class:`~labels.errors.DatasetError` with the file and the line.
    """
    return Images([_read(path, label_dir, classes) for path in paths])


def _read(path: Path, label_dir: Path, classes: Sequence[str]) -> tuple[Path, AnnotatedImage]:
    labels = read_kitti(label_dir / f"{path.stem}.txt")
    objects, class_ids, ignored, ignored_class_ids = [], [], [], []
    has_area = (labels.boxes_xyxy[:, 2:] > labels.boxes_xyxy[:, :2]).all(axis=1)
    for row in np.flatnonzero(has_area).tolist():
        name = labels.types[row]
        if name in classes:
            objects.append(row)
            class_ids.append(classes.index(name))
        elif name == DONT_CARE:
            ignored.append(row)
            ignored_class_ids.append(ALL_CLASSES)
        elif _SIMILAR.get(name) in classes:
            ignored.append(row)
            ignored_class_ids.append(classes.index(_SIMILAR[name]))
    boxes_xywh = _as_xywh(labels.boxes_xyxy)
    check_boxes(path, boxes_xywh[objects], image_size(path))
    return path, AnnotatedImage(
        NO_PIXELS,
        boxes_xywh[objects],
        np.asarray(class_ids, np.int64),
        boxes_3d=Boxes3D(
            depths_m=labels.locations[objects, 2].astype(np.float32),
            dimensions_m=labels.dimensions_hwl[objects].astype(np.float32),
            alphas_rad=labels.alphas[objects].astype(np.float32),
        ),
        ignored_xywh=boxes_xywh[ignored],
        ignored_class_ids=np.asarray(ignored_class_ids, np.int64),
    )


def _as_xywh(boxes_xyxy: NDArray[np.float64]) -> FloatArray:
    corners = boxes_xyxy.astype(np.float32)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
