"""Training configurations for the tiny data sets, one per system."""

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
from training.config import ConfigError, TrainConfig, read_config

STILL = {
    "scale": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue_degrees": 0.0,
    "blur_probability": 0.0,
    "flip": False,
    "fixed_probability": 1.0,
}
"""No augmentation at all."""


def write_config(
    directory: Path,
    architecture: str,
    task: str,
    *,
    images: int = 2,
    schedule: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Write the data set of ``task`` into ``directory`` and make a configuration to learn it by heart."""
    facts: dict[str, Any] = {"classes": CLASSES, "input_width": 128, "input_height": 128}
    data: dict[str, Any] = {"images": directory}
    if task == "boxes_3d":
        write_boxes_3d(directory, images)
        facts |= {
            "classes": ("Car",),
            "input_width": BOXES_3D_SIZE[0],
            "input_height": BOXES_3D_SIZE[1],
        }
        data |= {"format": "kitti", "labels": directory, "train": (directory / "names.txt",)}
    elif task == "poses":
        facts |= {"classes": ("figure",), "keypoints": KEYPOINTS}
        data["train"] = (write_poses(directory, images),)
    elif task == "boxes":
        data["train"] = (write_boxes(directory, images),)
    else:
        facts |= {"input_width": 127, "input_height": 127}
        data["train"] = (write_boxes(directory, images, side=127),)
    return TrainConfig(
        architecture=architecture,
        task=task,
        normalization="coco",
        seed=1,
        loader_workers=0,
        data=data,
        augmentation=STILL | dict(augmentation or {}),
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
        **facts,
    )


def assert_refused(config: Path, old: str, new: str, message: str) -> None:
    """With ``new`` in the place of ``old`` the file is refused, for the reason ``message``."""
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_config(config)
