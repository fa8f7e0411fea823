"""Every system overfits a tiny data set, evaluated over HTTP from its exported package.

End to end: configuration, training, ``best.pth``, export, service.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.configs import write_config
from support.scenes import KEYPOINTS, PROJECTION, Cuboid, write_boxes_3d
from support.serving import RunningServer, run_server

from model_export.config import ExportConfig
from model_export.pipeline import export_package
from service.model_registry import load_models
from service.settings import Settings
from training.trainer import Trainer

pytestmark = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"), reason="trains for minutes: set HEAVY_TESTS=1"
)

IMAGES = 6
CORNER_IMAGES = 3  # a training step of an hourglass takes four times as long
KEYPOINT_SIGMA = 0.05
"""OKS constant of every keypoint; COCO's for shoulders and hips are 0.079 and 0.107."""

Serve = Callable[..., RunningServer]


@pytest.fixture
def train_and_serve(tmp_path: Path) -> Iterator[Serve]:
    """Overfit a network, export the best checkpoint and serve it."""
    with ExitStack() as stack:

        def run(
            architecture: str,
            task: str,
            epochs: int,
            images: int = IMAGES,
            learning_rate: float = 2e-3,
            **augmentation: Any,
        ) -> RunningServer:
            config = write_config(
                tmp_path,
                architecture,
                task,
                images=images,
                schedule={
                    "epochs": epochs,
                    "batch_size": images,
                    "learning_rate": learning_rate,
                    "warmup_steps": 10,
                    "average_decay": 0.98,
                    "evaluate_every": epochs,
                },
                augmentation=augmentation,
            )
            config = config.model_copy(
                # Ten passes per epoch, so that writing checkpoints does not dominate the time.
                update={"data": config.data.model_copy(update={"repeats": 10})}
            )
            Trainer(config, tmp_path / "run").run()
            package = export_package(
                ExportConfig(
                    name="learned",
                    version="1",
                    classes=config.classes,
                    keypoints=config.keypoints or None,
                    projection=PROJECTION,
                    architecture=architecture,
                    task=task,
                    width_px=config.input_width,
                    height_px=config.input_height,
                    normalization=config.normalization,
                    top_k=20,
                ),
                tmp_path / "run/best.pth",
                tmp_path / "package",
                lambda _: None,
            )
            settings = Settings(models=package.directory, max_batch_size=2)
            return stack.enter_context(
                run_server(partial(load_models, report_step=print), settings)
            )

        yield run


def detect(server: RunningServer, image: Path) -> list[dict[str, Any]]:
    response = server.client.post("/detect?score_threshold=0.01", content=image.read_bytes())
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["detections"]
    return found


def average_precision(server: RunningServer, directory: Path, kind: str) -> float:
    """Compute COCO AP of ``kind`` (bbox, keypoints) on the training images."""
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO(str(directory / "labels.json"))
        labels.dataset.setdefault("info", {})
        rows = []
        for image_id, image in labels.imgs.items():
            for found in detect(server, directory / image["file_name"]):
                x1, y1, x2, y2 = found["bbox"]
                row = {
                    "image_id": image_id,
                    "category_id": labels.getCatIds()[found["class_id"]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": found["score"],
                }
                if kind == "keypoints":
                    row["keypoints"] = [v for x, y, _ in found["keypoints"] for v in (x, y, 2)]
                rows.append(row)
        scoring = COCOeval(labels, labels.loadRes(rows), kind)
        if kind == "keypoints":
            scoring.params.kpt_oks_sigmas = np.full(len(KEYPOINTS), KEYPOINT_SIGMA)
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return float(scoring.stats[0])


def test_boxes(train_and_serve: Serve, tmp_path: Path) -> None:
    ap = average_precision(train_and_serve("res_18_slim", "boxes", 40), tmp_path, "bbox")
    print(f"\nboxes: AP {ap:.3f}")
    assert ap >= 0.95


@pytest.mark.parametrize("task", ["extreme_points", "extreme_points_agnostic"])
def test_extreme_points(train_and_serve: Serve, tmp_path: Path, task: str) -> None:
    server = train_and_serve("res_18_slim", task, 40)
    ap = average_precision(server, tmp_path, "bbox")
    distances = [
        min(
            float(np.abs(np.subtract(one["extreme_points"], label["extreme_points"])).max())
            for one in detect(server, tmp_path / f"{label['image_id']}.png")
        )
        for label in json.loads((tmp_path / "labels.json").read_text())["annotations"]
    ]
    print(f"\n{task}: AP {ap:.3f}, points {np.round(sorted(distances)[-3:], 2)} px")
    assert ap >= 0.95
    assert max(distances) <= 1


def test_poses(train_and_serve: Serve, tmp_path: Path) -> None:
    ap = average_precision(train_and_serve("res_18_slim", "poses", 40), tmp_path, "keypoints")
    print(f"\nposes: OKS-AP {ap:.3f}")
    assert ap >= 0.95


@pytest.mark.parametrize(
    ("architecture", "task", "epochs", "learning_rate"),
    [
        ("cornernet_slim", "corner_pairs", 35, 2e-3),
        ("cornernet_squeeze", "corner_pairs", 25, 5e-4),  # a larger network needs smaller steps
        ("triplet_slim", "corner_triplets", 35, 2e-3),
    ],
)
def test_corners(
    train_and_serve: Serve,
    tmp_path: Path,
    architecture: str,
    task: str,
    epochs: int,
    learning_rate: float,
) -> None:
    # The service also evaluates the flipped image, as the reference implementation does.
    server = train_and_serve(
        architecture, task, epochs, CORNER_IMAGES, learning_rate=learning_rate, flip=True
    )
    ap = average_precision(server, tmp_path, "bbox")
    print(f"\n{architecture}: AP {ap:.3f}")
    assert ap >= 0.95


def test_boxes_3d(train_and_serve: Serve, tmp_path: Path) -> None:
    server = train_and_serve("res_18_slim", "boxes_3d", 100)
    overlaps = []
    for index, scene in enumerate(write_boxes_3d(tmp_path, IMAGES)):
        found = [_cuboid(entry["box3d"]) for entry in detect(server, tmp_path / f"{index:06d}.png")]
        overlaps += [
            max((overlap_3d(ground_truth, other) for other in found), default=0.0)
            for ground_truth in scene
        ]
    print(f"\n3D boxes: 3D IoU {np.round(sorted(overlaps), 3)}")
    assert min(overlaps) >= 0.7


def _cuboid(box: dict[str, Any]) -> Cuboid:
    return Cuboid(
        tuple(box["dimensions_hwl"]), tuple(box["location_xyz"]), float(box["rotation_y"])
    )


def overlap_3d(one: Cuboid, other: Cuboid) -> float:
    """Return the 3D IoU of two cuboids that rotate about the vertical axis."""
    grounds = [
        (
            (cuboid.location_m[0], cuboid.location_m[2]),
            (cuboid.dimensions_m[2], cuboid.dimensions_m[1]),
            # rotation_y is about the axis that points down; OpenCV's plane has x right and z up.
            float(-np.degrees(cuboid.rotation_y)),
        )
        for cuboid in (one, other)
    ]
    _, polygon = cv2.rotatedRectangleIntersection(*grounds)
    if polygon is None:
        return 0.0
    area = cv2.contourArea(cv2.convexHull(polygon))
    bottoms = [cuboid.location_m[1] for cuboid in (one, other)]
    tops = [cuboid.location_m[1] - cuboid.dimensions_m[0] for cuboid in (one, other)]
    shared = area * max(0.0, min(bottoms) - max(tops))
    volumes = [float(np.prod(cuboid.dimensions_m)) for cuboid in (one, other)]
    return shared / (sum(volumes) - shared)


def test_overlap_3d_of_known_cuboids() -> None:
    cuboid = Cuboid((1.5, 2.0, 4.0), (3.0, 1.6, 15.0), 0.4)
    assert overlap_3d(cuboid, cuboid) == pytest.approx(1.0, abs=1e-4)
    lower = replace(cuboid, location_m=(3.0, 2.1, 15.0))
    assert overlap_3d(cuboid, lower) == pytest.approx(1.0 / 2.0, abs=1e-4)
    # Shifted by half its length along its own axis.
    x, z = 3.0 + 2 * np.cos(0.4), 15.0 - 2 * np.sin(0.4)
    ahead = replace(cuboid, location_m=(x, 1.6, z))
    assert overlap_3d(cuboid, ahead) == pytest.approx(1 / 3, abs=1e-3)
