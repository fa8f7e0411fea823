"""The exported file: inputs, outputs, normalization and metadata."""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from model_export.graph.normalization import NORMALIZATIONS, Normalization, PixelNormalization
from model_package import ModelPackage


@pytest.fixture
def onnx_file(slim_package: ModelPackage) -> Path:
    return slim_package.path_of(slim_package.manifest.artifacts[0])


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalization_matches_float64(name: str) -> None:
    normalization = NORMALIZATIONS[name]
    pixels = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    ordered = pixels if normalization.channel_order == "rgb" else pixels[..., ::-1]
    scaled = ordered.transpose(0, 3, 1, 2) * normalization.scale
    mean = np.array(normalization.mean).reshape(3, 1, 1)
    std = np.array(normalization.std).reshape(3, 1, 1)
    local = PixelNormalization(normalization)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(local, (scaled - mean) / std, rtol=0, atol=5e-7)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_only_pixels_of_the_colour_of_the_mean_become_zero(order: Literal["rgb", "bgr"]) -> None:
    normalization = Normalization((9.5,) * 3, (1.0,) * 3, order, 1.0, mean_rgb=(9, 10, 11))
    pixels = torch.tensor([[[[9, 10, 11], [9, 10, 10], [11, 10, 9]]]], dtype=torch.uint8)
    normalized = PixelNormalization(normalization)(pixels)[0, :, 0].T
    assert normalized[0].tolist() == [0, 0, 0]
    assert (normalized[1:] != 0).all()


def test_rgb_channel_order_is_kept() -> None:
    normalization = Normalization(mean=(0.0,) * 3, std=(1 / 255,) * 3, channel_order="rgb")
    pixels = torch.tensor([[[[10, 20, 30]]]], dtype=torch.uint8)
    assert PixelNormalization(normalization)(pixels).flatten().tolist() == [10, 20, 30]


def test_input_and_outputs_match_the_manifest(slim_package: ModelPackage, onnx_file: Path) -> None:
    manifest = slim_package.manifest
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    height_px, width_px = manifest.input.height_px, manifest.input.width_px
    assert images.name == manifest.input.name
    assert images.type == "tensor(uint8)"
    assert images.shape == ["batch", height_px, width_px, 3]
    specs = manifest.decoder.outputs()
    assert [output.name for output in session.get_outputs()] == [spec.name for spec in specs]
    for batch in (1, 3):
        zeros = np.zeros((batch, height_px, width_px, 3), np.uint8)
        for spec, output in zip(specs, session.run(None, {"images": zeros}), strict=True):
            assert output.dtype == spec.dtype
            assert output.shape == (batch, *spec.shape)
            if spec.name == "scores":
                assert (np.diff(output, axis=1) <= 0).all()


def test_the_first_operator_is_a_cast(onnx_file: Path) -> None:
    graph = onnx.load(onnx_file).graph
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]


def test_the_file_contains_no_local_paths(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    for path in (Path(__file__).parents[2], Path(torch.__file__).parents[1], Path(sys.prefix)):
        assert str(path).encode() not in content
    for trace in (b'File "', b"site-packages", b"stack_trace"):
        assert trace not in content


def test_the_file_is_self_contained(slim_package: ModelPackage, onnx_file: Path) -> None:
    names = {path.name for path in slim_package.directory.iterdir()}
    references = slim_package.manifest.references
    assert references is not None
    # No external data.
    assert names == {"model.json", onnx_file.name, references.file, "report.html"}
    onnx.checker.check_model(onnx_file, full_check=True)
