"""The two forms in which the protocol offers each model.

The **image form** has the name of the model. Its input ``image`` is a ``BYTES`` tensor (n,) of
encoded files, as ``/detect`` receives them. Its outputs are the detections, padded to the maximum
number of detections of the model (K).

The **tensor form** has the name of the model with the suffix ``.tensor``. It is the network of the
package: its input ``images`` is a ``UINT8`` tensor (n, height, width, 3) of RGB network inputs. Its
outputs are those of the ONNX file, in cells of the output map.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic

import numpy as np
from numpy.typing import NDArray

from labels.extreme_points import octagons
from model_package import Boxes3DDecoder, ExtremePointsDecoder, KeypointsDecoder, ModelManifest
from service.async_detector import AsyncDetector
from service.decoders.types import Detections
from service.detection_requests import AcceptedRequest, Item, RequestBody, RequestHead
from service.detector import Prediction
from service.errors import InvalidInferenceRequestError, ServiceError
from service.open_inference.parameters import read_head
from service.open_inference.tensors import read_files, read_images, refuse_shared_memory
from service.open_inference.types import (
    BYTES,
    Datatype,
    InferRequest,
    InputTensor,
    TensorMetadata,
)
from service.options import DetectParameters

TENSOR_SUFFIX = ".tensor"
"""Suffix of the tensor form; names of packages have no dots."""

_Arrays = Mapping[str, NDArray[Any]]
_DATATYPES: Mapping[str, Datatype] = {"float32": "FP32", "int32": "INT32"}


@dataclass(frozen=True)
class InferResult:
    """Outputs of a model (n, ...) by name, and what the record of the request needs."""

    outputs: _Arrays
    batch_size: int
    stage_s: Mapping[str, float]


class ModelForm(ABC, Generic[Item]):
    """One form of a loaded model.

    ``input`` is its only input, ``outputs`` are its outputs in their order; the first dimension of
    their shapes is the number of images. ``max_images``: largest number of images in a request.
    ``options``: names of the options among the parameters of requests. ``versions``: those of the
    model that are loaded, newest first.
    """

    input: TensorMetadata
    outputs: tuple[TensorMetadata, ...]
    options: ClassVar[frozenset[str]]
    suffix: ClassVar[str]
    """Suffix of the name of the package in the name of the form."""
    has_batch_dimension: ClassVar[bool]
    """Whether the first dimension is what Triton calls the batch dimension."""
    inputs_per_image: ClassVar[int | None]
    """Network inputs of each image; None if their number depends on the options."""

    def __init__(self, detector: AsyncDetector, max_images: int) -> None:
        self.detector = detector
        self.max_images = max_images
        self.versions: Sequence[str] = [detector.manifest.version]

    @property
    def name(self) -> str:
        """The name of the model in this form."""
        return self.detector.manifest.name + self.suffix

    def read(self, request: InferRequest, head: RequestHead) -> RequestBody[Item]:
        """Check a request and return its images, and its head with the options of the body.

        Raises :class:`InvalidInferenceRequestError`, :class:`InvalidOptionError` and
        :class:`UnsupportedOperationError`.
        """
        _check_outputs(request, self.outputs)
        return self._read_input(
            _only_input(request, self.input), read_head(request.parameters, self.options, head)
        )

    @abstractmethod
    def _read_input(self, tensor: InputTensor, head: RequestHead) -> RequestBody[Item]:
        """Return the images of the input."""

    @abstractmethod
    async def run(self, accepted: AcceptedRequest[Item]) -> InferResult:
        """Return the outputs for an accepted request.

        Raises the errors of :meth:`AsyncDetector.detect`.
        """


class ImageForm(ModelForm[bytes]):
    """Encoded images in, detections out."""

    options = frozenset(DetectParameters.model_fields)
    suffix = ""
    has_batch_dimension = False
    inputs_per_image = None

    def __init__(self, detector: AsyncDetector, max_images: int) -> None:
        super().__init__(detector, max_images)
        self._fields = _detection_fields(detector.manifest)
        self._top_k = detector.manifest.decoder.top_k
        self.input = TensorMetadata("image", BYTES, (-1,))
        self.outputs = (
            TensorMetadata("num_detections", "INT32", (-1, 1)),
            *(
                TensorMetadata(field.name, field.datatype, (-1, self._top_k, *field.shape))
                for field in self._fields
            ),
        )

    def _read_input(self, tensor: InputTensor, head: RequestHead) -> RequestBody[bytes]:
        files = read_files(tensor, self.input, self.max_images)
        return RequestBody(files, sum(map(len, files)), head)

    async def run(self, accepted: AcceptedRequest[bytes]) -> InferResult:
        """Return the detections, padded with zeros and the class -1."""
        predictions = await _detect_all(accepted)
        largest = max(predictions, key=lambda prediction: prediction.batch_size)
        found = [prediction.detections for prediction in predictions]
        outputs = {"num_detections": np.array([[len(image)] for image in found], np.int32)}
        for field in self._fields:
            outputs[field.name] = field.pad(found, self._top_k)
        return InferResult(outputs, largest.batch_size, largest.stage_s)


class TensorForm(ModelForm[NDArray[np.uint8]]):
    """Network inputs in, outputs of the network out."""

    options = frozenset({"flip"})
    suffix = TENSOR_SUFFIX
    has_batch_dimension = True
    inputs_per_image = 1

    def __init__(self, detector: AsyncDetector, max_images: int) -> None:
        super().__init__(detector, max_images)
        spec = detector.manifest.input
        self.input = TensorMetadata(spec.name, "UINT8", (-1, spec.height_px, spec.width_px, 3))
        self.outputs = tuple(
            TensorMetadata(output.name, _DATATYPES[output.dtype], (-1, *output.shape))
            for output in detector.manifest.decoder.outputs()
        )

    def _read_input(self, tensor: InputTensor, head: RequestHead) -> RequestBody[NDArray[np.uint8]]:
        images = read_images(tensor, self.input, self.max_images)
        return RequestBody(images, sum(image.nbytes for image in images), head)

    async def run(self, accepted: AcceptedRequest[NDArray[np.uint8]]) -> InferResult:
        """Return the outputs of the network."""
        result = await accepted.detector.infer(
            accepted.items, accepted.scheduling, flip=accepted.options.inputs.flip
        )
        return InferResult(result.outputs, result.batch_size, result.stage_s)


async def _detect_all(accepted: AcceptedRequest[bytes]) -> list[Prediction]:
    """Detect in each image; the first error cancels the others."""
    detector, options, scheduling = accepted.detector, accepted.options, accepted.scheduling
    if len(accepted.items) == 1:
        return [await detector.detect(accepted.items[0], options, scheduling)]

    async def detect_one(index: int, image: bytes) -> Prediction:
        try:
            return await detector.detect(image, options, scheduling)
        except ServiceError as error:
            error.detail = f"Image {index} of {len(accepted.items)}: {error.detail}"
            raise

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(detect_one(index, image))
                for index, image in enumerate(accepted.items)
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


@dataclass(frozen=True)
class _DetectionField:
    """One output of the image form.

    ``shape``: of one detection. ``values``: returns the array (n, ...) of the detections of one
    image. ``padding``: value of the rows after the last detection.
    """

    name: str
    values: Callable[[Any], NDArray[Any]]
    shape: tuple[int, ...] = ()
    datatype: Datatype = "FP32"
    padding: int = 0

    def pad(self, images: Sequence[Detections], count: int) -> NDArray[Any]:
        """Return the values of all images, (n, ``count``, ...)."""
        dtype = np.float32 if self.datatype == "FP32" else np.int32
        padded = np.full((len(images), count, *self.shape), self.padding, dtype)
        for row, image in zip(padded, images, strict=True):
            row[: len(image)] = self.values(image)
        return padded


_BOX_FIELDS = (
    _DetectionField("boxes", lambda found: found.boxes_xyxy, (4,)),
    _DetectionField("scores", lambda found: found.scores),
    _DetectionField("class_ids", lambda found: found.class_ids, datatype="INT32", padding=-1),
)
_BOX_3D_FIELDS = (
    _DetectionField("dimensions", lambda found: found.dimensions_hwl_m, (3,)),
    _DetectionField("locations", lambda found: found.locations_m, (3,)),
    _DetectionField("rotation_y", lambda found: found.rotations_y_rad),
    _DetectionField("alpha", lambda found: found.alphas_rad),
    _DetectionField("depth", lambda found: found.depths_m),
)
_EXTREME_POINT_FIELDS = (
    _DetectionField("extreme_points", lambda found: found.points, (4, 2)),
    _DetectionField("octagons", lambda found: octagons(found.points), (8, 2)),
)


def _detection_fields(manifest: ModelManifest) -> tuple[_DetectionField, ...]:
    """Return the outputs for the detections of a model; units as in :mod:`service.decoders`."""
    decoder = manifest.decoder
    fields: tuple[_DetectionField, ...] = _BOX_FIELDS
    if isinstance(decoder, KeypointsDecoder):
        shape = (len(decoder.keypoints), 3)
        fields += (_DetectionField("keypoints", _scored_keypoints, shape),)
    if isinstance(decoder, Boxes3DDecoder):
        fields += _BOX_3D_FIELDS
    if isinstance(decoder, ExtremePointsDecoder):
        fields += _EXTREME_POINT_FIELDS
    return fields


def _scored_keypoints(found: Any) -> NDArray[Any]:
    """Return (n, keypoints, 3): x, y in pixels of the upright image, and the score.

    All 0 for objects of classes without keypoints, as for unlabelled keypoints in COCO.
    """
    scored: NDArray[Any] = np.dstack([found.keypoints, found.keypoint_scores])
    return np.where(np.isnan(scored), 0, scored)


def _only_input(request: InferRequest, metadata: TensorMetadata) -> InputTensor:
    names = [tensor.name for tensor in request.inputs[:5]]
    if names != [metadata.name]:
        raise InvalidInferenceRequestError(
            f"The request has the inputs {names!r:.200}; the only input of this model is "
            f"{metadata.name!r}."
        )
    return request.inputs[0]


def _check_outputs(request: InferRequest, outputs: Sequence[TensorMetadata]) -> None:
    requested = [output.name for output in request.outputs]
    known = [output.name for output in outputs]
    for name in requested:
        if name not in known or requested.count(name) > 1:
            raise InvalidInferenceRequestError(
                f"The request asks for the outputs {requested!r:.200}; those of this model are "
                f"{', '.join(known)}. Give each once."
            )
    for output in request.outputs:
        refuse_shared_memory(output.parameters)
        for parameter in output.parameters:
            raise InvalidInferenceRequestError(
                f"Output {output.name}: parameter {parameter!r:.100} is not accepted. Leave it out."
            )
