"""Pre-annotate a task, and read the prediction with ``label-studio-sdk``.

The SDK has Label Studio's validation of predictions and its COCO export. The client of ML
backends is part of Label Studio itself, so the request is sent with ``requests``, as there.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image" model_score_threshold="{threshold}">
    <Label value="RBC"/>
    <Label value="White cell" predicted_values="WBC"/>
    <Label value="Platelets"/>
  </RectangleLabels>
</View>
"""


def export(config: str, task: dict[str, Any]) -> dict[str, Any]:
    """Return the COCO export of a project with one task."""
    with tempfile.TemporaryDirectory() as directory:
        tasks = Path(directory, "tasks.json")
        tasks.write_text(json.dumps([task]))
        converter = Converter(config, directory, download_resources=False)
        converter.convert_to_coco(tasks, directory, is_dir=False)
        exported: dict[str, Any] = json.loads(Path(directory, "result.json").read_text())
        return exported


def main(url: str, _: str, file: str, threshold: str, key: str) -> None:
    config = CONFIG.format(threshold=threshold)
    image = base64.b64encode(Path(file).read_bytes()).decode()
    task = {"id": 1, "data": {"image": f"data:image/jpeg;base64,{image}"}}
    body = {"tasks": [task], "label_config": config, "project": "1.1700000000"}
    address = f"{url}/label-studio/predict"
    response = requests.post(address, json=body, auth=("label studio", key), timeout=60)
    (prediction,) = response.json()["results"]
    errors = LabelInterface(config).validate_prediction(prediction, return_errors=True)
    assert errors == [], errors

    regions = prediction["result"]
    annotated = {"id": 1, "data": {"image": file}, "annotations": [{"id": 1, "result": regions}]}
    coco = export(config, annotated)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = []
    for region, annotation in zip(regions, coco["annotations"], strict=True):
        x, y, width, height = annotation["bbox"]
        name = names[annotation["category_id"]].replace("White cell", "WBC")
        box = [x, y, x + width, y + height]
        found.append({"class": name, "score": region["score"], "bbox": box})
    print(json.dumps({"COCO export": found}))


main(*sys.argv[1:])
