"""COCO accuracy of a package: offline, through HTTP, and whether both are the same.

    python benchmarks/accuracy.py --annotations ../shared/data/bccd/test.json \
        --images ../shared/data/bccd/images --package models/blood_cells --url http://127.0.0.1:8000

The annotations' categories, by number, must be the model's classes in their order. With both
--package and --url every detection of every picture is compared. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model_package import load_package
from service.batcher import Urgency
from service.detect import request_detections
from service.metrics import Metrics
from service.models import load_models
from service.parameters import DetectParameters
from service.schemas import to_response
from service.settings import Settings

EVERYTHING: dict[str, Any] = {"score_threshold": 0.0, "top_k": 100}
CLIENTS = 4

Answers = list[list[dict[str, Any]]]


def detect_offline(package: Path, bodies: list[bytes]) -> Answers:
    """Run the service's own predictor in this process."""

    async def detect_all() -> Answers:
        settings = Settings(models=package, request_timeout_s=3600)
        models = load_models(settings, Metrics(), print)
        models.start(None)
        predictor = models.get(None)
        options = predictor.options(DetectParameters(**EVERYTHING))
        try:
            predictions = await asyncio.gather(
                *(predictor.predict(body, options, Urgency()) for body in bodies)
            )
        finally:
            await models.stop()
        return [
            to_response(predictor.manifest, prediction, "").model_dump(exclude_none=True)[
                "detections"
            ]
            for prediction in predictions
        ]

    return asyncio.run(detect_all())


def detect_over_http(url: str, bodies: list[bytes]) -> Answers:
    """Send every picture to the service, several at a time."""

    def ask(body: bytes) -> list[dict[str, Any]]:
        return list(request_detections(url, body, options=EVERYTHING)["detections"])

    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(ask, bodies))


def evaluate(annotations: Path, answers: Answers) -> dict[str, list[float]]:
    """AP, AP50 and AP75 (COCO, at most 100 detections) for all classes and for each one."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        ids = sorted(truth.cats)
        rows = [
            {
                "image_id": image_id,
                "category_id": ids[found["class_id"]],
                "score": found["score"],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            for image_id, detections in zip(sorted(truth.imgs), answers, strict=True)
            for found in detections
            for x1, y1, x2, y2 in [found["bbox"]]
        ]
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU thresholds, recalls, classes, areas, detections): every area, 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    columns = {"all": precision} | {
        truth.cats[category]["name"]: precision[:, :, index : index + 1]
        for index, category in enumerate(evaluation.params.catIds)
        if precision[:, :, index].max() > -1  # -1 marks classes without an object
    }
    return {
        name: [_mean(values), _mean(values[:1]), _mean(values[5:6])]
        for name, values in columns.items()
    }


def _mean(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--url")
    given = parser.parse_args()
    if given.package is None and given.url is None:
        parser.error("name a --package, a --url, or both")
    facts = json.loads(given.annotations.read_text())
    images = sorted(facts["images"], key=lambda image: image["id"])
    bodies = [(given.images / image["file_name"]).read_bytes() for image in images]
    answers = {}
    if given.package is not None:
        name = load_package(given.package).manifest.name
        answers[f"offline ({name})"] = detect_offline(given.package, bodies)
    if given.url is not None:
        answers["HTTP"] = detect_over_http(given.url, bodies)
    print(f"{len(images)} pictures of {given.annotations.name}\n")
    print("| path | classes | AP | AP50 | AP75 |\n|---|---|---|---|---|")
    for path, detections in answers.items():
        for classes, values in evaluate(given.annotations, detections).items():
            print(f"| {path} | {classes} | {' | '.join(f'{value:.3f}' for value in values)} |")
    if len(answers) == 2:
        offline, http = answers.values()
        same = offline == http
        count = sum(map(len, http))
        print(f"\n{count} detections: {'all the same' if same else 'NOT the same'} on both paths.")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
