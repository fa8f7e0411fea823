"""ONNX files in OpenVINO, without a package."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engines.openvino import compile_model, import_openvino
from service.engines.openvino_operators import operator_extensions


def compile_file(model: Path | bytes, longest_side_px: int) -> Any:
    """Compile a file, or a serialized model, in float32."""
    core = import_openvino().Core()
    for extension in operator_extensions(import_openvino(), longest_side_px):
        core.add_extension(extension)
    return compile_model(core, core.read_model(model), {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_runner(
    file: Path, output_names: Sequence[str], longest_side_px: int
) -> Callable[[NDArray[np.uint8]], list[dict[str, NDArray[Any]]]]:
    """Return a function from a batch of images to the detections of each."""
    compiled = compile_file(file, longest_side_px)

    def run(images: NDArray[np.uint8]) -> list[dict[str, NDArray[Any]]]:
        outputs = compiled([np.ascontiguousarray(images)])
        return [{name: outputs[name][row] for name in output_names} for row in range(len(images))]

    return run
