"""Images and labels of a configuration, in any label format."""

from collections.abc import Sequence
from pathlib import Path

from training.config import TrainConfig
from training.data.coco import read_coco_split
from training.data.image_files import Images
from training.data.kitti import read_kitti_split
from training.data.voc import read_voc_split


def read_images(config: TrainConfig, files: Sequence[Path]) -> Images:
    """List and check the images of ``files``, in the format of the configuration.

    Raises :class:`~labels.errors.DatasetError`.
    """
    return sum((_read(config, file) for file in files), start=Images([]))


def _read(config: TrainConfig, file: Path) -> Images:
    data = config.data
    assert data.images is not None, "TrainConfig requires images with files"
    if data.labels is None:
        return read_coco_split(file, data.images, config.classes, config.keypoints).images
    reader = {"kitti": read_kitti_split, "voc": read_voc_split}[data.format]
    return reader(file, data.images, data.labels, config.classes)
