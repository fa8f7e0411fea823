"""Labelled folders: which format the labels have, and where images, labels and splits are."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labels.coco import CocoDataset, read_coco
from labels.errors import DatasetError
from labels.image_files import IMAGE_SUFFIXES, find_image, image_path
from labels.kitti import DONT_CARE, read_kitti, read_projection
from labels.voc import read_voc
from labels.yolo import read_yolo
from model_export.class_names import KITTI
from training.data.coco import annotated_categories, read_coco_split
from training.data.image_files import Images, list_images
from training.data.kitti import read_kitti_images
from training.data.voc import read_voc_images
from training.data.yolo import YoloDataset, label_file, read_data_yaml, read_yolo_images

VALIDATION_SHARE = 0.1
"""Share of the images that is split off for validation where the folder has no such split."""
MIN_IMAGES_TO_SPLIT = 10
"""A smaller data set is trained on completely."""

ACCEPTED = (
    "Accepted: COCO (a .json file with images, annotations and categories), YOLO (data.yaml, or "
    "classes.txt, with labels/*.txt), Pascal VOC (*.xml) and KITTI (label_2/*.txt with image_2)"
)

_DEPTH = 4
"""Levels of folders that are searched."""
_CHECKED_NAMES = 20
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class LabelledFolder:
    """The images of a folder, listed and checked.

    Attributes:
        format: COCO, YOLO, Pascal VOC or KITTI.
        classes: names of the classes that have labels, in the order of their ids.
        keypoints: names of the keypoints; empty where objects have none.
        keypoint_classes: the classes whose objects have keypoints; empty: all.
        has_boxes_3d: whether the objects have 3D boxes.
        can_flip: whether images may be flipped horizontally.
        train, validation: the images.
        is_split_off: whether ``validation`` was taken from the images of ``train``.
        projection: camera matrix (3, 4), row by row, of KITTI's first image; None if unknown.
    """

    format: str
    classes: tuple[str, ...]
    train: Images
    validation: Images
    keypoints: tuple[str, ...] = ()
    has_boxes_3d: bool = False
    can_flip: bool = True
    is_split_off: bool = False
    projection: tuple[float, ...] | None = None
    keypoint_classes: tuple[str, ...] = ()


def open_folder(folder: Path, classes: Sequence[str] | None = None) -> LabelledFolder:
    """Find the labels in ``folder`` and read them.

    Without a split for validation, the tenth of the images whose names have the smallest hashes
    becomes one: the same in every run, and images that are added move few of the others.
    ``classes`` are by default those of the labels. Raises :class:`DatasetError` where no labels or
    labels in two formats are found, and for labels that cannot be used.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder. {ACCEPTED}.")
    openers = [opener for find in _FINDERS if (opener := find(folder)) is not None]
    if not openers:
        raise DatasetError(f"{folder}: no labels found. {ACCEPTED}, up to {_DEPTH} folders deep.")
    if len(openers) > 1:
        formats = " and ".join(opener.format for opener in openers)
        raise DatasetError(
            f"{folder}: labels in the formats {formats} found. Leave those of one format in the "
            "folder, or name the files in a configuration."
        )
    return _split_off(openers[0].open(classes))


@dataclass(frozen=True)
class _Opener:
    format: str
    open: Callable[[Sequence[str] | None], LabelledFolder]


def _split_off(folder: LabelledFolder) -> LabelledFolder:
    files = folder.train.files
    if not files:
        raise DatasetError(f"the {folder.format} labels list no images for training")
    if folder.validation or len(files) < MIN_IMAGES_TO_SPLIT:
        return folder
    hashes = [hashlib.sha256(path.name.encode()).digest() for path, _ in files]
    count = max(1, round(len(files) * VALIDATION_SHARE))
    chosen = set(sorted(range(len(files)), key=hashes.__getitem__)[:count])
    return replace(
        folder,
        train=Images([file for i, file in enumerate(files) if i not in chosen]),
        validation=Images([file for i, file in enumerate(files) if i in chosen]),
        is_split_off=True,
    )


