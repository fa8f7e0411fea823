"""COCO average precision (AP) of a network on labelled images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from evaluation.metrics.coco import box_scores
from model_export.architectures import OUTPUT_STRIDE
from model_export.graph.normalization import Normalization
from training.data.augmentation import evaluation_affine, warp_pixels
from training.data.coco import network_input
from training.data.sample import AnnotatedImage

TOP_K = 100


@dataclass(frozen=True)
class AveragePrecision:
    """COCO AP over IoU 0.50...0.95 and AP50; NaN for classes without labels."""

    ap: float
    ap50: float
    ap50_per_class: Mapping[str, float]


@torch.inference_mode()
def decode_boxes(maps: Mapping[str, Tensor], top_k: int = TOP_K) -> Tensor:
    """Decode the peaks of raw maps to boxes (*Objects as Points*, section 4).

    Args:
        maps: ``heatmap`` (N, C, H, W), ``size`` and ``offset`` (N, 2, H, W), float32.
        top_k: peaks kept per image, over all classes together.

    Returns:
        float32 (N, top_k, 6): x1, y1, x2, y2 in network input pixels, score, class id.
    """
    heatmap = maps["heatmap"].sigmoid()
    _, classes, height, width = heatmap.shape
    is_peak = max_pool2d(heatmap, 3, stride=1, padding=1) == heatmap
    scores, index = (heatmap * is_peak).flatten(1).topk(min(top_k, classes * height * width))
    cells = index % (height * width)
    gather = cells[:, None, :].expand(-1, 2, -1)
    offset = maps["offset"].flatten(2).gather(2, gather).transpose(1, 2)
    size = maps["size"].flatten(2).gather(2, gather).transpose(1, 2)
    center = torch.stack([cells % width, cells // width], dim=2) + offset
    boxes = torch.cat([center - size / 2, center + size / 2], dim=2) * OUTPUT_STRIDE
    class_ids = (index // (height * width)).to(boxes.dtype)
    return torch.cat([boxes, scores[..., None], class_ids[..., None]], dim=2)


@torch.inference_mode()
def detect(
    network: nn.Module,
    image: AnnotatedImage,
    input_size: tuple[int, int],
    normalization: Normalization,
    device: torch.device | str = "cpu",
) -> NDArray[np.float64]:
    """Detect objects in one image with a network on ``device``.

    ``input_size`` is the width and height of the network input.

    Returns:
        float64 (TOP_K, 6): x1, y1, x2, y2 in pixels of the image, not clipped to it, score, class.
    """
    height, width = image.pixels.shape[:2]
    affine = evaluation_affine(width, height, *input_size)
    pixels = warp_pixels(image.pixels, affine, *input_size)
    batch = network_input(pixels, normalization)[None].to(memory_format=torch.channels_last)
    rows = decode_boxes(network(batch.to(device)))[0].cpu().double().numpy()
    rows[:, :4] = (rows[:, :4] - np.tile(affine[:, 2], 2)) / affine[0, 0]
    return rows


def evaluate(
    network: nn.Module,
    images: Sequence[AnnotatedImage],
    class_names: Sequence[str],
    input_size: tuple[int, int],
    normalization: Normalization,
    device: torch.device | str = "cpu",
    on_image: Callable[[], object] = lambda: None,
) -> AveragePrecision:
    """Detect on all images and compute AP; the network is left in the mode that it had.

    ``on_image`` is called after each image.
    """
    was_training = network.training
    network.eval()
    detections = []
    for image in images:
        detections.append(detect(network, image, input_size, normalization, device))
        on_image()
    network.train(was_training)
    return average_precision(images, detections, class_names)


def average_precision(
    images: Sequence[AnnotatedImage],
    detections: Sequence[NDArray[np.float64]],
    class_names: Sequence[str],
) -> AveragePrecision:
    """Compute AP of rows ``x1, y1, x2, y2, score, class`` per image."""
    rows = [
        {
            "image_id": image_id,
            "category_id": int(row[5]),
            "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
            "score": float(row[4]),
        }
        for image_id, image_rows in enumerate(detections)
        for row in image_rows
    ]
    scores = box_scores(_coco_labels(images, class_names), rows)
    nan = float("nan")
    per_class = {name: scores.per_class.get(name, (nan, nan, nan)) for name in class_names}
    return AveragePrecision(
        ap=scores.summary["AP"],
        ap50=scores.summary["AP50"],
        ap50_per_class={name: ap50 for name, (_, ap50, _) in per_class.items()},
    )


def _coco_labels(images: Sequence[AnnotatedImage], class_names: Sequence[str]) -> dict[str, object]:
    """Return the labels as a COCO document; image and category ids are indices."""
    boxes = [
        (image_id, int(class_id), box)
        for image_id, image in enumerate(images)
        for box, class_id in zip(image.boxes_xywh, image.class_ids, strict=True)
    ]
    return {
        "info": {},
        "images": [{"id": i} for i in range(len(images))],
        "annotations": [
            {
                "id": i,
                "image_id": image_id,
                "category_id": class_id,
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": 0,
            }
            for i, (image_id, class_id, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }
