"""Deformable convolution: comparison with upstream, in PyTorch and in ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.networks.deformable import DeformableConvolution, deform_conv2d
from model_export.onnx.export import dynamic_batch, to_onnx

ARGUMENTS = ("x", "offset", "mask", "w", "b")


@pytest.fixture(scope="module")
def golden(upstream: Path) -> Callable[[str], Tensor]:
    with np.load(upstream / "goldens" / "unit_decode_xz.npz") as file:
        arrays: dict[str, NDArray] = {key: file[key] for key in file.files if "dcn" in key}
    return lambda key: torch.from_numpy(arrays[key])


@pytest.fixture
def layer(golden: Callable[[str], Tensor]) -> DeformableConvolution:
    layer = DeformableConvolution(6, 5)
    names = ("weight", "bias", "conv_offset_mask.weight", "conv_offset_mask.bias")
    layer.load_state_dict(
        {
            name.replace("conv_offset_mask", "offsets_and_mask"): golden(f"dcnmod_{name}")
            for name in names
        }
    )
    return layer.eval()


def _run_onnx(layer: nn.Module, x: Tensor) -> NDArray:
    example = x.expand(2, -1, -1, -1).clone()
    model = to_onnx(layer, (example,), ["x"], ["y"], (dynamic_batch(),))
    assert sum(node.op_type == "DeformConv" for node in model.graph.node) == 1
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("name", ["dcn_a", "dcn_b"])  # b has two groups of offsets
def test_deform_conv2d_matches_upstream(golden: Callable[[str], Tensor], name: str) -> None:
    local = deform_conv2d(*(golden(f"{name}_{argument}") for argument in ARGUMENTS))
    np.testing.assert_allclose(local.numpy(), golden(f"{name}_out").numpy(), rtol=0, atol=2e-6)


def test_layer_matches_upstream(
    golden: Callable[[str], Tensor], layer: DeformableConvolution
) -> None:
    x, expected = golden("dcnmod_x"), golden("dcnmod_out").numpy()
    with torch.inference_mode():
        np.testing.assert_allclose(layer(x).numpy(), expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(_run_onnx(layer, x), expected, rtol=0, atol=1e-5)


def test_zero_offsets_give_an_ordinary_convolution() -> None:
    torch.manual_seed(4)
    x, weight, bias = torch.randn(2, 3, 7, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
    offsets, mask = torch.zeros(2, 18, 7, 5), torch.ones(2, 9, 7, 5)
    expected = nn.functional.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(deform_conv2d(x, offsets, mask, weight, bias), expected)


def test_initial_output_is_half_an_ordinary_convolution() -> None:
    layer = DeformableConvolution(3, 4)
    x = torch.randn(1, 3, 6, 6)
    expected = nn.functional.conv2d(x, layer.weight, padding=1) / 2
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.offsets_and_mask.weight.grad is not None
