"""COCO's metrics compared with pycocotools, the others with hand calculations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.ground_truth import map_to_classes
from evaluation.label_readers import read_ground_truth
from evaluation.metrics.coco import (
    BOX_NAMES,
    COCO_SIGMAS,
    POSE_NAMES,
    box_scores,
    false_discovery,
    mask_scores,
    pose_scores,
)

CLASSES = ("cat", "dog", "owl")


def label(number: int, box: list[float], **more: Any) -> dict[str, Any]:
    area = box[2] * box[3]
    fields = {"id": number, "image_id": 1, "category_id": 0, "iscrowd": 0, "area": area}
    return {**fields, "bbox": box, **more}


def one_image(*labels: dict[str, Any], **category: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "width": 500, "height": 500}],
        "annotations": list(labels),
        "categories": [{"id": 0, "name": "cat", **category}],
    }


def row(box: list[float], score: float, **more: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 0, "bbox": box, "score": score, **more}


def random_labels(keypoints: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Labels of three classes with crowds, and detections near them, at random places, or none."""
    rng = np.random.default_rng(6)
    labels, rows = [], []
    for image_id in range(1, 31):
        for _ in range(rng.integers(1, 8)):
            box = np.concatenate([rng.uniform(0, 200, 2), rng.uniform(8, 250, 2)])
            points = rng.uniform(0, 250, (keypoints, 3)).round(2)
            points[:, 2] = rng.integers(0, 3, keypoints)
            fields = {
                "image_id": image_id,
                "category_id": int(rng.integers(1, 4)) * 10,
                "keypoints": points.ravel().tolist(),
                "num_keypoints": int((points[:, 2] > 0).sum()),
            }
            labels.append(label(len(labels) + 1, box.tolist(), **fields))
            labels[-1]["iscrowd"] = int(rng.random() < 0.1)
            for _ in range(rng.integers(0, 3)):
                moved = points + np.append(rng.normal(0, 10, 2), 0)
                near = (box + rng.normal(0, 6, 4)).clip(1).tolist()
                fields = {**fields, "keypoints": moved.ravel().tolist()}
                rows.append({**fields, "bbox": near, "score": float(rng.random())})
    coco = {
        "images": [{"id": i, "width": 500, "height": 500} for i in range(1, 31)],
        "annotations": labels,
        "categories": [
            {"id": 10 * i, "name": name, "keypoints": ["keypoint"] * keypoints}
            for i, name in enumerate(CLASSES, start=1)
        ],
    }
    return coco, rows


