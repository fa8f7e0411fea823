"""Detect with the REST client and the gRPC client of ``kserve``."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import InferResponse, RequestedOutput

MODEL = "blood_cells"
OUTPUTS = ("num_detections", "boxes", "scores", "class_ids")


def detections(response: InferResponse, classes: list[str]) -> list[dict[str, Any]]:
    output = {output.name: output.as_numpy()[0] for output in response.outputs}
    (count,) = output["num_detections"]
    rows = zip(*(output[name][:count] for name in OUTPUTS[1:]), strict=True)
    return [
        {"class": classes[class_id], "score": float(score), "bbox": box.tolist()}
        for box, score, class_id in rows
    ]


async def call(
    url: str,
    grpc_address: str,
    image: InferInput,
    options: dict[str, str],
    headers: dict[str, str],
) -> dict[str, InferResponse]:
    responses = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, MODEL, headers)
        for kind, binary in {"JSON": False, "binary": True}.items():
            outputs = [RequestedOutput(name, {"binary_data": binary}) for name in OUTPUTS]
            request = InferRequest(MODEL, [image], parameters=options, request_outputs=outputs)
            responses[f"REST, {kind} outputs"] = await client.infer(url, request, MODEL, headers)
    async with InferenceGRPCClient(grpc_address) as client:
        metadata = tuple(headers.items())
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL, headers=metadata)
        request = InferRequest(MODEL, [image], parameters=options)
        responses["gRPC"] = await client.infer(request, headers=metadata)
    return responses


def main(url: str, grpc_address: str, file: str, threshold: str, key: str) -> None:
    image = InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([Path(file).read_bytes()], object))
    options = {"score_threshold": threshold}  # the gRPC client sends no floats
    headers = {"authorization": f"Bearer {key}"}
    classes = httpx.get(f"{url}/models/{MODEL}", headers=headers).json()["classes"]
    responses = asyncio.run(call(url, grpc_address, image, options, headers))
    found = {name: detections(response, classes) for name, response in responses.items()}
    print(json.dumps(found))


main(*sys.argv[1:])
