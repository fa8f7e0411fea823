"""Detect with ``Detection`` of ``deepstack-sdk``."""

import json
import sys

from deepstack_sdk import Detection, ServerConfig


def main(url: str, _: str, file: str, threshold: str, key: str) -> None:
    found = {}
    for name in (None, "blood_cells"):
        client = Detection(ServerConfig(url, api_key=key), name)
        found[f"model: {name}"] = [
            {
                "class": item.label,
                "score": item.confidence,
                "bbox": [item.x_min, item.y_min, item.x_max, item.y_max],
            }
            for item in client.detectObject(file, min_confidence=float(threshold))
        ]
    print(json.dumps(found))


main(*sys.argv[1:])
