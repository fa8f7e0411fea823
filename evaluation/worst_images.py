"""Figures of the images with the most errors, labels and detections side by side."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from client import Detection, Keypoint
from client.drawing import draw_detections
from evaluation.detections import ImageDetections
from evaluation.ground_truth import ImageLabels, LabelledImage
from evaluation.metrics.matching import match_detections
from evaluation.model_under_test import ModelUnderTest
from evaluation.report import Figure

WORST = 6
_WIDTH_PX = 640


def worst_images(
    images: Sequence[LabelledImage],
    labels: Sequence[ImageLabels],
    detections: Sequence[ImageDetections],
    model: ModelUnderTest,
) -> list[Figure]:
    """Draw the images with the lowest F1 at the model's threshold, then with the most errors.

    ``detections``: those at the threshold. Images without errors are omitted.
    """
    ranks = []
    for index, pair in enumerate(zip(labels, detections, strict=True)):
        matches = match_detections(*pair, same_class=True)
        if matches.f1 < 1:
            errors = len(matches.false_negatives) + len(matches.false_positives)
            ranks.append((matches.f1, -errors, index, matches))
    figures = []
    for number, (f1, _, index, matches) in enumerate(sorted(ranks, key=lambda r: r[:3])[:WORST], 1):
        title = (
            f"{images[index].path.name}: F1 {f1:.2f}, {len(matches.false_negatives)} false "
            f"negatives, {len(matches.false_positives)} false positives (left: labels, right: "
            "detections)"
        )
        content = _draw(images[index], labels[index], detections[index], model)
        figures.append(Figure(title, f"worst_{number}.jpg", content))
    return figures


def _draw(
    image: LabelledImage, labels: ImageLabels, detections: ImageDetections, model: ModelUnderTest
) -> bytes:
    with Image.open(image.path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    scale = min(1.0, _WIDTH_PX / upright.width)
    size = round(upright.width * scale), round(upright.height * scale)
    small = upright.resize(size, Image.Resampling.BILINEAR)
    labelled = ImageDetections(
        labels.boxes_xyxy,
        np.ones(len(labels.class_ids)),
        labels.class_ids,
        labels.keypoints,
        np.empty((len(labels.class_ids), 0)),
    )
    sheet = Image.new("RGB", (2 * size[0] + 8, size[1]), "white")
    for left, shown in ((0, labelled), (size[0] + 8, detections)):
        drawn = draw_detections(
            small,
            _scaled(shown, scale, model),
            skeleton=model.skeleton,
            keypoint_names=model.keypoints,
        )
        sheet.paste(drawn, (left, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _scaled(detections: ImageDetections, scale: float, model: ModelUnderTest) -> list[Detection]:
    return [
        Detection(
            class_id=int(class_id),
            class_name=model.classes[class_id],
            score=float(score),
            bbox=tuple((box * scale).tolist()),
            keypoints=tuple(Keypoint(*point) for point in (points * [scale, scale, 1]).tolist()),
        )
        for class_id, score, box, points in zip(
            detections.class_ids,
            detections.scores,
            detections.boxes_xyxy,
            detections.keypoints,
            strict=True,
        )
    ]
