"""The images with the most mistakes, labels beside detections."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from client.drawing import draw_detections
from evaluation.detections import Answer
from evaluation.ground_truth import ImageLabels, LabelledImage
from evaluation.metrics.matching import match
from evaluation.model_under_test import ModelUnderTest
from evaluation.report import Figure

WORST = 6
_WIDTH_PX = 640


def worst_images(
    images: Sequence[LabelledImage],
    labels: Sequence[ImageLabels],
    answers: Sequence[Answer],
    model: ModelUnderTest,
) -> list[Figure]:
    """The images with the lowest F1 at the model's threshold, most mistakes first among equals.

    Images without a mistake are none of them.
    """
    ranks = []
    for index, (ground_truth, answer) in enumerate(zip(labels, answers, strict=True)):
        matches = match(ground_truth, answer, same_class=True)
        if matches.f1 < 1:
            ranks.append((matches.f1, -len(matches.missed) - len(matches.invented), index, matches))
    figures = []
    for number, (f1, _, index, matches) in enumerate(sorted(ranks, key=lambda r: r[:3])[:WORST], 1):
        title = (
            f"{images[index].path.name}: F1 {f1:.2f}, {len(matches.missed)} missed, "
            f"{len(matches.invented)} invented (left: labels, right: detections)"
        )
        content = _draw(images[index], labels[index], answers[index], model)
        figures.append(Figure(title, f"worst_{number}.jpg", content))
    return figures


def _draw(
    image: LabelledImage, ground_truth: ImageLabels, answer: Answer, model: ModelUnderTest
) -> bytes:
    with Image.open(image.path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    scale = min(1.0, _WIDTH_PX / upright.width)
    size = round(upright.width * scale), round(upright.height * scale)
    small = upright.resize(size, Image.Resampling.BILINEAR)
    labelled = Answer(
        ground_truth.boxes_xyxy,
        np.ones(len(ground_truth.class_ids)),
        ground_truth.class_ids,
        ground_truth.keypoints,
        np.empty((len(ground_truth.class_ids), 0)),
    )
    sheet = Image.new("RGB", (2 * size[0] + 8, size[1]), "white")
    for left, shown in ((0, labelled), (size[0] + 8, answer)):
        drawn = draw_detections(small, _as_json(shown, scale, model), model.skeleton)
        sheet.paste(drawn, (left, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _as_json(answer: Answer, scale: float, model: ModelUnderTest) -> list[dict[str, object]]:
    return [
        {
            "class_id": int(class_id),
            "class_name": model.classes[class_id],
            "score": float(score),
            "bbox": (box * scale).tolist(),
            "keypoints": (points[:, :2] * scale).tolist(),
        }
        for class_id, score, box, points in zip(
            answer.class_ids, answer.scores, answer.boxes_xyxy, answer.keypoints, strict=True
        )
    ]
