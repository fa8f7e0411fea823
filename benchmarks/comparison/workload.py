"""Networks and images of the comparison, generated from fixed seeds."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from model_export.architectures import ResNetArchitecture, box_head_channels
from model_export.config import ExportConfig, NetworkInfo, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.graph.normalization import NORMALIZATIONS
from model_export.networks.resnet import BasicBlock
from model_export.onnx.export import export_onnx
from model_export.pipeline import ONNX_FILE, tool_versions
from model_export.verification.images import synthetic_images
from model_export.verification.onnx_vs_torch import verify
from model_package import draft_package, load_package
from training.initialization import initialize
from training.synthetic.blood_smears import CLASS_NAMES, render_smear
from training.synthetic.output import JPEG_QUALITY

IMAGES = 8
TOP_K = 100
_SEED = 20
_THRESHOLD = 0.3
_DETECTIONS = 20
"""Detections per image, set through the bias of the heatmap: the number of cells in a smear."""


@dataclass(frozen=True)
class Case:
    """A network input size and an image size."""

    side_px: int
    """Side of the square network input."""
    width_px: int
    height_px: int

    @property
    def name(self) -> str:
        """Name in tables and file names."""
        return f"{self.side_px}-{self.width_px}x{self.height_px}"


CASES = {
    case.name: case for case in (Case(256, 640, 480), Case(256, 1920, 1080), Case(512, 640, 480))
}

# Slim ResNet-18 variants: about 12 ms per image at 256 pixels and 57 ms at 512 pixels on one core
# of the reference machine.
_ARCHITECTURES = {
    256: ResNetArchitecture(
        BasicBlock,
        (2, 2, 2, 2),
        widths=(24, 48, 72, 96),
        neck_channels=(48, 48, 48),
        head_hidden_channels=24,
    ),
    512: ResNetArchitecture(
        BasicBlock,
        (2, 2, 2, 2),
        widths=(24, 56, 88, 112),
        neck_channels=(56, 56, 56),
        head_hidden_channels=32,
    ),
}


def make_package(side_px: int, directory: Path) -> Path:
    """Export a network with random weights unless it exists; return its package.

    The biases of the heads are set so that the number of detections per image, and thus the size of
    the responses, is realistic.
    """
    output = directory / f"random_{side_px}"
    if output.exists():
        load_package(output)
        return output
    torch.manual_seed(_SEED)
    network = _ARCHITECTURES[side_px].build(box_head_channels(len(CLASS_NAMES)))
    initialize(network)
    graph = DetectionGraph(network, NORMALIZATIONS["coco"], TOP_K).eval()
    _set_heads(graph, side_px)
    config = ExportConfig(
        name=f"random_{side_px}",
        version="1",
        classes=CLASS_NAMES,
        width_px=side_px,
        height_px=side_px,
        top_k=TOP_K,
        score_threshold=_THRESHOLD,
        source="random weights, for benchmarks",
        license="Apache-2.0",
    )
    plan = resolve_export(config, NetworkInfo("slim ResNet-18", "boxes", len(CLASS_NAMES)))
    with draft_package(output) as draft:
        path = draft.directory / ONNX_FILE
        names = plan.output_names()
        export_onnx(graph, side_px, side_px, names, path)
        verification = verify(graph, path, names, synthetic_images(side_px, side_px))
        digest = hashlib.sha256(str(_SEED).encode()).hexdigest()
        artifact = draft.describe_artifact(ONNX_FILE, flip=False)
        draft.publish(plan.manifest((artifact,), digest, tool_versions(), verification))
    return output


def _set_heads(graph: DetectionGraph, side_px: int) -> None:
    """Scale and shift the heatmap logits to get ``_DETECTIONS`` detections per image."""
    images = np.zeros((IMAGES, side_px, side_px, 3), np.uint8)
    height_px = side_px * 3 // 4
    top = (side_px - height_px) // 2
    for index, image in enumerate(images):
        image[top : top + height_px] = cv2.resize(_smear(index), (side_px, height_px))
    pixels = torch.from_numpy(images)
    heads = graph.network.get_submodule("heads")
    heatmap, size = (list(heads.get_submodule(name).children())[-1] for name in ("heatmap", "size"))
    assert isinstance(heatmap, nn.Conv2d)
    assert isinstance(size, nn.Conv2d)
    assert heatmap.bias is not None
    assert size.bias is not None
    with torch.no_grad():
        logits = graph.network(graph.normalize(pixels))["heatmap"]
        means = logits.mean((0, 2, 3))
        # All cells in the padding of a letterboxed image are equal, so each counts as a peak. Their
        # logits must be low, or ties fill the top-k list.
        padding = logits[0, :, 1, logits.shape[3] // 2]
        sign = torch.where(padding > means, -1.0, 1.0)
        scale = 1.5 * sign / logits.std((0, 2, 3))
        heatmap.weight *= scale[:, None, None, None]
        heatmap.bias.copy_((heatmap.bias - means) * scale)
        size.bias.fill_(10.0)  # cells
        at_rank = graph(pixels)[0][:, _DETECTIONS].logit().median()
        heatmap.bias += math.log(_THRESHOLD / (1 - _THRESHOLD)) - at_rank


def make_images(width_px: int, height_px: int, directory: Path) -> list[Path]:
    """Render ``IMAGES`` JPEG files of one size unless they exist."""
    folder = directory / f"{width_px}x{height_px}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.jpg" for index in range(IMAGES)]
    for index, path in enumerate(paths):
        if not path.exists():
            pixels = _photograph(index, width_px, height_px)
            options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            path.write_bytes(cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes())
    return paths


def _photograph(index: int, width_px: int, height_px: int) -> np.ndarray:
    """Render a smear of the given size with sensor noise; without it a JPEG decodes too fast."""
    smear = _smear(index)
    height, width = smear.shape[:2]
    if (width_px, height_px) == (width, height):
        return smear
    rows = width * height_px // width_px
    top = (height - rows) // 2
    enlarged = cv2.resize(
        smear[top : top + rows], (width_px, height_px), interpolation=cv2.INTER_CUBIC
    )
    noise = np.random.default_rng((_SEED, index)).normal(0.0, 3.0, (height_px, width_px, 1))
    return np.clip(enlarged + noise, 0, 255).astype(np.uint8)


def _smear(number: int) -> np.ndarray:
    return render_smear(np.random.default_rng((_SEED, number))).pixels
