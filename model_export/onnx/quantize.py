"""Quantization of the convolutions of an ONNX file to int8, with QuantizeLinear/DequantizeLinear.

TensorRT accepts only symmetric int8: zero points are 0, weights have one scale per output channel,
activations one scale, and biases stay float32. The inputs of convolutions are quantized and their
outputs are not: residual sums and the maps of the heads keep float32, whose range a scale for all
values would not resolve (large sizes, small offsets).

Scales are those of the extreme values in the calibration images. Percentiles would cut off the
largest sizes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from model_export.errors import QuantizationError
from model_export.verification.images import ImageArray
from model_package.onnxruntime import load_onnxruntime

ort = load_onnxruntime()

_QUANTIZED_OPERATORS = ("Conv", "ConvTranspose")


class Quantizer:
    """Makes int8 versions of one ONNX file from one calibration.

    The constructor runs the file on all ``images`` to measure the ranges of the activations;
    ``on_image`` is called after each. The
    graph has the input ``images``, uint8 RGB (N, height, width, 3). Raises
    :class:`QuantizationError` if ONNX Runtime cannot quantize it.
    """

    def __init__(
        self,
        onnx_file: Path,
        images: Sequence[ImageArray],
        on_image: Callable[[], object] = lambda: None,
    ) -> None:
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata

        self._model = onnx.load(onnx_file)
        _name_nodes(self._model)
        _merge_opset_imports(self._model)
        self.layers = tuple(_names_of_layers(self._model))
        """Names of the convolutions, in the order of the graph."""
        if not self.layers:
            raise QuantizationError(f"{onnx_file} has no convolution that could be quantized.")
        self._multiplications = _count_multiplications(self._model, self.layers, images[0])
        add_pre_process_metadata(self._model)  # exported graphs are optimized already
        with _translated_errors():
            self._ranges = _measure_ranges(self._model, images, on_image)

    def quantize(self, layers: Collection[str]) -> ModelProto:
        """Return the model with ``layers`` in int8 and all other layers in float32."""
        from onnxruntime.quantization import QuantType, quantize_static, save_tensors_data

        model = ModelProto()
        model.CopyFrom(self._model)
        with TemporaryDirectory(prefix="quantization-") as directory, _translated_errors():
            output, ranges = (Path(directory) / name for name in ("int8.onnx", "ranges.json"))
            save_tensors_data(self._ranges, ranges)
            quantize_static(
                model,
                output,
                None,
                calibration_cache_path=ranges,
                op_types_to_quantize=list(_QUANTIZED_OPERATORS),
                nodes_to_quantize=list(layers),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "QDQKeepRemovableActivations": True,
                    "OpTypesToExcludeOutputQuantization": list(_QUANTIZED_OPERATORS),
                },
            )
            quantized = onnx.load(output)
        _read_float_values(quantized, layers)
        return quantized

    def measure_effects(
        self, images: Sequence[ImageArray], on_layer: Callable[[], object] = lambda: None
    ) -> dict[str, float]:
        """Return the effect of each layer on the maps if it alone is quantized.

        The effect is the mean squared change of the outputs of the last convolutions relative to
        their variance, summed over these convolutions. ``on_layer`` is called after each layer.
        """
        outputs = list(_names_of_maps(self._model))
        expected = _run(self._model, outputs, images)
        effects = {}
        for layer in self.layers:
            changed = _run(self.quantize([layer]), outputs, images)
            effects[layer] = _relative_change(expected, changed)
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


class _CalibrationImages:
    """The images as batches of one; implements ``onnxruntime``'s ``CalibrationDataReader``."""

    def __init__(self, images: Sequence[ImageArray], on_image: Callable[[], object]) -> None:
        self._batches = self._iterate(images, on_image)

    def get_next(self) -> Mapping[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)

    @staticmethod
    def _iterate(
        images: Sequence[ImageArray], on_image: Callable[[], object]
    ) -> Iterator[Mapping[str, NDArray[np.uint8]]]:
        for image in images:
            yield {"images": image[np.newaxis]}
            on_image()


def _measure_ranges(
    model: ModelProto, images: Sequence[ImageArray], on_image: Callable[[], object]
) -> Any:
    """Return the extreme values of the inputs and outputs of all convolutions, as TensorsData."""
    from onnxruntime.quantization import create_calibrator

    with TemporaryDirectory(prefix="calibration-") as directory:
        path, augmented_path = (Path(directory) / name for name in ("in.onnx", "augmented.onnx"))
        onnx.save(model, path)
        calibrator = create_calibrator(path, list(_QUANTIZED_OPERATORS), str(augmented_path))
        calibrator.collect_data(_CalibrationImages(images, on_image))
        return calibrator.compute_data()


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any class, by the library
        raise QuantizationError(f"ONNX Runtime cannot quantize the file: {error}") from error


def _read_float_values(model: ModelProto, layers: Collection[str]) -> None:
    """Let all nodes but ``layers`` read the float32 values instead of the dequantized ones.

    ONNX Runtime quantizes a value for all of its readers, also for residual sums.
    """
    values = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    float_values = {
        node.output[0]: values[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values
    }
    for node in model.graph.node:
        if node.name not in layers:
            node.input[:] = [float_values.get(name, name) for name in node.input]


def _name_nodes(model: ModelProto) -> None:
    """Name the nodes without a name, by which layers are selected."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"


def _merge_opset_imports(model: ModelProto) -> None:
    """List each domain once: imported files repeat them, which ONNX Runtime's quantizer refuses."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()
    )


def _names_of_layers(model: ModelProto) -> Iterator[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _QUANTIZED_OPERATORS and node.input[1] in constants:
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


def _names_of_maps(model: ModelProto) -> Iterator[str]:
    """Yield the outputs of the convolutions that no other convolution follows."""
    before_convolution: set[str] = set()
    for node in reversed(model.graph.node):
        is_before = any(name in before_convolution for name in node.output)
        is_convolution = node.op_type in _QUANTIZED_OPERATORS
        if is_convolution and not is_before:
            yield node.output[0]
        if is_convolution or is_before:
            before_convolution.update(node.input)


def _run(
    model: ModelProto, outputs: Sequence[str], images: Sequence[ImageArray]
) -> list[list[NDArray[Any]]]:
    """Return inner values of the graph for each image."""
    extended = ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = ort.InferenceSession(extended.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(list(outputs), {"images": image[np.newaxis]}) for image in images]


def _relative_change(
    expected: Sequence[Sequence[NDArray[Any]]], received: Sequence[Sequence[NDArray[Any]]]
) -> float:
    maps = zip(zip(*expected, strict=True), zip(*received, strict=True), strict=True)
    return sum(
        float(np.square(np.subtract(after, before)).mean() / max(np.var(before), 1e-12))
        for before, after in maps
    )
