"""Inference requests: from a request of either transport to the output tensors."""

from collections.abc import Awaitable, Callable
from typing import Any

from service.async_detector import AsyncDetector
from service.detection_requests import Claim, RequestBody, RequestHead, accept_request
from service.observability.request_record import RequestRecord
from service.open_inference.models import ModelForm
from service.open_inference.repository import split_name
from service.open_inference.types import InferRequest, InferResponse, OutputTensor
from service.state import ServiceState

ReadRequest = Callable[[ModelForm[Any], Claim], Awaitable[InferRequest]]
"""Reader of the body of an inference request for a form of a model."""


async def infer(
    state: ServiceState,
    record: RequestRecord,
    name: str,
    version: str | None,
    read_head: Callable[[], RequestHead],
    read_request: ReadRequest,
) -> InferResponse:
    """Run an inference request, with the batching, admission and deadlines of ``/detect``.

    ``name``: of either form of a model; ``version``: None for the default. ``read_head`` returns
    what the transport states about deadline and priority; parameters of the body are added to it.

    Raises the errors of :mod:`service.errors`.
    """
    model, form_type = split_name(name)
    form: ModelForm[Any]
    request: InferRequest

    async def read_body(
        detector: AsyncDetector, head: RequestHead, claim: Claim
    ) -> RequestBody[Any]:
        nonlocal form, request
        form = form_type(detector, state.settings.max_images_per_request)
        request = await read_request(form, claim)
        return form.read(request, head)

    async with accept_request(
        state,
        record,
        model,
        version,
        read_head,
        read_body,
        inputs_per_item=form_type.inputs_per_image,
    ) as accepted:
        result = await form.run(accepted)
    manifest = accepted.detector.manifest
    record.record_prediction(manifest.name, result.batch_size, result.stage_s)
    outputs = {output.name: output.datatype for output in form.outputs}
    names = [output.name for output in request.outputs] or list(outputs)
    return InferResponse(
        name,
        manifest.version,
        [OutputTensor(name, outputs[name], result.outputs[name]) for name in names],
    )
