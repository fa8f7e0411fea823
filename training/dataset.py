"""PyTorch datasets of training samples: network inputs with their targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from model_export.graph.normalization import NORMALIZATIONS, Normalization
from training.config import RENDERERS, TrainConfig
from training.data.augmentation import AugmentationRanges, Canvas, fixed_view, random_view
from training.data.coco import network_input
from training.data.sample import AnnotatedImage
from training.synthetic.blood_smears import render_smear
from training.targets.boxes_3d import boxes_3d_targets, ignore_regions
from training.targets.centers import CenterTargets, center_targets
from training.targets.corners import corner_targets, triplet_targets
from training.targets.extreme_points import extreme_point_targets
from training.targets.poses import pose_targets

MAX_OBJECTS = 128

MAX_BOXES_3D = 50
"""Number of slots of the reference implementation; the loss of 3D boxes depends on it."""

Encoder = Callable[[AnnotatedImage, int, int], Mapping[str, NDArray[Any]]]
"""Encodes a view, given the number of classes and the output stride, as targets by name."""


@dataclass(frozen=True)
class SampleSettings:
    """Settings that turn images into samples; ``canvas_for`` takes the image's width, height."""

    canvas_for: Callable[[int, int], Canvas]
    ranges: AugmentationRanges
    normalization: Normalization
    num_classes: int
    task: str
    output_stride: int
    render: Callable[[Generator], AnnotatedImage] = render_smear

    @classmethod
    def for_training(cls, config: TrainConfig) -> Self:
        """Return the settings of augmented views."""
        return cls._of(config, config.train_canvas)

    @classmethod
    def for_evaluation(cls, config: TrainConfig) -> Self:
        """Return the settings of fixed views."""
        return cls._of(config, config.test_canvas)

    @classmethod
    def _of(cls, config: TrainConfig, canvas_for: Callable[[int, int], Canvas]) -> Self:
        return cls(
            canvas_for=canvas_for,
            ranges=config.augmentation.ranges(),
            normalization=NORMALIZATIONS[config.normalization],
            num_classes=len(config.classes),
            task=config.task,
            output_stride=config.network.output_stride,
            render=RENDERERS[config.data.renderer].render,
        )


class TrainingDataset(Dataset[dict[str, Tensor]]):
    """Augmented samples of one epoch: ``repeats`` of every image, then ``rendered`` new ones.

    Every sample depends on (seed, epoch, index) only, so a resumed run trains on the same samples
    as an uninterrupted one, with any number of loader workers.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        *,
        repeats: int,
        rendered: int,
        settings: SampleSettings,
        seed: int,
        epoch: int,
    ) -> None:
        self._images = images
        self._real = repeats * len(images)
        self._length = self._real + rendered
        self._settings = settings
        self._key = (seed, epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``image``, float32 (3, H, W), and the targets of the task, by name."""
        settings = self._settings
        rng = np.random.default_rng((*self._key, index))
        image = (
            self._images[index % len(self._images)] if index < self._real else settings.render(rng)
        )
        height, width = image.pixels.shape[:2]
        return _sample(
            random_view(rng, image, settings.canvas_for(width, height), settings.ranges), settings
        )


class ValidationDataset(Dataset[dict[str, Tensor]]):
    """Every image once, without augmentation."""

    def __init__(self, images: Sequence[AnnotatedImage], settings: SampleSettings) -> None:
        self._images = images
        self._settings = settings

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``image``, float32 (3, H, W), and the targets of the task, by name."""
        image = self._images[index]
        height, width = image.pixels.shape[:2]
        return _sample(fixed_view(image, self._settings.canvas_for(width, height)), self._settings)


def _sample(view: AnnotatedImage, settings: SampleSettings) -> dict[str, Tensor]:
    targets = ENCODERS[settings.task](view, settings.num_classes, settings.output_stride)
    sample = {name: torch.from_numpy(value) for name, value in targets.items()}
    return {"image": network_input(view.pixels, settings.normalization), **sample}


def _centers(
    view: AnnotatedImage, classes: int, stride: int, max_objects: int, *, round_up: bool
) -> CenterTargets:
    options = _map_options(view, classes, stride, max_objects)
    return center_targets(view.boxes_xywh, view.class_ids, **options, round_up=round_up)


def _map_options(
    view: AnnotatedImage, classes: int, stride: int, max_objects: int
) -> dict[str, Any]:
    height, width = view.pixels.shape[:2]
    return {
        "num_classes": classes,
        "map_height": height // stride,
        "map_width": width // stride,
        "stride": stride,
        "max_objects": max_objects,
    }


def _encode_boxes(view: AnnotatedImage, classes: int, stride: int) -> dict[str, NDArray[Any]]:
    return asdict(_centers(view, classes, stride, MAX_OBJECTS, round_up=True))


def _encode_poses(view: AnnotatedImage, classes: int, stride: int) -> dict[str, NDArray[Any]]:
    assert view.keypoints is not None, "the dataset has no keypoints"
    centers = _centers(view, classes, stride, MAX_OBJECTS, round_up=True)
    return asdict(pose_targets(centers, view.keypoints, stride=stride))


def _encode_boxes_3d(view: AnnotatedImage, classes: int, stride: int) -> dict[str, NDArray[Any]]:
    assert view.boxes_3d is not None, "the dataset has no 3D boxes"
    centers = _centers(view, classes, stride, MAX_BOXES_3D, round_up=False)
    ignore_regions(centers.heatmap, view.ignored_xywh, view.ignored_class_ids, stride=stride)
    return asdict(boxes_3d_targets(centers, view.boxes_3d))


def _encode_extreme_points(
    view: AnnotatedImage, classes: int, stride: int, *, agnostic: bool
) -> Mapping[str, NDArray[Any]]:
    assert view.keypoints is not None, "the dataset has no extreme points"
    options = _map_options(view, classes, stride, MAX_OBJECTS)
    points = view.keypoints[..., :2]
    return extreme_point_targets(points, view.class_ids, **options, agnostic=agnostic)


def _encode_corners(view: AnnotatedImage, classes: int, stride: int) -> Mapping[str, NDArray[Any]]:
    return corner_targets(view.boxes_xywh, view.class_ids, **_corner_options(view, classes, stride))


def _encode_triplets(view: AnnotatedImage, classes: int, stride: int) -> Mapping[str, NDArray[Any]]:
    return triplet_targets(
        view.boxes_xywh, view.class_ids, **_corner_options(view, classes, stride)
    )


def _corner_options(view: AnnotatedImage, classes: int, stride: int) -> dict[str, Any]:
    height, width = view.pixels.shape[:2]
    return {
        "num_classes": classes,
        "input_size": (width, height),
        "stride": stride,
        "max_objects": MAX_OBJECTS,
    }


ENCODERS: Mapping[str, Encoder] = {
    "boxes": _encode_boxes,
    "poses": _encode_poses,
    "boxes_3d": _encode_boxes_3d,
    "extreme_points": partial(_encode_extreme_points, agnostic=False),
    "extreme_points_agnostic": partial(_encode_extreme_points, agnostic=True),
    "corner_pairs": _encode_corners,
    "corner_triplets": _encode_triplets,
}
"""Encoders by task, a key of ``model_export.tasks.TASKS``."""
