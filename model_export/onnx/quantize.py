"""Quantization of the convolutions of an ONNX file to int8, with QuantizeLinear/DequantizeLinear.

TensorRT accepts only symmetric int8: zero points are 0, weights have one scale per output channel,
activations one scale, and biases stay float32. The inputs of convolutions are quantized and their
outputs are not: residual sums and the maps of the heads keep float32, whose range a scale for all
values would not resolve (large sizes, small offsets).

Scales are those of the extreme values in the calibration images. Percentiles would cut off the
largest sizes. Where the channels of a value have different ranges, as before depthwise
convolutions, they are divided by factors before the rounding and the weights that read them are
multiplied by these: Nagel et al., Data-Free Quantization through Weight Equalization and Bias
Correction, arXiv 1906.04721, section 4.1; Xiao et al., SmoothQuant, arXiv 2211.10438, section 4.

Rounding also shifts the means of the outputs of a layer, because the errors of its weights are the
same in every cell. The mean errors are measured and subtracted from the biases: Nagel et al.,
section 4.2.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from model_export.errors import QuantizationError
from model_export.verification.images import ImageArray
from model_package.onnxruntime import load_onnxruntime

ort = load_onnxruntime()

_QUANTIZED_OPERATORS = ("Conv", "ConvTranspose")
_MAX_INT8 = 127
_SMOOTHING = (0.5, 0.75, 1.0)
"""Exponents of the ranges of the channels in their factors; 1 makes all ranges equal."""
_HEADROOM = 1.25
"""Factor on the ranges of divided channels. In other images than those of the calibration, one of
many channels exceeds its range sooner than the largest value of all channels is exceeded."""
_MIN_RATIO = 1e-4
"""Smallest range of a channel relative to the largest one, and the same of weights: a channel that
is always 0 needs no resolution."""

_TINY = 1e-12
"""Instead of a divisor of 0."""

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Channels:
    """Statistics of the channels of a value over the calibration images; both (channels,)."""

    ranges: _Floats
    """Largest absolute values."""
    mean_squares: _Floats


@dataclass(frozen=True)
class _Rounding:
    """How a value is rounded to int8."""

    factors: _Floats | None
    """Divisors of the channels, (channels,)."""
    scale: np.float32
    """Step between two int8 values, after the division."""


class Quantizer:
    """Makes int8 versions of one ONNX file from one calibration.

    The constructor runs the file on all ``images`` to measure the ranges of the activations;
    ``on_image`` is called after each. The graph has the input ``images``, uint8 RGB (N, height,
    width, 3). Raises :class:`QuantizationError` if it has no convolution with constant weights.
    """

    def __init__(
        self,
        onnx_file: Path,
        images: Sequence[ImageArray],
        on_image: Callable[[], object] = lambda: None,
    ) -> None:
        self._model = onnx.load(onnx_file)
        _name_nodes(self._model)
        self.layers = tuple(_names_of_layers(self._model))
        """Names of the convolutions, in the order of the graph."""
        if not self.layers:
            raise QuantizationError(f"{onnx_file} has no convolution that could be quantized.")
        self._multiplications = _count_multiplications(self._model, self.layers, images[0])
        constants = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._weights: dict[str, _Floats] = {}
        self._biases: dict[str, _Floats] = {}
        readers: dict[str, list[_Floats]] = {}
        for node in self._model.graph.node:
            if node.name in self.layers:
                self._weights[node.name], *biases = (
                    numpy_helper.to_array(constants[name]) for name in node.input[1:]
                )
                weights = _by_input(node, self._weights[node.name])
                readers.setdefault(node.input[0], []).append(weights)
                no_biases = np.zeros(prod(weights.shape[:2]), np.float32)
                self._biases[node.name] = biases[0] if biases else no_biases
        channels = _measure_channels(self._model, list(readers), images, on_image)
        self._roundings = {
            value: _choose_rounding(channels[value], weights) for value, weights in readers.items()
        }

    def correct_means(
        self, images: Sequence[ImageArray], on_image: Callable[[], object] = lambda: None
    ) -> None:
        """Subtract the mean errors of the output channels of each layer from its biases in int8.

        They are measured on ``images``, for each layer alone: with the float32 input in float32 and
        in int8. ``on_image`` is called after each image.
        """
        model = ModelProto()
        model.CopyFrom(self._model)
        del model.graph.node[:]
        rounded: set[str] = set()
        outputs = []
        for node in self._model.graph.node:
            model.graph.node.append(node)
            if node.name in self.layers:
                output = node.output[0]
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.name, copy.output[0] = f"{node.name}:copy", f"{output}:quantized"
                self._add_int8(model, node.name, copy, rounded)
                for operator, inputs, result in (
                    ("Sub", [f"{output}:quantized", output], f"{output}:error"),
                    ("GlobalAveragePool", [f"{output}:error"], f"{output}:mean_error"),
                ):
                    model.graph.node.append(helper.make_node(operator, inputs, [result]))
                outputs.append(f"{output}:mean_error")
        rows = []
        for row in _run(model, outputs, images):
            rows.append([array.reshape(-1) for array in row])
            on_image()
        for layer, errors in zip(self.layers, zip(*rows, strict=True), strict=True):
            self._biases[layer] = self._biases[layer] - np.mean(errors, axis=0)

    def quantize(self, layers: Collection[str]) -> ModelProto:
        """Return the model with ``layers`` in int8 and all other layers in float32."""
        model = ModelProto()
        model.CopyFrom(self._model)
        nodes = list(model.graph.node)
        del model.graph.node[:]
        rounded: set[str] = set()
        for node in nodes:
            if node.name in layers:
                self._add_int8(model, node.name, node, rounded)
            else:
                model.graph.node.append(node)
        _remove_unused_constants(model)
        return model

    def _add_int8(self, model: ModelProto, layer: str, node: NodeProto, rounded: set[str]) -> None:
        """Add ``node``, which computes ``layer``, with int8 inputs; ``rounded``: values that are.

        ``node`` is changed.
        """
        value = node.input[0]
        weights, biases = self._weights[layer], self._biases[layer]
        if value not in rounded:
            _add_rounding(model, value, self._roundings[value], weights.ndim)
            rounded.add(value)
        _add_weights(model, node, weights, self._roundings[value].factors)
        model.graph.initializer.append(numpy_helper.from_array(biases, f"{node.name}:bias"))
        node.input[:] = [f"{value}:rounded", f"{node.name}:weights", f"{node.name}:bias"]
        model.graph.node.append(node)

    def measure_effects(
        self, error_of: Callable[[bytes], float], on_layer: Callable[[], object] = lambda: None
    ) -> dict[str, float]:
        """Return the effect of each layer: the error of the model if it alone is quantized.

        ``error_of`` returns the error of a serialized model; ``on_layer`` is called after each
        layer.
        """
        effects = {}
        for layer in self.layers:
            effects[layer] = error_of(self.quantize([layer]).SerializeToString())
            on_layer()
        return effects

    def select_float_layers(self, effects: Mapping[str, float], share: float) -> list[str]:
        """Select layers that keep float32, with at most ``share`` of all multiplications.

        They are taken by descending effect per multiplication; those that exceed the share are
        left out. Returned in the order of the graph.
        """
        limit = share * sum(self._multiplications.values())
        used = 0
        selected: set[str] = set()
        for layer in sorted(
            self.layers, key=lambda layer: -effects[layer] / self._multiplications[layer]
        ):
            if used + self._multiplications[layer] <= limit:
                used += self._multiplications[layer]
                selected.add(layer)
        return [layer for layer in self.layers if layer in selected]


def _choose_rounding(channels: _Channels, readers: Sequence[_Floats]) -> _Rounding:
    """Choose the factors of the channels of a value by the expected error of its ``readers``.

    The factor of a channel is a power of its range divided by the complementary power of its
    largest weight: the larger it is, the coarser are the weights and the finer the activations.
    ``readers``: weights from :func:`_by_input`.
    """
    largest = [np.abs(weights).max((1, 3)).reshape(-1) for weights in readers]
    weight_ranges = np.max([one / max(one.max(), _TINY) for one in largest], axis=0)
    weight_ranges = np.maximum(weight_ranges, _MIN_RATIO)
    ranges = np.maximum(channels.ranges, _MIN_RATIO * max(channels.ranges.max(), _TINY))
    candidates = [_with_scale(None, ranges)]
    for power in _SMOOTHING:
        factors = ranges**power / weight_ranges ** (1 - power)
        candidates.append(_with_scale(factors, _HEADROOM * ranges))
    return min(
        candidates,
        key=lambda rounding: sum(_expected_error(one, channels, rounding) for one in readers),
    )


def _with_scale(factors: _Floats | None, ranges: _Floats) -> _Rounding:
    largest = ranges.max() if factors is None else (ranges / factors).max()
    return _Rounding(factors, np.float32(largest / _MAX_INT8))


def _expected_error(weights: _Floats, channels: _Channels, rounding: _Rounding) -> float:
    """Return the mean squared error of the outputs of a layer relative to their mean square.

    Rounding errors are taken as independent and uniform, the values of different inputs as
    uncorrelated. ``weights`` as from :func:`_by_input`.
    """
    shape = (len(weights), 1, -1, 1)
    factors = np.ones_like(channels.ranges) if rounding.factors is None else rounding.factors
    multiplied = weights * factors.reshape(shape)
    divided = (channels.mean_squares / np.square(factors)).reshape(shape)
    signal = (np.square(multiplied) * divided).sum()
    of_activations = np.square(rounding.scale) * np.square(multiplied).sum()
    steps = np.abs(multiplied).max((2, 3), keepdims=True) / _MAX_INT8
    of_weights = weights.shape[3] * (np.square(steps) * divided).sum()
    return float((of_activations + of_weights) / 12 / max(signal, _TINY))


def _by_input(node: NodeProto, weights: _Floats) -> _Floats:
    """Return weights as (groups, outputs of a group, inputs of a group, size of the kernel)."""
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    parts = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return parts if node.op_type == "Conv" else parts.swapaxes(1, 2)


def _multiply_by_input(node: NodeProto, weights: _Floats, factors: _Floats) -> _Floats:
    """Multiply the weights of each input channel by its factor."""
    parts = _by_input(node, weights)
    product = parts * factors.reshape(len(parts), 1, -1, 1)
    product = product if node.op_type == "Conv" else product.swapaxes(1, 2)
    return product.reshape(weights.shape)


def _add_rounding(model: ModelProto, value: str, rounding: _Rounding, rank: int) -> None:
    """Add the nodes that divide the channels of ``value`` and round it: ``value:rounded``."""
    source = value
    if rounding.factors is not None:
        source = f"{value}:divided"
        reciprocals = (1 / rounding.factors).reshape(1, -1, *[1] * (rank - 2))
        _add_node(model, "Mul", source, value, reciprocals)
    _add_node(model, "QuantizeLinear", f"{value}:int8", source, rounding.scale, np.int8(0))
    _add_node(
        model, "DequantizeLinear", f"{value}:rounded", f"{value}:int8", rounding.scale, np.int8(0)
    )


def _add_weights(
    model: ModelProto, node: NodeProto, weights: _Floats, factors: _Floats | None
) -> None:
    """Add the weights of ``node`` in int8 with a scale for each output channel."""
    if factors is not None:
        weights = _multiply_by_input(node, weights, factors)
    axis = 0 if node.op_type == "Conv" else 1
    others = tuple(other for other in range(weights.ndim) if other != axis)
    scales = np.abs(weights).max(others) / np.float32(_MAX_INT8)
    scales[scales == 0] = 1
    rounded = np.rint(weights / np.expand_dims(scales, others)).astype(np.int8)
    name = f"{node.name}:weights"
    model.graph.initializer.append(numpy_helper.from_array(rounded, f"{name}:int8"))
    zero_points = np.zeros(len(scales), np.int8)
    _add_node(model, "DequantizeLinear", name, f"{name}:int8", scales, zero_points, axis=axis)


def _add_node(
    model: ModelProto,
    operator: str,
    output: str,
    source: str,
    *constants: NDArray[Any] | np.generic,
    **attributes: Any,
) -> None:
    """Add a node that reads ``source`` and ``constants``, which become initializers."""
    names = [f"{output}:{index}" for index in range(len(constants))]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values), name)
        for values, name in zip(constants, names, strict=True)
    )
    model.graph.node.append(
        helper.make_node(operator, [source, *names], [output], output, **attributes)
    )


def _remove_unused_constants(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def _measure_channels(
    model: ModelProto,
    values: Sequence[str],
    images: Sequence[ImageArray],
    on_image: Callable[[], object],
) -> dict[str, _Channels]:
    """Measure the channels of ``values`` on ``images``, one by one."""
    extended = ModelProto()
    extended.CopyFrom(model)
    for value in values:
        for operator, inputs, output in (
            ("Abs", [value], "absolute"),
            ("GlobalMaxPool", [f"{value}:absolute"], "range"),
            ("Mul", [value, value], "square"),
            ("GlobalAveragePool", [f"{value}:square"], "mean_square"),
        ):
            node = helper.make_node(operator, inputs, [f"{value}:{output}"])
            extended.graph.node.append(node)
    outputs = [f"{value}:{name}" for value in values for name in ("range", "mean_square")]
    rows = []
    for row in _run(extended, outputs, images):
        rows.append([array.reshape(-1) for array in row])
        on_image()
    statistics = [np.stack(column) for column in zip(*rows, strict=True)]
    return {
        value: _Channels(statistics[2 * index].max(0), statistics[2 * index + 1].mean(0))
        for index, value in enumerate(values)
    }


def _name_nodes(model: ModelProto) -> None:
    """Name the nodes without a name, by which layers are selected."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"


