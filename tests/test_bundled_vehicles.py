"""The bundled 3D model as `make serve` serves it, beside the others, on its sample pictures."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.serving import run_server

from evaluation.answers import read_answer
from evaluation.boxes_in_space import as_boxes, overlaps_in_space
from evaluation.kitti_labels import DONT_CARE, read_kitti
from evaluation.matching import overlaps_of_boxes
from service.models import load_models
from service.settings import Settings
from training.roadside import PROJECTION

MODEL = "road_vehicles"


@pytest.fixture(scope="module")
def client(project: Path) -> Iterator[httpx.Client]:
    settings = Settings(models=project / "models", default_model="blood_cells", max_batch_size=1)
    with run_server(partial(load_models, note=print), settings) as server:
        yield server.client


def test_it_is_served_with_the_camera_of_the_samples(client: httpx.Client) -> None:
    names = [entry["name"] for entry in client.get("/models").json()["models"]]
    assert {MODEL, "blood_cells"} <= set(names)
    facts = client.get(f"/models/{MODEL}").json()
    assert facts["classes"] == ["Car", "Van"]
    assert facts["task"] == "center_boxes_3d"


def test_the_vehicles_of_the_sample_pictures_are_found(client: httpx.Client, project: Path) -> None:
    directory = project / "docs/samples/road_scenes"
    truth = read_kitti(directory / "label_2", directory / "image_2")
    assert truth.space is not None
    errors, overlaps, vehicles, invented = [], [], 0, 0
    for picture in truth.pictures:
        assert picture.projection == pytest.approx(PROJECTION)
        labels = truth.space[picture.image_id]
        # No camera in the request: that of the package is theirs.
        response = client.post(f"/models/{MODEL}/detect", content=picture.path.read_bytes())
        assert response.status_code == 200, response.text
        found = read_answer(response.json()["detections"], joints=0, in_space=True)
        known = np.flatnonzero(np.array(labels.types) != DONT_CARE)
        iou, _ = overlaps_of_boxes(labels.boxes_xyxy, found.boxes_xyxy)
        _, whole = overlaps_in_space(as_boxes(labels)[known], found.space[:, :7])
        vehicles += len(known)
        # What is near a region without labels may be a vehicle of which little shows.
        invented += int((iou.max(axis=0) < 0.3).sum())
        for row, number in enumerate(known):
            best = int(iou[number].argmax())
            if iou[number, best] < 0.5:
                continue
            overlaps.append(whole[row, best])
            depth, turned = labels.locations[number, 2], labels.rotations_y[number]
            off = (found.space[best, 6] - turned + np.pi) % (2 * np.pi) - np.pi
            errors.append((abs(found.space[best, 5] / depth - 1), abs(np.degrees(off))))
    assert vehicles >= 15
    assert len(errors) >= 0.85 * vehicles
    assert invented <= 2
    depth_error, rotation_error = np.median(errors, axis=0)
    assert depth_error <= 0.04
    assert rotation_error <= 6
    assert np.median(overlaps) >= 0.5
