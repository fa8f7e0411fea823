"""The labelled pictures that a recipe names, whatever their format."""

from collections.abc import Sequence
from pathlib import Path

from training.data.coco import read_coco_split
from training.data.kitti import read_kitti_split
from training.data.image_files import Pictures
from training.config import Recipe
from training.data.voc import read_voc_split


def read_pictures(recipe: Recipe, files: Sequence[Path]) -> Pictures:
    """List and check the pictures of ``files``, which are named under the recipe's ``data``.

    Raises :class:`~training.data.image_files.DatasetError`.
    """
    return sum((_read(recipe, file) for file in files), start=Pictures([]))


def _read(recipe: Recipe, file: Path) -> Pictures:
    data = recipe.data
    assert data.images is not None, "recipes that name files name the folder of their pictures"
    if data.labels is None:
        return read_coco_split(file, data.images, recipe.classes, recipe.joints).images
    read = {"kitti": read_kitti_split, "voc": read_voc_split}[data.format]
    return read(file, data.images, data.labels, recipe.classes)