def _names_of_layers(model: ModelProto) -> Iterator[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _QUANTIZED_OPERATORS and constants.issuperset(node.input[1:]):
            yield node.name


def _count_multiplications(
    model: ModelProto, layers: Collection[str], image: ImageArray
) -> dict[str, int]:
    """Return the multiplications of each layer for ``image``.

    Sizes are measured, because imported files have values whose shape cannot be inferred.
    """
    weights = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.name in layers]
    extended = ModelProto()
    extended.CopyFrom(model)
    for node in nodes:
        # Each cell of the output of a convolution, or of the input of a transposed one.
        value = node.output[0] if node.op_type == "Conv" else node.input[0]
        shape = onnx.helper.make_node("Shape", [value], [f"{node.name}:shape"])
        extended.graph.node.append(shape)
    (shapes,) = _run(extended, [f"{node.name}:shape" for node in nodes], [image])
    return {
        node.name: weights[node.input[1]] * prod(shape[2:].tolist())
        for node, shape in zip(nodes, shapes, strict=True)
    }


def _run(
    model: ModelProto, outputs: Sequence[str], images: Sequence[ImageArray]
) -> Iterator[list[NDArray[Any]]]:
    """Yield inner values of the graph for each image."""
    extended = ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = ort.InferenceSession(extended.SerializeToString(), providers=["CPUExecutionProvider"])
    for image in images:
        yield session.run(list(outputs), {"images": image[np.newaxis]})
