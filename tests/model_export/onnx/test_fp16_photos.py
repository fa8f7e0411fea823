"""Half precision against float32 on photographs, which stand beside some checkouts only.

What takes minutes runs only when the environment variable HEAVY_TESTS is set.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.checkpoints import State

from model_export.config import ExportConfig
from model_export.errors import HalfPrecisionError
from model_export.pipeline import export_package
from model_export.verification.detection_agreement import verify_half
from model_export.verification.images import read_images
from model_package import ModelPackage, OnnxArtifact, load_package

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"),
    reason="takes minutes and up to 5 GB: set HEAVY_TESTS=1",
)


def _half(package: ModelPackage) -> OnnxArtifact:
    (artifact,) = (one for one in package.manifest.artifacts if one.precision == "fp16")
    assert isinstance(artifact, OnnxArtifact)
    return artifact


def test_the_bundled_half_weights_are_the_float32_ones_rounded(project: Path) -> None:
    directory = project / "models" / "blood_cells"
    full, half = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (directory / "model.onnx", directory / "model_fp16.onnx")
    )
    weights = {name: values for name, values in half.items() if name.startswith("network.network.")}
    assert len(weights) == sum(name.startswith("network.") for name in full)
    for name, values in weights.items():
        name = name.removeprefix("network.").replace(".2.layer.", ".2.")
        # Biases out of folded normalisation are called after the weight in float32.
        source = full[name] if name in full else full[f"{name.removesuffix('bias')}weight_bias"]
        np.testing.assert_array_equal(values, source.astype(values.dtype))


def test_the_bundled_model_in_half_precision(project: Path, shared: Path) -> None:
    package = load_package(project / "models" / "blood_cells")
    spec, half = package.manifest.input, _half(package)
    photos = read_images(shared / "data" / "bccd" / "images", spec.height_px, spec.width_px)
    names = [output.name for output in package.manifest.decoder.outputs()]
    agreement = verify_half(
        package.path_of(half), package.directory / "model.onnx", names, photos[:6]
    )
    print(f"\nhalf precision | blood_cells | {agreement}")


@heavy
@pytest.mark.parametrize(
    ("network", "images"),
    [
        ("ctdet_res_18", "coco_train128/images"),
        ("multi_pose_res_50", "coco_train128/images"),
        ("triplet_centernet52", "coco_train128/images"),
    ],
)
def test_networks_in_half_precision(
    upstream_state: Callable[[str], State],
    shared: Path,
    tmp_path: Path,
    network: str,
    images: str,
) -> None:
    torch.save(upstream_state(network), tmp_path / "model.pth")
    package = export_package(
        ExportConfig(name="half", version="1", precision="fp16"),
        tmp_path / "model.pth",
        tmp_path / "package",
        lambda _: None,
        shared / "data" / images,
    )
    print(f"\nhalf precision | {network} | {_half(package).agreement}")


@heavy
@pytest.mark.parametrize(
    ("network", "images"),
    [("ctdet_dla_34", "coco_train128/images"), ("ddd_dla_34", "kitti/image_2")],
)
def test_networks_that_magnify_rounding_are_refused(
    upstream_state: Callable[[str], State],
    shared: Path,
    tmp_path: Path,
    network: str,
    images: str,
) -> None:
    """The rule's deformable convolutions make much of the last bit in float32 already."""
    torch.save(upstream_state(network), tmp_path / "model.pth")
    with pytest.raises(HalfPrecisionError, match=r"detections .* in half precision"):
        export_package(
            ExportConfig(name="half", version="1", precision="fp16"),
            tmp_path / "model.pth",
            tmp_path / "package",
            lambda _: None,
            shared / "data" / images,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth"}
