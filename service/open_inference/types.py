"""Plain types of the protocol: tensors, requests and responses, as REST and gRPC transport them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Datatype = str
"""A data type of the protocol, such as ``FP32``; the models use those of :data:`DTYPES` and
``BYTES``."""

DTYPES: Mapping[Datatype, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "FP32": np.dtype("<f4"),
}
"""NumPy types of the numeric tensors; values are little-endian on the wire."""

BYTES: Datatype = "BYTES"

Parameters = Mapping[str, Any]
"""Parameters of a request or a tensor: booleans, integers, strings and numbers by name."""


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output of a model; -1 in ``shape`` is a dimension of any size."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class InputTensor:
    """One input of a request, as received: nothing about it has been checked.

    ``data``: either the binary representation (little-endian, row-major; each element of ``BYTES``
    after its length as a 4-byte integer), or the elements in row-major order, those of ``BYTES`` as
    bytes.
    """

    name: str
    datatype: Datatype
    shape: Sequence[Any]
    data: memoryview | list[Any]
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class RequestedOutput:
    """One output that a request asks for."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class InferRequest:
    """The body of an inference request; all outputs are requested if ``outputs`` is empty."""

    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class OutputTensor:
    """One output of a response; ``values`` has the dtype of ``datatype`` in :data:`DTYPES`."""

    name: str
    datatype: Datatype
    values: NDArray[Any]


@dataclass(frozen=True)
class InferResponse:
    """The response to an inference request; ``outputs`` are in the order of the request."""

    model_name: str
    model_version: str
    outputs: Sequence[OutputTensor]
