"""The service ``inference.GRPCInferenceService`` of the Open Inference Protocol and of Triton."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from service.detection_requests import Claim, RequestHead
from service.errors import (
    InvalidInferenceRequestError,
    ServiceError,
    UnsupportedOperationError,
)
from service.grpc import inference_pb2 as messages
from service.grpc.rpc import Method, Rpc
from service.grpc.wire import parse_infer_request, parse_message
from service.health import check_live, check_ready
from service.open_inference.inference import infer
from service.open_inference.models import ModelForm
from service.open_inference.repository import (
    all_statistics,
    find_form,
    load_model,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
    unload_model,
)
from service.open_inference.types import (
    BYTES,
    InferRequest,
    InferResponse,
    InputTensor,
    RequestedOutput,
)
from service.options import DetectParameters
from service.state import ServiceState

_PREFIX = "/inference.GRPCInferenceService/"
_SHARED_MEMORY_STATUS = ("SystemSharedMemoryStatus", "CudaSharedMemoryStatus")
_UNSUPPORTED = (
    *("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    *("TraceSetting", "LogSettings"),
    "ModelStreamInfer",
)
_REFLECTION = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
)
"""What tools such as grpcurl ask for first."""
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""The field of ``InferTensorContents`` for each datatype; FP16 and BF16 have none."""

_STREAM_PARAMETER = "triton_enable_empty_final_response"
"""Parameter for responses in a stream, which Triton's C++ client sends with every request."""

MAX_ID_LENGTH = 1000
"""Characters of the id of an inference request, which is returned in the response."""

_Request = TypeVar("_Request", bound=Message)


class InferenceService:
    """The methods of the service."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by path."""
        methods = {
            "ServerLive": Method(self._server_live, is_probe=True),
            "ServerReady": Method(self._server_ready, is_probe=True),
            "ModelReady": Method(_simple(messages.ModelReadyRequest, self._model_ready)),
            "ServerMetadata": Method(self._server_metadata),
            "ModelMetadata": Method(_simple(messages.ModelMetadataRequest, self._model_metadata)),
            "ModelInfer": Method(self._model_infer),
            "ModelConfig": Method(_simple(messages.ModelConfigRequest, self._model_config)),
            "ModelStatistics": Method(_simple(messages.ModelStatisticsRequest, self._statistics)),
            "RepositoryIndex": Method(_simple(messages.RepositoryIndexRequest, self._index)),
            "RepositoryModelLoad": Method(self._load),
            "RepositoryModelUnload": Method(self._unload),
            **{name: Method(_no_regions) for name in _SHARED_MEMORY_STATUS},
            **{name: Method(_unsupported(name)) for name in _UNSUPPORTED},
        }
        return {
            **{_PREFIX + name: method for name, method in methods.items()},
            **{path: Method(_unsupported(path)) for path in _REFLECTION},
        }

    # The requests of the first three have no fields: their messages are not read.

    async def _server_live(self, rpc: Rpc) -> bytes:
        del rpc
        try:
            check_live(self._state)
        except ServiceError:
            return _to_bytes(messages.ServerLiveResponse(live=False))
        return _to_bytes(messages.ServerLiveResponse(live=True))

    async def _server_ready(self, rpc: Rpc) -> bytes:
        del rpc
        try:
            await check_ready(self._state)
        except ServiceError:
            return _to_bytes(messages.ServerReadyResponse(ready=False))
        return _to_bytes(messages.ServerReadyResponse(ready=True))

    async def _server_metadata(self, rpc: Rpc) -> bytes:
        del rpc
        return _to_bytes(ParseDict(server_metadata(), messages.ServerMetadataResponse()))

    def _model_ready(self, request: messages.ModelReadyRequest) -> Message:
        form = find_form(self._state, request.name, request.version or None)
        return messages.ModelReadyResponse(ready=form.detector.problem is None)

    def _model_metadata(self, request: messages.ModelMetadataRequest) -> Message:
        form = find_form(self._state, request.name, request.version or None)
        return ParseDict(model_metadata(form), messages.ModelMetadataResponse())

    def _model_config(self, request: messages.ModelConfigRequest) -> Message:
        form = find_form(self._state, request.name, request.version or None)
        return ParseDict({"config": model_config(form)}, messages.ModelConfigResponse())

    def _statistics(self, request: messages.ModelStatisticsRequest) -> Message:
        if request.name:
            form = find_form(self._state, request.name, request.version or None)
            statistics = [model_statistics(form)]
        else:
            statistics = all_statistics(self._state)
        return ParseDict({"model_stats": statistics}, messages.ModelStatisticsResponse())

    def _index(self, request: messages.RepositoryIndexRequest) -> Message:
        index = repository_index(self._state, only_ready=request.ready)
        return ParseDict({"models": index}, messages.RepositoryIndexResponse())

    async def _load(self, rpc: Rpc) -> bytes:
        data = await rpc.read_message()
        request = parse_message(data, messages.RepositoryModelLoadRequest)
        await load_model(self._state, request.model_name, request.parameters)
        return _to_bytes(messages.RepositoryModelLoadResponse())

    async def _unload(self, rpc: Rpc) -> bytes:
        data = await rpc.read_message()
        request = parse_message(data, messages.RepositoryModelUnloadRequest)
        await unload_model(self._state, request.model_name, request.parameters)
        return _to_bytes(messages.RepositoryModelUnloadResponse())

    async def _model_infer(self, rpc: Rpc) -> bytes:
        data = await rpc.read_message()
        with self._state.bodies.hold() as claim:
            claim(len(data))
            message, raw = parse_infer_request(data)
            del data

            def read_head() -> RequestHead:
                return RequestHead(DetectParameters.model_validate({}), rpc.allowed_s)

            async def read_request(form: ModelForm[Any], claim: Claim) -> InferRequest:
                del form
                request = to_request(message, raw)
                # The elements of a BYTES tensor are copied.
                claim(sum(map(len, raw)) if _has_bytes(request) else 0)
                return request

            response = await infer(
                self._state,
                rpc.record,
                message.model_name,
                message.model_version or None,
                read_head,
                read_request,
            )
        return _to_bytes(_to_message(response, message.id))


