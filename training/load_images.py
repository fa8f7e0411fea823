"""Images and labels of a configuration, in any label format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.config import TrainConfig
from training.data.coco import read_coco_split
from training.data.folder import open_folder
from training.data.image_files import Images
from training.data.kitti import read_kitti_split
from training.data.voc import read_voc_split


@dataclass(frozen=True)
class TrainingData:
    """The images of a configuration; ``validation`` is empty where there are none."""

    train: Images
    validation: Images


def read_data(config: TrainConfig) -> TrainingData:
    """List and check the images of a configuration.

    Raises :class:`~labels.errors.DatasetError`.
    """
    data = config.data
    if data.folder is not None:
        folder = open_folder(data.folder, config.classes)
        return TrainingData(folder.train, folder.validation)
    validation = () if data.validation is None else (data.validation,)
    return TrainingData(_read_files(config, data.train), _read_files(config, validation))


def _read_files(config: TrainConfig, files: Sequence[Path]) -> Images:
    return sum((_read(config, file) for file in files), start=Images([]))


def _read(config: TrainConfig, file: Path) -> Images:
    data = config.data
    assert data.images is not None, "TrainConfig requires images with files"
    if data.labels is None:
        return read_coco_split(
            file,
            data.images,
            config.classes,
            config.keypoints,
            config.keypoint_classes,
            extreme_points=config.has_extreme_points,
        ).images
    reader = {"kitti": read_kitti_split, "voc": read_voc_split}[data.format]
    return reader(file, data.images, data.labels, config.classes)
