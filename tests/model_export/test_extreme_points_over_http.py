"""Packages of *ExtremeNet* from export to the response of the service.

The expected detections are those of the upstream decoding, which scores all combinations, of the
maps of the network in PyTorch.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import State, without_counters
from support.images import encode
from support.serving import run_server
from support.upstream_extreme_points import SIDES, groups_like_upstream, unflip
from support.upstream_nms import suppress_like_upstream
from upstream.weights_rule import TABLE, make_state

from labels.extreme_points import boxes_around
from model_export import pipeline
from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.config import ExportConfig
from model_export.detection_graph import DetectionGraph
from model_export.graph.normalization import NORMALIZATIONS
from model_export.key_mappings.objects_as_points import to_checkpoint_key
from model_export.pipeline import export_package
from model_export.tasks import TASKS
from service.model_registry import load_models
from service.settings import Settings

WIDTH_PX, HEIGHT_PX = 160, 96
MIN_SCORE = 0.01
CLASSES = ("cat", "dog")


@pytest.mark.parametrize(
    ("task", "edge_aggregation"),
    [
        ("extreme_points_agnostic", 0.0),
        ("extreme_points_agnostic", 0.1),
        # More peaks above 1 than are selected.
        ("extreme_points", 0.1),
    ],
)
def test_served_detections_equal_the_upstream_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, edge_aggregation: float
) -> None:
    state = make_state_of(task)
    torch.save(state, tmp_path / "model.pth")
    config = ExportConfig(
        name="slim",
        version="1",
        architecture="res_18_slim",
        classes=CLASSES,
        width_px=WIDTH_PX,
        height_px=HEIGHT_PX,
        edge_aggregation=edge_aggregation,
    )
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    # Other tests verify with all images.
    monkeypatch.setattr(pipeline, "collect_images", lambda *_: [image])
    package = export_package(config, tmp_path / "model.pth", tmp_path / "package", lambda _: None)
    settings = Settings(models=package.directory, max_batch_size=2, precision="fp32")
    with run_server(partial(load_models, report_step=print), settings) as server:
        response = server.client.post(
            f"/detect?score_threshold={MIN_SCORE}&top_k=100&flip=true", content=encode(image)
        )
    assert response.status_code == 200, response.text
    found = response.json()["detections"]
    graph = make_graph(task, state)
    expected, points = upstream_detections(graph, image, edge_aggregation)
    assert len(found) == len(expected) > 10
    assert {detection["class_id"] for detection in found} == set(expected[:, 5])
    for detection in found:
        row = np.array([*detection["bbox"], detection["score"], detection["class_id"]])
        errors = np.abs(expected - row)
        assert (errors <= [*[0.01] * 4, 1e-4, 0]).all(axis=1).any(), errors.max(axis=1).min()
        of_group = np.array(detection["extreme_points"])
        assert np.abs(points - of_group).max(axis=(1, 2)).min() <= 0.01  # rounded
        octagon = np.array(detection["octagon"])
        assert octagon.shape == (8, 2)
        corners = [*octagon.min(axis=0), *octagon.max(axis=0)]
        assert np.allclose(
            corners, [*np.minimum(row[:2], row[2:4]), *np.maximum(row[:2], row[2:4])], atol=0.01
        )


def make_state_of(task: str) -> State:
    """Return weights of the rule, whose heatmaps have peaks between 0.1 and 1."""
    classes = 1 if TASKS[task].is_agnostic else len(CLASSES)
    heads = {f"{side}_heatmap": classes for side in SIDES} | {"center_heatmap": len(CLASSES)}
    heads |= {f"{side}_offset": 2 for side in SIDES}
    with torch.device("meta"):
        network = ARCHITECTURES["res_18_slim"].build(heads)
    shapes = {
        to_checkpoint_key(key): [list(weight.shape), str(weight.dtype)]
        for key, weight in network.state_dict().items()
    }
    gains = {f"hm_{side}": (1.5, -1.5) for side in "tlbrc"} | {
        f"reg_{side}": (0.1, 0.5) for side in "tlbr"
    }
    arrays = make_state(shapes, tab={**TABLE["ctdet_res_18"], "heads": gains})
    return without_counters({key: torch.from_numpy(array) for key, array in arrays.items()})


def make_graph(task: str, state: State) -> DetectionGraph:
    network = load_network(identify(state, "res_18_slim"), state)
    normalization = NORMALIZATIONS[TASKS[task].normalization]
    return DetectionGraph(network, normalization, 40, TASKS[task]).eval()


def upstream_detections(
    graph: DetectionGraph, image: NDArray[np.uint8], edge_aggregation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the detections, rows of box, score and class, and the points of all groups.

    Without the stale copies of the upstream soft-NMS. The input has the size of the image.
    """
    groups, points = [], []
    for flipped in (False, True):
        pixels = np.ascontiguousarray(image[:, ::-1] if flipped else image)
        with torch.no_grad():
            maps = graph.maps(torch.from_numpy(pixels[np.newaxis]))
        found = groups_like_upstream(
            {name: values[0].numpy() for name, values in maps.items()},
            graph.top_k,
            agnostic=graph.task.is_agnostic,
            edge_aggregation=edge_aggregation,
        )
        groups.append(found)
        points.append(4 * unflip(found[:, 1:9].reshape(-1, 4, 2), WIDTH_PX / 4, flipped=flipped))
    every, of_groups = np.concatenate(groups), np.concatenate(points)
    rows = np.column_stack((boxes_around(of_groups), every[:, 0])).astype(np.float32)
    _, kept = suppress_like_upstream(rows, every[:, 9].astype(np.int32), 100, weight_exp=None)
    return kept[kept[:, 4] >= MIN_SCORE].astype(np.float64), of_groups