def _simple(
    request_type: type[_Request], respond: Callable[[_Request], Message]
) -> Callable[[Rpc], Awaitable[bytes]]:
    """Return the handler of a method whose small request is parsed first."""

    async def handle(rpc: Rpc) -> bytes:
        return _to_bytes(respond(parse_message(await rpc.read_message(), request_type)))

    return handle


async def _no_regions(rpc: Rpc) -> bytes:
    """Return an empty message: there are no regions of shared memory."""
    del rpc
    return b""


def _unsupported(name: str) -> Callable[[Rpc], Awaitable[bytes]]:
    async def handle(rpc: Rpc) -> bytes:
        del rpc
        raise UnsupportedOperationError(
            f"{name} is not supported: this service has no shared memory, trace or log settings "
            "and streams. Send tensors in ModelInfer, of which a connection carries many at a time."
        )

    return handle


def to_request(message: messages.ModelInferRequest, raw: Sequence[memoryview]) -> InferRequest:
    """Return the request of a message, of which ``raw`` are the ``raw_input_contents``.

    Raises :class:`InvalidInferenceRequestError`.
    """
    if raw and len(raw) != len(message.inputs):
        raise InvalidInferenceRequestError(
            f"The request has {len(message.inputs)} inputs and {len(raw)} raw_input_contents; "
            "accepted are as many of them as inputs, or none."
        )
    if raw and any(tensor.HasField("contents") for tensor in message.inputs):
        raise InvalidInferenceRequestError(
            "The request has both raw_input_contents and contents. Send the inputs in one of them."
        )
    if len(message.id) > MAX_ID_LENGTH:
        raise InvalidInferenceRequestError(
            f"The id has {len(message.id)} characters; accepted are {MAX_ID_LENGTH}."
        )
    inputs = [
        InputTensor(
            tensor.name,
            tensor.datatype,
            tuple(tensor.shape),
            raw[index] if raw else _contents(tensor),
            _parameters(tensor.parameters),
        )
        for index, tensor in enumerate(message.inputs)
    ]
    outputs = [
        RequestedOutput(output.name, _parameters(output.parameters)) for output in message.outputs
    ]
    parameters = _parameters(message.parameters)
    parameters.pop(_STREAM_PARAMETER, None)
    return InferRequest(inputs, outputs, parameters)


def _contents(tensor: messages.ModelInferRequest.InferInputTensor) -> list[Any]:
    name = _CONTENTS.get(tensor.datatype)
    return list(getattr(tensor.contents, name)) if name else []


def _has_bytes(request: InferRequest) -> bool:
    return any(tensor.datatype == BYTES for tensor in request.inputs)


def _parameters(parameters: Mapping[str, messages.InferParameter]) -> dict[str, Any]:
    """Return the values by name; a parameter without a value is None, which no option accepts."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {
        name: getattr(parameters[name], kind) if kind else None for name, kind in chosen.items()
    }


def _to_message(response: InferResponse, request_id: str) -> messages.ModelInferResponse:
    return messages.ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=request_id,
        outputs=[
            messages.ModelInferResponse.InferOutputTensor(
                name=output.name, datatype=output.datatype, shape=output.values.shape
            )
            for output in response.outputs
        ],
        raw_output_contents=[output.values.tobytes() for output in response.outputs],
    )


def _to_bytes(message: Message) -> bytes:
    return message.SerializeToString()
