import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.configs import read_config

from model_export.class_names import COCO_KEYPOINTS
from training.dataset import SampleSettings, TrainingDataset
from training.synthetic.people import HEIGHT, VISIBLE, WIDTH, main, render_people
from training.synthetic.skeletons import random_body

LEFT, RIGHT = COCO_KEYPOINTS.index("left_shoulder"), COCO_KEYPOINTS.index("right_shoulder")


def test_a_seed_determines_the_image() -> None:
    first, again, other = (render_people(np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.keypoints, again.keypoints)
    assert (first.pixels != other.pixels).any()


@pytest.mark.parametrize("seed", range(6))
def test_visible_keypoints_are_inside_their_boxes(seed: int) -> None:
    image = render_people(np.random.default_rng(seed))
    assert image.pixels.shape == (HEIGHT, WIDTH, 3)
    assert image.pixels.dtype == np.uint8
    low, high = image.boxes_xywh[:, :2], image.boxes_xywh[:, :2] + image.boxes_xywh[:, 2:]
    assert (low >= 0).all()
    assert (high <= (WIDTH, HEIGHT)).all()
    for keypoints, first, last in zip(image.keypoints, low, high, strict=True):
        seen = keypoints[keypoints[:, 2] == VISIBLE, :2]
        assert ((seen >= first) & (seen <= last)).all()
        labelled = keypoints[keypoints[:, 2] > 0, :2]
        assert ((labelled >= 0) & (labelled <= (WIDTH, HEIGHT))).all()


def test_keypoints_are_mostly_visible_and_sometimes_hidden() -> None:
    images = [render_people(np.random.default_rng(seed)) for seed in range(20)]
    visibilities = np.concatenate([image.keypoints for image in images])[..., 2]
    assert (visibilities == 2).mean() > 0.5
    assert (visibilities == 1).mean() > 0.1


@pytest.mark.parametrize("seed", range(12))
def test_left_shoulder_is_on_the_right_when_facing_the_camera(seed: int) -> None:
    body = random_body(np.random.default_rng(seed))
    nose, ears = body.keypoints[0], body.keypoints[3:5]
    faces_camera = nose[2] > ears[:, 2].mean() + 0.03
    faces_away = nose[2] < ears[:, 2].mean() - 0.03
    if faces_camera:
        assert body.keypoints[LEFT, 0] > body.keypoints[RIGHT, 0]
    if faces_away:
        assert body.keypoints[LEFT, 0] < body.keypoints[RIGHT, 0]
    # Rotations keep the lengths of limbs.
    arm = np.linalg.norm(body.keypoints[LEFT] - body.keypoints[COCO_KEYPOINTS.index("left_elbow")])
    assert arm == pytest.approx(0.16)


def test_command_writes_images_and_labels(tmp_path: Path) -> None:
    main(["--output", str(tmp_path), "--count", "2", "--seed", "5"])
    document = json.loads((tmp_path / "people.json").read_text())
    assert document["categories"][0]["keypoints"] == list(COCO_KEYPOINTS)
    for number, entry in enumerate(document["images"], start=1):
        expected = render_people(np.random.default_rng((5, number)))
        written = cv2.imread(str(tmp_path / entry["file_name"]))[..., ::-1]
        np.testing.assert_array_equal(written, expected.pixels)
        poses = [a for a in document["annotations"] if a["image_id"] == entry["id"]]
        keypoints = [np.reshape(a["keypoints"], (17, 3)) for a in poses]
        np.testing.assert_allclose(np.stack(keypoints), expected.keypoints, atol=0.006)
        for pose in poses:
            assert 0 < pose["area"] <= pose["bbox"][2] * pose["bbox"][3]


def test_a_config_may_train_on_rendered_images_only(tmp_path: Path) -> None:
    keypoints = ", ".join(f'"{name}"' for name in COCO_KEYPOINTS)
    (tmp_path / "configuration.toml").write_text(
        f"""
architecture = "res_18_slim"
task = "poses"
normalization = "coco"
classes = ["person"]
keypoints = [{keypoints}]
input_width = 320
input_height = 256
seed = 1
loader_workers = 0
[data]
rendered_per_epoch = 3
renderer = "people"
[augmentation]
scale = [0.9, 1.1]
brightness = 0.1
contrast = 0.1
saturation = 0.1
hue_degrees = 5
blur_probability = 0.1
[schedule]
epochs = 1
batch_size = 1
learning_rate = 1e-3
weight_decay = 1e-2
warmup_steps = 1
average_decay = 0.9
gradient_clip = 10.0
"""
    )
    config = read_config(tmp_path / "configuration.toml")
    dataset = TrainingDataset(
        [],
        repeats=1,
        rendered=3,
        settings=SampleSettings.for_training(config),
        seed=1,
        epoch=0,
    )
    assert len(dataset) == 3
    assert dataset[0]["image"].shape == (3, 256, 320)
    assert dataset[0]["keypoint_heatmap"].shape == (17, 64, 80)
