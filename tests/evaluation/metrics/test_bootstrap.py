"""The resampled AP compared with pycocotools, and intervals of known differences."""

from typing import Any

import numpy as np
import pytest
from support.labelled import detections, ground_truth, labels

from evaluation.detections import ImageDetections, to_coco_results
from evaluation.ground_truth import GroundTruth, ImageLabels
from evaluation.metrics import bootstrap
from evaluation.metrics.bootstrap import ap_differences, class_matches, mean_aps, weighted_ap
from evaluation.metrics.coco import box_scores, evaluate_boxes

CLASSES = 3


def random_images(count: int) -> list[tuple[ImageLabels, ImageDetections]]:
    generator = np.random.default_rng(7)
    images = []
    for _ in range(count):
        boxes, found = [], []
        for _ in range(generator.integers(0, 6)):
            corner, size = generator.uniform(0, 200, 2), generator.uniform(10, 100, 2)
            box, class_id = np.concatenate([corner, corner + size]), generator.integers(CLASSES)
            boxes.append((box.tolist(), int(class_id)))
            for _ in range(generator.integers(0, 3)):
                near = box + generator.normal(0, 5, 4)
                is_right = generator.random() < 0.8
                found.append((near.tolist(), int(class_id if is_right else (class_id + 1) % 3)))
        order = generator.permutation(len(found))[:8]
        crowd = 0 if boxes and generator.random() < 0.2 else None
        images.append((labels(*boxes, crowd=crowd), detections(*(found[i] for i in order))))
    return images


def evaluated(images: list[tuple[ImageLabels, ImageDetections]]) -> tuple[GroundTruth, Any]:
    dataset = ground_truth([one for one, _ in images], CLASSES)
    return dataset, to_coco_results([one for _, one in images], range(len(images)))


def weighted(evaluation: Any, weights: list[int]) -> list[float]:
    recalls = evaluation.params.recThrs
    matches = class_matches(evaluation)
    rows = np.array([weighted_ap(one, np.array(weights), recalls) for one in matches])
    return mean_aps(rows).tolist()


def test_a_weight_of_one_gives_the_ap_of_pycocotools() -> None:
    dataset, results = evaluated(random_images(30))
    summary = box_scores(dataset.coco, results).summary
    expected = [summary[name] for name in ("AP", "AP50", "AP75")]
    assert 0.1 < expected[0] < 0.9
    found = weighted(evaluate_boxes(dataset.coco, results), [1] * 30)
    assert found == pytest.approx(expected, abs=1e-12)


def test_weights_give_the_ap_of_repeated_images() -> None:
    images = random_images(6)
    weights = [2, 0, 1, 3, 0, 1]
    repeated = [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]
    dataset, results = evaluated(repeated)
    summary = box_scores(dataset.coco, results).summary
    all_dataset, all_results = evaluated(images)
    found = weighted(evaluate_boxes(all_dataset.coco, all_results), weights)
    assert found == pytest.approx([summary[name] for name in ("AP", "AP50", "AP75")], abs=1e-12)


def test_classes_without_objects_do_not_count() -> None:
    assert np.isnan(mean_aps(np.full((2, 10), np.nan))).all()
    rows = np.stack([np.full(10, np.nan), np.full(10, 0.5)])
    assert mean_aps(rows).tolist() == [0.5, 0.5, 0.5]


def test_intervals_of_known_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    images = random_images(30)
    dataset, results = evaluated(images)
    evaluation = evaluate_boxes(dataset.coco, results)
    calls: list[None] = []
    same = ap_differences(evaluation, evaluation, lambda: calls.append(None))
    assert len(calls) == 200
    assert same.overall.tolist() == [[0, 0]] * 3
    perfect = [(one, detections(*rows_of(one))) for one, _ in images]
    better = evaluate_boxes(*evaluated_results(dataset, perfect))
    difference = ap_differences(evaluation, better)
    assert (difference.overall[:, 0] > 0).all()
    assert (difference.overall[:, 0] < difference.overall[:, 1]).all()
    assert (difference.per_class > 0).all()
    reverse = ap_differences(better, evaluation)
    assert reverse.overall == pytest.approx(-difference.overall[:, ::-1])


def rows_of(image: ImageLabels) -> list[tuple[list[float], int]]:
    kept = ~image.is_crowd
    return list(zip(image.boxes_xyxy[kept].tolist(), image.class_ids[kept].tolist(), strict=True))


def evaluated_results(
    dataset: GroundTruth, images: list[tuple[ImageLabels, ImageDetections]]
) -> tuple[dict[str, Any], Any]:
    return dataset.coco, to_coco_results([one for _, one in images], range(len(images)))
