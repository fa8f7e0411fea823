"""Detect with ``InferenceHTTPClient`` of Roboflow's ``inference-sdk``."""

import json
import sys
from typing import Any

import supervision
from inference_sdk import InferenceConfiguration, InferenceHTTPClient

MODEL = "blood_cells"


def detections(response: dict[str, Any]) -> list[dict[str, Any]]:
    read = supervision.Detections.from_inference(response)
    columns = (read.data["class_name"], read.confidence, read.xyxy)
    return [
        {"class": name, "score": score, "bbox": box}
        for name, score, box in zip(*(column.tolist() for column in columns), strict=True)
    ]


def main(url: str, _: str, file: str, threshold: str, key: str) -> None:
    found = {}
    for transport in ("legacy", "header"):
        client = InferenceHTTPClient(url, key)
        client.configure(
            InferenceConfiguration(
                confidence_threshold=float(threshold), api_key_transport=transport
            )
        )
        first, second = client.infer([file, file], model_id=MODEL)
        found |= {
            f"one image, key: {transport}": detections(client.infer(file, model_id=MODEL)),
            f"first of two, key: {transport}": detections(first),
            f"second of two, key: {transport}": detections(second),
        }
    print(json.dumps(found))


main(*sys.argv[1:])