@pytest.mark.parametrize("kind", ["bbox", "keypoints"])
def test_metrics_equal_those_of_pycocotools(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, rows = random_labels(17)
    for image in coco["images"]:
        image["file_name"] = "none.png"
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(coco))
    upstream = COCO(str(path))
    bare = [{k: v for k, v in one.items() if kind == "bbox" or k != "bbox"} for one in rows]
    evaluation = COCOeval(upstream, upstream.loadRes(bare), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    ground_truth = map_to_classes(read_ground_truth(path, tmp_path), CLASSES).coco
    local = [{**one, "category_id": one["category_id"] // 10 - 1} for one in rows]
    if kind == "bbox":
        scores, names = box_scores(ground_truth, local), BOX_NAMES
        assert false_discovery(ground_truth, local)["FD50"] == 1 - scores.summary["AP50"]
    else:
        scores, names = pose_scores(ground_truth, local, COCO_SIGMAS), POSE_NAMES
    assert not capsys.readouterr().out
    assert tuple(scores.summary) == names
    assert list(scores.summary.values()) == evaluation.stats.tolist()
    assert 0.05 < scores.summary["AP"] < 0.95
    assert len(set(scores.summary.values())) > 5


def random_polygons(keypoints: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return :func:`random_labels` with octagons for objects and detections, and crowds as runs."""
    coco, rows = random_labels(keypoints)
    rng = np.random.default_rng(7)
    for image in coco["images"]:
        image |= {"file_name": "none.png", "width": 500, "height": 400}
    for one in (*coco["annotations"], *rows):
        left, top, width, height = one["bbox"]
        cut_x, cut_y = rng.uniform(0.2, 0.4, 2) * (width, height)
        x = (left, left + cut_x, left + width - cut_x, left + width)
        y = (top, top + cut_y, top + height - cut_y, top + height)
        corners = ((1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1))
        one["segmentation"] = [[value for i, j in corners for value in (x[i], y[j])]]
        if one.get("iscrowd"):
            start = int(left) * 400 + int(top)
            run = {"size": [400, 500], "counts": [start, 900, 400 * 500 - start - 900]}
            one["segmentation"] = run
    return coco, rows


def test_masks_equal_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco, rows = random_polygons(0)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(coco))
    upstream = COCO(str(path))
    runs = [
        {
            **{name: value for name, value in one.items() if name != "bbox"},
            "segmentation": upstream.annToRLE(one),
        }
        for one in rows
    ]
    evaluation = COCOeval(upstream, upstream.loadRes(runs), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    ground_truth = map_to_classes(read_ground_truth(path, tmp_path), CLASSES, with_masks=True)
    local = [{**one, "category_id": one["category_id"] // 10 - 1} for one in rows]
    scores = mask_scores(ground_truth.coco, local)
    assert tuple(scores.summary) == BOX_NAMES
    assert list(scores.summary.values()) == evaluation.stats.tolist()
    boxes = box_scores(ground_truth.coco, local).summary["AP"]
    assert 0.05 < scores.summary["AP"] != boxes


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[0, 0, 9, 9]],
        [[0, 0, 9, 0, 9]],
        [[0, 0, 9, 0, 9, float("nan")]],
        [[0, 0, 9, 0, 9, 1e9]],
        [["a"] * 6],
        5,
        {"size": [500, 500], "counts": [1, 2]},
        {"size": [5, 5], "counts": [25]},
        {"size": [500, 500], "counts": "a`b"},
        {"size": [500, 500], "counts": [-1, 250_001]},
        {"counts": [250_000]},
    ],
)
def test_masks_need_segmentations(segmentation: Any) -> None:
    labels = one_image(label(7, LARGE, segmentation=segmentation))
    if segmentation is None:
        del labels["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match="annotation 7 has no valid segmentation"):
        mask_scores(labels, [])
    del labels["images"][0]["width"]
    with pytest.raises(ValueError, match="image 1 has no width and height"):
        mask_scores(labels, [])


LARGE, MEDIUM = [0.0, 0.0, 100.0, 100.0], [200.0, 200.0, 40.0, 40.0]


def test_false_discovery_by_hand() -> None:
    """IoU 0.27 with the large object, a small box on nothing, the medium object exactly."""
    ground_truth = one_image(label(1, LARGE), label(2, MEDIUM))
    rows = [
        row([0, 0, 100, 27], 0.9),
        row([400, 400, 10, 10], 0.8),
        row(MEDIUM, 0.7),
    ]
    # Up to IoU 0.25 the first is right: precision 1 up to recall 0.5 (51 of 101 recalls), then
    # 2 of 3. Above, only the third is: 1 of 3 up to recall 0.5.
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 3 / 101
    rates = false_discovery(ground_truth, rows)
    assert rates["FD"] == pytest.approx(1 - (5 * low + 5 * high) / 10)
    assert rates["FD5"] == rates["FD25"] == pytest.approx(1 - low)
    assert rates["FD50"] == pytest.approx(1 - high)
    # Large: found at 5 of the 10 IoUs, and boxes of other sizes do not count.
    assert rates["FD_L"] == pytest.approx(1 - 0.5)
    # Medium: the first box, 2700 pixels, comes before the right one where it has no object.
    assert rates["FD_M"] == pytest.approx(1 - (5 * 1 + 5 * 0.5) / 10)
    assert np.isnan(rates["FD_S"])


def test_no_detections_give_0_and_no_labels_give_nan() -> None:
    scores = box_scores(one_image(label(1, LARGE)), [])
    assert scores.summary["AP"] == scores.summary["AR100"] == 0
    assert np.isnan(scores.summary["APs"])
    assert false_discovery(one_image(label(1, LARGE)), [])["FD"] == 1
    assert np.isnan(box_scores(one_image(), [row(LARGE, 0.9)]).summary["AP"])


def test_oks_of_any_number_of_keypoints_by_hand() -> None:
    sigma, similarity = 0.05, 0.82
    # exp(-d^2 / (2 (2 sigma)^2 area)) for both keypoints.
    off = np.sqrt(-np.log(similarity) * 2 * (2 * sigma) ** 2 * 10_000)
    ground_truth = one_image(
        label(1, LARGE, keypoints=[10, 10, 2, 90, 90, 2], num_keypoints=2),
        keypoints=["nose", "tail"],
    )
    found = row(LARGE, 0.9, keypoints=[10 + off, 10, 1, 90, 90 - off, 1])
    scores = pose_scores(ground_truth, [found], np.array([sigma, sigma]))
    assert scores.summary["AP"] == pytest.approx(0.7)  # right at 0.5, 0.55 ... 0.8
    stricter = pose_scores(ground_truth, [found], np.array([sigma / 2, sigma / 2]))
    assert stricter.summary["AP"] == 0  # 0.82 to the power of 4


def test_an_object_with_the_id_0_can_be_matched(tmp_path: Path) -> None:
    """pycocotools itself treats an object with the id 0 as never matched."""
    ground_truth = one_image(label(0, LARGE))
    ground_truth["images"][0]["file_name"] = "none.png"
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(ground_truth))
    read = read_ground_truth(path, tmp_path).coco
    assert box_scores(read, [row(LARGE, 0.9)]).summary["AP"] == pytest.approx(1)


def test_labels_without_keypoints_are_not_evaluated_as_poses() -> None:
    with_keypoints = label(1, LARGE, keypoints=[10, 10, 2], num_keypoints=1)
    ground_truth = one_image(with_keypoints, label(2, MEDIUM))
    found = row(LARGE, 0.9, keypoints=[10, 10, 1])
    assert pose_scores(ground_truth, [found], np.array([0.1])).summary["AR"] == pytest.approx(1)
