"""Agreement of fp16 and fp32 on photographs; see the fixture ``shared``.

Tests that take minutes run only if the environment variable HEAVY_TESTS is set.
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
from model_export.errors import Fp16Error
from model_export.pipeline import export_package
from model_export.verification.detection_agreement import verify_fp16
from model_export.verification.images import read_images
from model_package import ModelPackage, OnnxArtifact, load_package

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"),
    reason="takes minutes and up to 5 GB: set HEAVY_TESTS=1",
)


def _fp16_artifact(package: ModelPackage) -> OnnxArtifact:
    (artifact,) = (one for one in package.manifest.artifacts if one.precision == "fp16")
    assert isinstance(artifact, OnnxArtifact)
    return artifact


def test_bundled_fp16_weights_are_the_rounded_fp32_weights(project: Path) -> None:
    directory = project / "models" / "blood_cells"
    fp32, fp16 = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (directory / "model.onnx", directory / "model_fp16.onnx")
    )
    weights = {name: values for name, values in fp16.items() if name.startswith("network.network.")}
    assert len(weights) == sum(name.startswith("network.") for name in fp32)
    for name, values in weights.items():
        name = name.removeprefix("network.").replace(".2.layer.", ".2.")
        # In the fp32 file, biases from folded batch normalization are named after the weight.
        source = fp32[name] if name in fp32 else fp32[f"{name.removesuffix('bias')}weight_bias"]
        # The fp16 file folds the batch normalization in float64, the exporter of the fp32 file in
        # float32: a value close to the middle of two float16 values may be rounded to either.
        assert (np.abs(values - source) <= 0.53 * np.spacing(np.abs(values)).astype(float)).all()


def test_bundled_model_agrees_in_fp16(project: Path, shared: Path) -> None:
    package = load_package(project / "models" / "blood_cells")
    spec, fp16 = package.manifest.input, _fp16_artifact(package)
    photos = read_images(shared / "data" / "bccd" / "images", spec.height_px, spec.width_px)
    names = [output.name for output in package.manifest.decoder.outputs()]
    agreement = verify_fp16(
        package.path_of(fp16), package.directory / "model.onnx", names, photos[:6]
    )
    print(f"\nfp16 | blood_cells | {agreement}")


@heavy
@pytest.mark.parametrize(
    ("network", "images"),
    [
        ("ctdet_res_18", "coco_train128/images"),
        ("multi_pose_res_50", "coco_train128/images"),
        ("triplet_centernet52", "coco_train128/images"),
    ],
)
def test_upstream_networks_agree_in_fp16(
    upstream_state: Callable[[str], State],
    shared: Path,
    tmp_path: Path,
    network: str,
    images: str,
) -> None:
    torch.save(upstream_state(network), tmp_path / "model.pth")
    package = export_package(
        ExportConfig(name="fp16", version="1", precision="fp16"),
        tmp_path / "model.pth",
        tmp_path / "package",
        lambda _: None,
        shared / "data" / images,
    )
    print(f"\nfp16 | {network} | {_fp16_artifact(package).agreement}")


@heavy
@pytest.mark.parametrize(
    ("network", "images"),
    [("ctdet_dla_34", "coco_train128/images"), ("ddd_dla_34", "kitti/image_2")],
)
def test_networks_that_amplify_rounding_are_rejected(
    upstream_state: Callable[[str], State],
    shared: Path,
    tmp_path: Path,
    network: str,
    images: str,
) -> None:
    """The rule's weights make deformable convolutions amplify rounding errors even in float32."""
    torch.save(upstream_state(network), tmp_path / "model.pth")
    with pytest.raises(Fp16Error, match=r"detections .* in fp16"):
        export_package(
            ExportConfig(name="fp16", version="1", precision="fp16"),
            tmp_path / "model.pth",
            tmp_path / "package",
            lambda _: None,
            shared / "data" / images,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth"}
