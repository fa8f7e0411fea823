"""COCO average precision of a network on a labelled split."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from model_export.architectures import OUTPUT_STRIDE
from model_export.graph.normalization import Normalization
from training.data.augmentation import evaluation_affine, warp_pixels
from training.data.coco import network_input
from training.data.sample import AnnotatedImage

TOP_K = 100


@dataclass(frozen=True)
class AveragePrecision:
    """AP over IoU 0.50...0.95 and AP at IoU 0.50, overall and per class, as COCO defines them."""

    ap: float
    ap50: float
    ap_per_class: Mapping[str, float]
    ap50_per_class: Mapping[str, float]


@torch.inference_mode()
def decode_boxes(maps: Mapping[str, Tensor], top_k: int = TOP_K) -> Tensor:
    """Peaks of raw maps as boxes (*Objects as Points*, section 4).

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
) -> NDArray[np.float64]:
    """Detections of one image in its own pixels: float64 (TOP_K, 6) x1, y1, x2, y2, score, class.

    ``input_size`` is the width and height of the network input. Boxes are not clipped.
    """
    height, width = image.pixels.shape[:2]
    affine = evaluation_affine(width, height, *input_size)
    pixels = warp_pixels(image.pixels, affine, *input_size)
    batch = network_input(pixels, normalization)[None].to(memory_format=torch.channels_last)
    rows = decode_boxes(network(batch))[0].double().numpy()
    rows[:, :4] = (rows[:, :4] - np.tile(affine[:, 2], 2)) / affine[0, 0]
    return rows


def evaluate(
    network: nn.Module,
    images: Sequence[AnnotatedImage],
    class_names: Sequence[str],
    input_size: tuple[int, int],
    normalization: Normalization,
) -> AveragePrecision:
    """Detect on all images and score with pycocotools; the network is left in its mode."""
    was_training = network.training
    network.eval()
    detections = [detect(network, image, input_size, normalization) for image in images]
    network.train(was_training)
    return average_precision(images, detections, class_names)


def average_precision(
    images: Sequence[AnnotatedImage],
    detections: Sequence[NDArray[np.float64]],
    class_names: Sequence[str],
) -> AveragePrecision:
    """Score rows ``x1, y1, x2, y2, score, class`` per image against the labels."""
    ground_truth = [
        {
            "image_id": i,
            "category_id": int(class_id),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for i, image in enumerate(images)
        for box, class_id in zip(image.boxes_xywh, image.class_ids, strict=True)
    ]
    found = [
        {
            "image_id": i,
            "category_id": int(row[5]),
            "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
            "score": float(row[4]),
        }
        for i, rows in enumerate(detections)
        for row in rows
    ]
    # pycocotools prints its progress and tables; the caller gets numbers instead.
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO()
        labels.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(images))],
            "annotations": [{"id": i, **entry} for i, entry in enumerate(ground_truth, start=1)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
        }
        labels.createIndex()
        scoring = COCOeval(labels, labels.loadRes(found), "bbox")
        scoring.evaluate()
        scoring.accumulate()
    # (IoU thresholds, recalls, classes, areas, detection limits); area "all", limit 100.
    precision = scoring.eval["precision"][:, :, :, 0, -1]
    return _summarise(precision, class_names)


def _summarise(precision: NDArray[np.float64], class_names: Sequence[str]) -> AveragePrecision:
    def mean(values: NDArray[np.float64]) -> float:
        # -1 marks classes without a single label.
        return float(values[values > -1].mean()) if (values > -1).any() else float("nan")

    classes = range(len(class_names))
    return AveragePrecision(
        ap=mean(precision),
        ap50=mean(precision[0]),
        ap_per_class={class_names[i]: mean(precision[:, :, i]) for i in classes},
        ap50_per_class={class_names[i]: mean(precision[0, :, i]) for i in classes},
    )
