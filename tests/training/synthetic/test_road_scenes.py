import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.configs import assert_refused, read_config

from evaluation.label_readers import read_ground_truth
from evaluation.metrics.boxes_3d import bev_and_3d_iou, to_boxes_3d
from service.decoders.center_boxes_3d import box_corners
from service.decoders.center_boxes_3d import project as project_as_served
from training.config import TrainConfig
from training.data.kitti import read_kitti_split
from training.objectives import OBJECTIVES
from training.synthetic.road_background import CAMERA_HEIGHT_M, HEIGHT, PROJECTION, WIDTH
from training.synthetic.road_scenes import CLASS_NAMES, main, render_road
from training.synthetic.vehicle_painting import paint_vehicle
from training.synthetic.vehicles import Vehicle, random_vehicle
from training.trainer import BEST_CHECKPOINT, Trainer

AHEAD, ONCOMING = -np.pi / 2, np.pi / 2
SUN = np.array([0.0, -1.0, 0.0])


def painted(vehicle: Vehicle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint a vehicle on grey; return the image, its mask and its box."""
    canvas = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    instance_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    box, pixels = paint_vehicle(canvas, instance_map, 7, vehicle, SUN, 0.8)
    assert pixels == (instance_map == 7).sum()
    return canvas, instance_map == 7, box


def test_a_seed_determines_the_image() -> None:
    first, again, other = (render_road(np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.boxes_xywh, again.boxes_xywh)
    assert (first.pixels != other.pixels).any()
    assert first.pixels.shape == (HEIGHT, WIDTH, 3)
    assert first.pixels.dtype == np.uint8


@pytest.mark.parametrize("seed", range(8))
def test_pixels_2d_box_and_3d_box_of_a_vehicle_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    location = float(rng.uniform(-4, 4)), CAMERA_HEIGHT_M, float(rng.uniform(12, 30))
    vehicle = random_vehicle(rng, location, float(rng.uniform(-np.pi, np.pi)))
    canvas, mask, box = painted(vehicle)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    expected = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    np.testing.assert_allclose(box, expected, atol=1.5)
    assert not (canvas[~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))).view(bool)] != 128).any()
    # The corners that the service projects enclose the box tightly.
    corners = box_corners(
        np.array([vehicle.dimensions_m]), np.array([location]), np.array([vehicle.rotation_y])
    )
    corners_px = project_as_served(corners, np.reshape(PROJECTION, (3, 4)))[0]
    low, high = corners_px.min(axis=0), corners_px.max(axis=0)
    assert (box[:2] >= low - 1).all()
    assert (box[2:] <= high + 1).all()
    assert (box[2:] - box[:2]).prod() > 0.75 * (high - low).prod()


@pytest.mark.parametrize("seed", range(6))
def test_red_lamps_are_visible_from_behind_only(seed: int) -> None:
    def red(rotation_y: float) -> int:
        vehicle = random_vehicle(
            np.random.default_rng(seed), (0.0, CAMERA_HEIGHT_M, 9.0), rotation_y
        )
        grey = Vehicle(**{**vars(vehicle), "paint": np.full(3, 90, np.float32)})
        pixels, mask, _ = painted(grey)
        values = pixels[mask].astype(int)
        # Stripes may be red too, but are not visible from front or rear.
        return int(((values[:, 0] > 110) & (values[:, 1:].max(axis=1) < 70)).sum())

    assert red(AHEAD) > 100
    assert red(ONCOMING) == 0


def test_the_command_writes_kitti_files_of_the_rendered_images(tmp_path: Path) -> None:
    count = 12
    main(["--output", str(tmp_path), "--count", str(count), "--seed", "5"])
    names = sorted(path.stem for path in (tmp_path / "label_2").glob("*.txt"))
    (tmp_path / "names.txt").write_text("\n".join(names))
    images = read_kitti_split(
        tmp_path / "names.txt", tmp_path / "image_2", tmp_path / "label_2", CLASS_NAMES
    )
    ground_truth = read_ground_truth(tmp_path / "label_2", tmp_path / "image_2")
    assert ground_truth.boxes_3d is not None
    assert len(images) == count
    ignored = 0
    for number, (read, one) in enumerate(zip(images, ground_truth.images, strict=True), start=1):
        rendered = render_road(np.random.default_rng((5, number)))
        assert read.boxes_3d is not None
        assert rendered.boxes_3d is not None
        np.testing.assert_array_equal(read.pixels, rendered.pixels)
        np.testing.assert_array_equal(read.class_ids, rendered.class_ids)
        np.testing.assert_allclose(read.boxes_xywh, rendered.boxes_xywh, atol=0.011)
        np.testing.assert_allclose(read.ignored_xywh, rendered.ignored_xywh, atol=0.011)
        for field in ("depths_m", "dimensions_m", "alphas_rad"):
            expected = getattr(rendered.boxes_3d, field)
            np.testing.assert_allclose(getattr(read.boxes_3d, field), expected, atol=1e-4)
        assert one.projection == pytest.approx(PROJECTION)
        ignored += len(rendered.ignored_xywh)
        labels = ground_truth.boxes_3d[one.image_id]
        known = to_boxes_3d(labels)[np.isin(labels.types, CLASS_NAMES)]
        # Vehicles are on the ground and do not overlap.
        above, _ = bev_and_3d_iou(known, known)
        assert (above - np.diag(np.diag(above)) == 0).all()
        assert known[:, 4] == pytest.approx(CAMERA_HEIGHT_M)
    assert ignored > 0


def test_vehicles_have_all_orientations() -> None:
    scenes = [render_road(np.random.default_rng((3, seed))).boxes_3d for seed in range(60)]
    alphas = np.concatenate([boxes.alphas_rad for boxes in scenes if boxes is not None])
    sectors = np.histogram(alphas, bins=8, range=(-np.pi, np.pi))[0]
    assert sectors.min() >= 4
    depths = np.concatenate([boxes.depths_m for boxes in scenes if boxes is not None])
    assert depths.min() < 9
    assert depths.max() > 24


def bundled_config(project: Path) -> TrainConfig:
    return read_config(project / "training/configs/road_scenes.toml")


def test_the_bundled_config_trains(project: Path, tmp_path: Path) -> None:
    config = bundled_config(project)
    small = config.model_copy(
        update={
            "loader_workers": 0,
            "data": config.data.model_copy(update={"rendered_per_epoch": 2}),
            "schedule": config.schedule.model_copy(update={"epochs": 1, "batch_size": 2}),
        }
    )
    Trainer(small, tmp_path).run()
    checkpoint = torch.load(tmp_path / BEST_CHECKPOINT, weights_only=True)
    assert any(key.startswith("dep") for key in checkpoint["state_dict"])
    assert TrainConfig.model_validate_json(checkpoint["config"]) == small


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('classes = ["Car", "Van"]', 'classes = ["Car"]', "draws classes ['Car', 'Van']"),
        ('renderer = "road_scenes"', 'renderer = "blood_smears"', "draws classes ['RBC'"),
        ("rotation = 10.0", "rotations = 10.0", "['rotations'] are not loss terms of boxes_3d"),
        ("rotation = 10.0", "rotation = 0", "greater than 0"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    project: Path, tmp_path: Path, before: str, after: str, message: str
) -> None:
    copy = shutil.copy(project / "training/configs/road_scenes.toml", tmp_path)
    assert_refused(Path(copy), before, after, re.escape(message))


def test_loss_weights_of_a_config_replace_the_upstream_ones(project: Path) -> None:
    config = bundled_config(project)
    objective = OBJECTIVES[config.task]
    terms = {name: torch.tensor(1.0) for name in objective.weights}
    total = objective.reweighted(config.loss_weights).total(terms)
    added = sum(config.loss_weights.values()) - sum(
        objective.weights[name] for name in config.loss_weights
    )
    assert added > 9
    assert float(total - objective.total(terms)) == pytest.approx(added)


def test_blood_smears_have_no_3d_boxes(project: Path) -> None:
    fields = bundled_config(project).model_dump()
    fields["classes"] = ("RBC", "WBC", "Platelets")
    fields["data"]["renderer"] = "blood_smears"
    with pytest.raises(ValueError, match="no 3D boxes"):
        TrainConfig.model_validate(fields)
