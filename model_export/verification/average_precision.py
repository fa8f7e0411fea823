"""Average precision (AP) of ONNX files with center-point outputs on labelled images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics.coco import box_scores
from labels.coco import check_annotations, read_coco
from labels.errors import DatasetError
from model_export.errors import ImagesError, QuantizationError
from model_export.verification.comparison import Detections
from model_export.verification.images import ImageArray, read_image
from model_export.verification.onnx_vs_torch import Run
from model_package import AveragePrecision, CornerPairsDecoder, CornerTripletsDecoder, ModelManifest

MAX_AP_LOSS = 0.010
"""Largest accepted loss of AP from fp32 to int8, about the step between two trainings."""
MAX_CLASS_AP_LOSS = 0.020
"""Largest accepted loss of a class, which has fewer objects and therefore varies more."""


@dataclass(frozen=True)
class LabelledImages:
    """COCO labels with the class ids of a model as category ids; the directory of the images."""

    coco: Mapping[str, Any]
    directory: Path


def read_labels(annotations: Path, directory: Path, manifest: ModelManifest) -> LabelledImages:
    """Read the labels of the model's classes, which are found by name.

    Raises :class:`ImagesError`, also for a model whose outputs are corners: their boxes need the
    suppression of the service.
    """
    if isinstance(manifest.decoder, CornerPairsDecoder | CornerTripletsDecoder):
        raise ImagesError(
            f"AP is measured for models with center points, not for {manifest.decoder.kind}. Leave "
            "out --evaluate, and compare the precisions with centernet-eval."
        )
    try:
        dataset = read_coco(annotations)
        check_annotations(dataset)
    except DatasetError as error:
        raise ImagesError(str(error)) from error
    class_ids = {name: index for index, name in enumerate(manifest.classes)}
    categories = {
        category["id"]: class_ids[category["name"]]
        for category in dataset.categories
        if category["name"] in class_ids
    }
    labels = [
        {**label, "id": number, "category_id": categories[label["category_id"]]}
        for number, label in enumerate(dataset.annotations, start=1)
        if label["category_id"] in categories
    ]
    if not labels:
        raise ImagesError(
            f"{annotations} has no labels of the classes {', '.join(manifest.classes[:5])}. Give "
            "labels with these category names."
        )
    boxes = ({"area": label["bbox"][2] * label["bbox"][3], "iscrowd": 0} for label in labels)
    coco = {
        "info": {},
        "images": list(dataset.images),
        "annotations": [defaults | label for defaults, label in zip(boxes, labels, strict=True)],
        "categories": [{"id": index, "name": name} for name, index in class_ids.items()],
    }
    return LabelledImages(coco, directory)


def measure_average_precision(
    run_fp32: Run, run_int8: Run, labelled: LabelledImages, manifest: ModelManifest
) -> AveragePrecision:
    """Measure the AP of both files on the same images.

    Images are resized to the input without their aspect ratio. Raises :class:`ImagesError`, and
    :class:`QuantizationError` if AP or the AP of a class is more than :data:`MAX_AP_LOSS` or
    :data:`MAX_CLASS_AP_LOSS` lower in int8.
    """
    spec = manifest.input
    results: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for image in labelled.coco["images"]:
        pixels, size = read_image(
            labelled.directory / image["file_name"], spec.height_px, spec.width_px
        )
        for run, rows in zip((run_fp32, run_int8), results, strict=True):
            rows += _coco_results(run(pixels[np.newaxis])[0], image["id"], pixels, size, manifest)
    fp32, int8 = (_average_precisions(labelled.coco, rows) for rows in results)
    losses = {name: fp32[name] - int8[name] for name in fp32}
    failed = [
        f"{name} {fp32[name]:.4f} in fp32 and {int8[name]:.4f} in int8"
        for name, loss in losses.items()
        if loss > (MAX_AP_LOSS if name == "all" else MAX_CLASS_AP_LOSS)
    ]
    if failed:
        raise QuantizationError(
            f"int8 loses too much AP: {'; '.join(failed)}. At most {MAX_AP_LOSS} is accepted for "
            f"all classes, and {MAX_CLASS_AP_LOSS} for one."
        )
    return AveragePrecision(images=len(labelled.coco["images"]), fp32=fp32, int8=int8)


def _average_precisions(
    coco: Mapping[str, Any], results: Sequence[dict[str, Any]]
) -> dict[str, float]:
    scores = box_scores(coco, results)
    per_class = {name: ap for name, (ap, _, _) in scores.per_class.items() if ap == ap}
    return {"all": scores.summary["AP"], **per_class}


def _coco_results(
    detections: Detections,
    image_id: int,
    pixels: ImageArray,
    size: tuple[int, int],
    manifest: ModelManifest,
) -> Iterator[dict[str, Any]]:
    """Yield the detections in COCO's result format; ``size``: width and height of the image."""
    decoder = manifest.decoder
    assert not isinstance(decoder, CornerPairsDecoder | CornerTripletsDecoder)
    scale = decoder.output_stride * np.divide(size, (pixels.shape[1], pixels.shape[0]))
    sizes = detections["sizes"] * scale
    corners = detections["centers"] * scale - sizes / 2
    for corner, extent, score, class_id in zip(
        corners, sizes, detections["scores"], detections["class_ids"], strict=True
    ):
        yield {
            "image_id": image_id,
            "category_id": int(class_id),
            "bbox": [*corner.tolist(), *extent.tolist()],
            "score": float(score),
        }
