"""The lowered deformable convolution equals ONNX Runtime's ``DeformConv``."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.engines.deform_conv_lowering import lower_deform_convs
from model_export.engines.errors import LoweringError

CHANNELS, OUTPUTS = 5, 4
SIDES: list[str | int] = ["height", "width"]


def one_deform_conv(
    element: int = TensorProto.FLOAT,
    sides: list[str | int] = SIDES,
    kernel: int = 3,
    **attributes: object,
) -> onnx.ModelProto:
    """Return a model of one deformable convolution with random weights."""
    generator = np.random.default_rng(5)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    taps = kernel * kernel
    weight = generator.normal(size=(OUTPUTS, CHANNELS, kernel, kernel)) / kernel
    weights = {"weight": weight, "bias": generator.normal(size=OUTPUTS)}
    attributes = {"kernel_shape": [kernel, kernel], "pads": [kernel // 2] * 4} | attributes
    node = helper.make_node(
        "DeformConv", ["x", "weight", "offsets", "bias", "mask"], ["y"], **attributes
    )
    inputs = {"x": CHANNELS, "offsets": 2 * taps, "mask": taps}
    graph = helper.make_graph(
        [node],
        "deform",
        [
            helper.make_tensor_value_info(name, element, ["batch", count, *sides])
            for name, count in inputs.items()
        ],
        [helper.make_tensor_value_info("y", element, ["batch", OUTPUTS, *sides])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, inputs: dict[str, NDArray]) -> NDArray:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def make_inputs(
    batch: int, height: int, width: int, reach: float, kernel: int = 3
) -> dict[str, NDArray]:
    """Return features, offsets of up to ``reach`` cells, and a mask."""
    generator = np.random.default_rng(height * width)
    taps = kernel * kernel
    shape = (height, width)
    return {
        "x": generator.normal(size=(batch, CHANNELS, *shape)).astype(np.float32),
        "offsets": generator.uniform(-reach, reach, (batch, 2 * taps, *shape)).astype(np.float32),
        "mask": generator.uniform(size=(batch, taps, *shape)).astype(np.float32),
    }


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` without deformable convolutions."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    assert lower_deform_convs(copy) == 1
    assert "DeformConv" not in {node.op_type for node in copy.graph.node}
    return copy


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 7), (1, 9), (5, 1), (96, 128)])
@pytest.mark.parametrize("reach", [0.0, 0.7, 40.0, 1e4])
def test_equals_onnx_runtime(height: int, width: int, reach: float, fixed: bool) -> None:
    model = one_deform_conv(sides=[height, width] if fixed else SIDES)
    inputs = make_inputs(2, height, width, reach)
    expected = run(model, inputs)
    # Points are float32 on both sides. One on a map of 128 cells, rounded three times, is off by
    # 1e-5 cells, and each output adds up 45 samples that are off by as much: 4.6e-5 was measured.
    np.testing.assert_allclose(run(lowered(model), inputs), expected, rtol=0, atol=1e-4)


def test_integer_offsets_equal_onnx_runtime() -> None:
    model = one_deform_conv(sides=[8, 8])
    inputs = make_inputs(1, 8, 8, 3.0)
    inputs["offsets"] = np.round(inputs["offsets"])
    np.testing.assert_allclose(run(lowered(model), inputs), run(model, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 5])
def test_other_kernel_sizes_equal_onnx_runtime(kernel: int) -> None:
    model = one_deform_conv(kernel=kernel)
    inputs = make_inputs(1, 9, 11, 1.5, kernel)
    np.testing.assert_allclose(run(lowered(model), inputs), run(model, inputs), rtol=0, atol=2e-5)


def test_a_dynamic_model_takes_every_size_and_batch() -> None:
    model, other = one_deform_conv(), lowered(one_deform_conv())
    for batch, height, width in ((1, 4, 4), (3, 32, 8), (2, 5, 31)):
        inputs = make_inputs(batch, height, width, 2.0)
        np.testing.assert_allclose(run(other, inputs), run(model, inputs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("fixed", [True, False])
def test_fp16_models_sample_in_float32(fixed: bool) -> None:
    """The error against the float32 model is the rounding of inputs and products."""
    sides: list[str | int] = [48, 128] if fixed else SIDES
    halves = one_deform_conv(TensorProto.FLOAT16, sides)
    inputs = make_inputs(2, 48, 128, 2.0)
    rounded = {name: values.astype(np.float16) for name, values in inputs.items()}
    widened = {name: values.astype(np.float32) for name, values in rounded.items()}
    expected = run(one_deform_conv(sides=sides), widened)
    output = run(lowered(halves), rounded)
    assert output.dtype == np.float16
    # Outputs of up to 8, and 45 products in each, rounded to 11 bits: 0.0023 was measured. Points
    # in half precision make it 0.07.
    np.testing.assert_allclose(output.astype(np.float32), expected, rtol=0, atol=0.005)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"pads": [0, 0, 0, 0]},
    ],
)
def test_rejects_other_attributes_with_the_name_of_the_node(
    attributes: dict[str, list[int]],
) -> None:
    model = one_deform_conv(sides=[9, 9])
    model.graph.node[0].name = "layer_7"
    for name, value in attributes.items():
        for entry in [entry for entry in model.graph.node[0].attribute if entry.name == name]:
            model.graph.node[0].attribute.remove(entry)
        model.graph.node[0].attribute.append(helper.make_attribute(name, value))
    with pytest.raises(LoweringError, match=r"DeformConv 'layer_7' .*--backend tensorrt"):
        lower_deform_convs(model)


def test_leaves_other_models_unchanged() -> None:
    model = one_deform_conv()
    model.graph.node[0].op_type = "Other"
    before = model.SerializeToString(deterministic=True)
    assert lower_deform_convs(model) == 0
    assert model.SerializeToString(deterministic=True) == before