def _find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of this pattern by name, at most :data:`_DEPTH` folders deep."""
    found: list[Path] = []
    for depth in range(_DEPTH + 1):
        found += folder.glob("*/" * depth + pattern)
    return sorted(path for path in found if path.is_file())


def _split_of(folder: Path, path: Path) -> str | None:
    """Return the split that the name of a file or of a folder above it states, if any."""
    for part in reversed(path.relative_to(folder).with_suffix("").parts):
        words = "".join(c if c.isalpha() else " " for c in part.lower()).split()
        for split, names in _SPLITS.items():
            if set(words) & set(names):
                return split
    return None


# COCO


def _find_coco(folder: Path) -> _Opener | None:
    datasets = []
    for path in _find_files(folder, "*.json"):
        try:
            datasets.append(read_coco(path))
        except DatasetError:
            continue  # another kind of JSON, such as COCO's captions
    if not datasets:
        return None
    return _Opener("COCO", lambda classes: _open_coco(folder, datasets, classes))


def _open_coco(
    folder: Path, datasets: Sequence[CocoDataset], classes: Sequence[str] | None
) -> LabelledFolder:
    train, validation = _by_split(folder, datasets)
    names = tuple(classes or annotated_categories(train))
    keypoints, keypoint_classes = _keypoints(train, names)

    def read(dataset: CocoDataset | None) -> Images:
        if dataset is None:
            return Images([])
        directory = _image_directory(folder, dataset)
        return read_coco_split(dataset.path, directory, names, keypoints, keypoint_classes).images

    return LabelledFolder(
        *("COCO", names, read(train), read(validation), keypoints),
        keypoint_classes=keypoint_classes,
    )


def _by_split(
    folder: Path, datasets: Sequence[CocoDataset]
) -> tuple[CocoDataset, CocoDataset | None]:
    """Return the files of training and validation; a single file is that of training."""
    splits = {dataset.path: _split_of(folder, dataset.path) or "train" for dataset in datasets}
    if len(datasets) == 1:
        splits = {datasets[0].path: "train"}
    found: dict[str, CocoDataset] = {}
    for dataset in datasets:
        split = splits[dataset.path]
        if (other := found.get(split)) is not None:
            raise DatasetError(
                f"{folder}: both {other.path.relative_to(folder)} and "
                f"{dataset.path.relative_to(folder)} are COCO files for {split}. Leave one of them "
                "in the folder, or name the files in a configuration ([data] train, validation)."
            )
        found[split] = dataset
    if "train" not in found:
        listed = ", ".join(str(path.relative_to(folder)) for path in splits)
        raise DatasetError(
            f"{folder}: none of the COCO files {listed} is for training. Accepted: names or "
            "folders with the word train."
        )
    return found["train"], found.get("validation")


def _keypoints(
    dataset: CocoDataset, classes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keypoints, if any of them is labelled, and the classes that have them.

    No classes if all have keypoints; no keypoints if those of two classes differ.
    """
    named = {
        entry["name"]: tuple(map(str, entry["keypoints"]))
        for entry in dataset.categories
        if entry["name"] in classes and entry.get("keypoints")
    }
    is_labelled = any(any(entry.get("keypoints") or ()) for entry in dataset.annotations)
    if len(set(named.values())) != 1 or not is_labelled:
        return (), ()
    with_keypoints = tuple(name for name in classes if name in named)
    return named[with_keypoints[0]], with_keypoints if len(named) < len(classes) else ()


def _image_directory(folder: Path, dataset: CocoDataset) -> Path:
    """Return the folder in which most of the first images of a COCO file exist."""
    names = [image["file_name"] for image in dataset.images[:_CHECKED_NAMES]]
    candidates = dict.fromkeys(
        (dataset.path.parent, *(path.parent for path in _find_images(folder)), folder)
    )
    split = _split_of(folder, dataset.path)

    def suitability(directory: Path) -> tuple[int, bool]:
        existing = sum(image_path(directory, name).is_file() for name in names)
        return existing, directory != folder and _split_of(folder, directory) == split

    return max(candidates, key=suitability)


def _find_images(folder: Path) -> Iterable[Path]:
    for suffix in IMAGE_SUFFIXES:
        yield from _find_files(folder, f"*{suffix}")
        yield from _find_files(folder, f"*{suffix.upper()}")


# YOLO


def _find_yolo(folder: Path) -> _Opener | None:
    files = [*_find_files(folder, "*.yaml"), *_find_files(folder, "*.yml")]
    data_files = [path for path in files if b"names" in path.read_bytes()[: 1024**2]]
    if len(data_files) > 1:
        names = " and ".join(str(path.relative_to(folder)) for path in data_files)
        raise DatasetError(f"{folder}: {names} found. Leave the data.yaml to be used.")
    if data_files:
        path = data_files[0]
        return _Opener("YOLO", lambda classes: _open_yolo(read_data_yaml(path), classes))
    listed = folder / "classes.txt"
    if not listed.is_file():
        return None
    return _Opener("YOLO", lambda classes: _open_yolo(_without_yaml(folder), classes))


def _without_yaml(folder: Path) -> YoloDataset:
    """Describe an export of Label Studio: ``classes.txt``, ``images`` and ``labels``."""
    names = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    images = tuple(sorted(_find_images(folder)))
    return YoloDataset(
        tuple(name.strip() for name in names if name.strip()), (), 3, True, images, ()
    )


