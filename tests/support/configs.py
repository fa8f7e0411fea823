"""Training configurations for the tiny datasets of :mod:`support.scenes`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.scenes import (
    BOXES_3D_SIZE,
    CLASSES,
    KEYPOINTS,
    write_boxes,
    write_boxes_3d,
    write_poses,
)
from training.config import ConfigError, TrainConfig, read_values, validate

NO_AUGMENTATION = {
    "scale": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue_degrees": 0.0,
    "blur_probability": 0.0,
    "flip": False,
    "fixed_probability": 1.0,
}
"""Settings that leave images unchanged."""


def write_config(
    directory: Path,
    architecture: str,
    task: str,
    *,
    images: int = 2,
    schedule: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Write the dataset of ``task`` to ``directory`` and return a configuration to overfit it."""
    fields: dict[str, Any] = {"classes": CLASSES, "input_width": 128, "input_height": 128}
    data: dict[str, Any] = {"images": directory}
    if task == "boxes_3d":
        write_boxes_3d(directory, images)
        fields |= {
            "classes": ("Car",),
            "input_width": BOXES_3D_SIZE[0],
            "input_height": BOXES_3D_SIZE[1],
        }
        data |= {"format": "kitti", "labels": directory, "train": (directory / "names.txt",)}
    elif task == "poses":
        fields |= {"classes": ("figure",), "keypoints": KEYPOINTS}
        data["train"] = (write_poses(directory, images),)
    elif task == "boxes" or task.startswith("extreme_points"):
        data["train"] = (write_boxes(directory, images),)
    else:
        fields |= {"input_width": 127, "input_height": 127}
        data["train"] = (write_boxes(directory, images, side=127),)
    return TrainConfig(
        architecture=architecture,
        task=task,
        normalization="coco",
        seed=1,
        precision="float32",
        loader_workers=0,
        data=data,
        augmentation=NO_AUGMENTATION | dict(augmentation or {}),
        schedule={
            "epochs": 1,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "average_decay": 0.9,
            "gradient_clip": 10.0,
        }
        | dict(schedule or {}),
        **fields,
    )


def read_config(path: Path) -> TrainConfig:
    """Read a configuration file without defaults that depend on the data."""
    return validate(TrainConfig, read_values(path), str(path))


def assert_refused(config: Path, old: str, new: str, message: str) -> None:
    """Replace ``old`` with ``new`` in the file and expect a ConfigError with ``message``."""
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_config(config)
