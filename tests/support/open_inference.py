"""Requests of the Open Inference Protocol as clients send them, and detections in its tensors."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from support.serving import RunningServer

INFER, INFER_TENSOR = "/v2/models/painted/infer", "/v2/models/painted.tensor/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"


def with_lengths(*elements: bytes) -> bytes:
    """Return the binary representation of a ``BYTES`` tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary_body(document: Mapping[str, Any], *parts: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a body with binary data after the JSON, and its header."""
    text = json.dumps(document).encode()
    return b"".join([text, *parts]), {HEADER_LENGTH: str(len(text))}


def image_input(*images: bytes, **changes: Any) -> tuple[dict[str, Any], bytes]:
    """Return the input of the image form, and its binary data; ``changes`` of its fields."""
    data = with_lengths(*images)
    tensor = {
        "name": "image",
        "shape": [len(images)],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    return tensor | changes, data


def tensor_input(images: NDArray[np.uint8], **changes: Any) -> tuple[dict[str, Any], bytes]:
    """Return the input of the tensor form, and its binary data; ``changes`` of its fields."""
    tensor = {
        "name": "images",
        "shape": list(images.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": images.nbytes},
    }
    return tensor | changes, images.tobytes()


def infer(
    server: RunningServer,
    tensor: tuple[dict[str, Any], bytes],
    path: str = INFER,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> httpx.Response:
    """Send one input; ``fields`` are further fields of the JSON."""
    body, length = binary_body({"inputs": [tensor[0]], **fields}, tensor[1])
    return server.client.post(path, content=body, headers={**length, **(headers or {})})


def arrays_of(response: httpx.Response) -> dict[str, NDArray[Any]]:
    """Return the outputs of a response by name, from values or from binary data."""
    dtypes = {"FP32": np.dtype("<f4"), "INT32": np.dtype("<i4")}
    size = int(response.headers.get(HEADER_LENGTH, len(response.content)))
    start, arrays = size, {}
    for output in json.loads(response.content[:size])["outputs"]:
        dtype = dtypes[output["datatype"]]
        if "data" in output:
            assert "parameters" not in output
            values = np.array(output["data"], dtype)
        else:
            end = start + output["parameters"]["binary_data_size"]
            values = np.frombuffer(response.content[start:end], dtype)
            start = end
        arrays[output["name"]] = values.reshape(output["shape"])
    assert start == len(response.content)
    return arrays


def detections_of(
    arrays: Mapping[str, Any], classes: Sequence[str], index: int = 0
) -> list[dict[str, Any]]:
    """Return the detections of one image in the form of ``/detect``; checks the padding."""
    count = int(arrays["num_detections"][index, 0])
    assert (arrays["class_ids"][index, count:] == -1).all()
    for name in arrays.keys() - {"num_detections", "class_ids"}:
        assert not arrays[name][index, count:].any(), name
    detections = []
    for row in range(count):
        class_id = int(arrays["class_ids"][index, row])
        detection = {
            "class_id": class_id,
            "class_name": classes[class_id],
            "score": round(float(arrays["scores"][index, row]), 6),
            "bbox": _rounded(arrays["boxes"][index, row], 3),
        }
        if "keypoints" in arrays:
            points = arrays["keypoints"][index, row]
            detection["keypoints"] = [
                [*_rounded(point[:2], 3), round(float(point[2]), 6)] for point in points
            ]
        for name, field in (("extreme_points", "extreme_points"), ("octagons", "octagon")):
            if name in arrays:
                detection[field] = [_rounded(point, 3) for point in arrays[name][index, row]]
        if "dimensions" in arrays:
            detection["box3d"] = {
                "dimensions_hwl": _rounded(arrays["dimensions"][index, row], 4),
                "location_xyz": _rounded(arrays["locations"][index, row], 4),
                "rotation_y": round(float(arrays["rotation_y"][index, row]), 4),
                "alpha": round(float(arrays["alpha"][index, row]), 4),
                "depth": round(float(arrays["depth"][index, row]), 4),
            }
        detections.append(detection)
    return detections


def assert_same(found: Any, expected: Any) -> None:
    """Compare detections of FP32 tensors with those of ``/detect``, which rounds to 0.001 pixels.

    FP32 rounds before, by up to 0.00006 for coordinates below 1024, which may change that digit.
    Scores are FP32 in both.
    """
    if isinstance(expected, float | int):
        assert abs(found - expected) < 0.0011
    elif isinstance(expected, str):
        assert found == expected
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        assert found.get("score") == expected.get("score")
        for name, value in expected.items():
            assert_same(found[name], value)
    else:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def _rounded(values: Any, decimals: int) -> list[float]:
    return [round(float(value), decimals) for value in values]