def _open_yolo(dataset: YoloDataset, classes: Sequence[str] | None) -> LabelledFolder:
    if not any(label_file(path).is_file() for path in dataset.train):
        place = label_file(dataset.train[0]) if dataset.train else "train"
        raise DatasetError(
            f"none of the {len(dataset.train)} images for training has a label file, such as "
            f"{place}. Labels are expected in a folder labels beside images."
        )
    shape = len(dataset.keypoints), dataset.keypoint_dimensions

    def read(paths: Sequence[Path], names: Sequence[str]) -> Images:
        return read_yolo_images(paths, dataset.names, names, *shape)

    used = {
        class_id
        for path in dataset.train
        for class_id in read_yolo(label_file(path), *shape).class_ids.tolist()
    }
    names = tuple(classes or (name for i, name in enumerate(dataset.names) if i in used))
    return LabelledFolder(
        "YOLO",
        names,
        read(dataset.train, names or dataset.names),
        read(dataset.validation, names),
        dataset.keypoints,
        can_flip=dataset.can_flip,
    )


# Pascal VOC and KITTI


def _find_voc(folder: Path) -> _Opener | None:
    files = _find_files(folder, "*.xml")
    if not files:
        return None
    return _Opener("Pascal VOC", lambda classes: _open_voc(folder, files, classes))


def _open_voc(folder: Path, files: Sequence[Path], classes: Sequence[str] | None) -> LabelledFolder:
    names = tuple(
        classes or sorted({entry.name for path in files for entry in read_voc(path).objects})
    )
    label_dirs = sorted({path.parent for path in files})
    found = {"train": Images([]), "validation": Images([]), "test": Images([])}
    for label_dir in label_dirs:
        image_dir = label_dir.parent / "JPEGImages"
        image_dir = image_dir if image_dir.is_dir() else _directory_beside(label_dir)
        lists = label_dir.parent / "ImageSets/Main"
        if (lists / "train.txt").is_file():
            for split, name in (("train", "train"), ("validation", "val")):
                if (lists / f"{name}.txt").is_file():
                    paths = list_images(lists / f"{name}.txt", image_dir)
                    found[split] += read_voc_images(paths, label_dir, names)
            continue
        stems = [path.stem for path in files if path.parent == label_dir]
        split = (_split_of(folder, label_dir) if label_dir != folder else None) or "train"
        found[split] += read_voc_images(_images_of(image_dir, stems), label_dir, names)
    return LabelledFolder("Pascal VOC", names, found["train"], found["validation"])


def _directory_beside(label_dir: Path) -> Path:
    images = label_dir.parent / "images"
    return images if images.is_dir() else label_dir


def _images_of(directory: Path, stems: Sequence[str]) -> list[Path]:
    found = [(stem, find_image(directory, stem)) for stem in stems]
    missing = [stem for stem, path in found if path is None]
    if missing:
        raise DatasetError(
            f"{directory}: {len(missing)} of {len(stems)} labelled images are missing, such as "
            f"{missing[0]} ({', '.join(IMAGE_SUFFIXES)})"
        )
    return [path for _, path in found if path is not None]


def _find_kitti(folder: Path) -> _Opener | None:
    files = _find_files(folder, "label_2/*.txt")
    if not files:
        return None
    directories = sorted({path.parent for path in files})
    if len(directories) > 1:
        raise DatasetError(f"{folder}: several folders label_2 found; leave one of them")
    return _Opener("KITTI", lambda classes: _open_kitti(files, classes))


def _open_kitti(files: Sequence[Path], classes: Sequence[str] | None) -> LabelledFolder:
    label_dir = files[0].parent
    image_dir = label_dir.parent / "image_2"
    labels = [read_kitti(path) for path in files]
    found = {name for one in labels for name in one.types} - {DONT_CARE}
    names = tuple(classes or [name for name in KITTI if name in found] or sorted(found))
    lists = next(
        (
            path
            for path in (label_dir.parent / "ImageSets", label_dir.parent.parent / "ImageSets")
            if (path / "train.txt").is_file()
        ),
        None,
    )

    def read(split: str) -> Images:
        if lists is None and split == "train":
            paths = _images_of(image_dir, [path.stem for path in files])
        elif lists is None or not (lists / f"{split}.txt").is_file():
            return Images([])
        else:
            paths = list_images(lists / f"{split}.txt", image_dir)
        return read_kitti_images(paths, label_dir, names)

    dimensions = np.concatenate(
        [one.dimensions_hwl[np.isin(np.array(one.types, str), names)] for one in labels]
    )
    calibration = label_dir.parent / "calib" / files[0].name
    return LabelledFolder(
        "KITTI",
        names,
        read("train"),
        read("val"),
        has_boxes_3d=len(dimensions) > 0 and bool((dimensions > 0).all()),
        projection=read_projection(calibration) if calibration.is_file() else None,
    )


_FINDERS = (_find_coco, _find_yolo, _find_voc, _find_kitti)
