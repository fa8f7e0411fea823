"""A network input, and the outputs that two servers return for it."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison.servers import send_request
from benchmarks.load import Target
from model_package import InputSpec
from service.open_inference.types import DTYPES
from service.self_test import draw_test_image

Arrays = dict[str, NDArray[np.generic]]


def write_image(path: Path, spec: InputSpec) -> Path:
    """Write the pixels of a synthetic image; return the path."""
    path.write_bytes(draw_test_image(spec.height_px, spec.width_px).tobytes())
    return path


def largest_difference(first: Target, second: Target) -> float:
    """Return the largest difference between the outputs of two servers for their first body."""
    one, other = (read_outputs(send_request(each, each.bodies[0])) for each in (first, second))
    if {name: values.shape for name, values in one.items()} != {
        name: values.shape for name, values in other.items()
    }:
        raise RuntimeError(f"the outputs are {list(one)} and {list(other)}, or differ in shape")
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def read_outputs(body: bytes) -> Arrays:
    """Return the outputs in a response with binary data by name."""
    document, start = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    arrays: Arrays = {}
    for output in document["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        values = np.frombuffer(body[start:end], DTYPES[output["datatype"]])
        arrays[output["name"]] = values.reshape(output["shape"])
        start = end
    return arrays
