"""The bundled model as a first-time user meets it: started by command, asked over HTTP."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.detect import request_detections
from training.blood_smears import render_smear


def serving_interpreter(project: Path) -> Path:
    """Python of the serving environment, which has no torch; the tests' own without one."""
    interpreter = project / ".venv" / "bin" / "python"
    return interpreter if interpreter.exists() else Path(sys.executable)


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``centernet-serve`` as `make serve` starts it but for the port and the size of batches."""
    process = subprocess.Popen(
        [serving_interpreter(project), "-c", "from service.cli import main; main()"],
        cwd=project,
        # Warm-up may find that batches gain nothing on this machine, but they must be right.
        env=os.environ
        | {"CENTERNET_PORT": "0", "CENTERNET_DEFAULT_MODEL": "blood_cells"}
        | {"CENTERNET_MAX_BATCH_SIZE": "4"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log = []
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
            break
    else:
        pytest.fail(f"the service did not start: {''.join(log)}")
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    while httpx.get(f"{found[1]}/readyz").status_code != 200:
        assert process.poll() is None, "the service ended before it was ready"
        time.sleep(0.1)
    yield found[1], process
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM), "SIGTERM must end it cleanly"
    reader.join(10)
    process.stderr.close()


@pytest.fixture(scope="module")
def url(service: tuple[str, subprocess.Popen[str]]) -> str:
    return service[0]


def iou(box: list[float], others: np.ndarray) -> np.ndarray:
    """Overlap of one (x1, y1, x2, y2) box with each of (n, 4)."""
    size = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    shared_area = size.prod(axis=1)
    return np.asarray(shared_area / ((box[2] - box[0]) * (box[3] - box[1]) + areas - shared_area))


def samples(project: Path) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Each sample picture with its exact boxes (x1, y1, x2, y2) by class name."""
    facts = json.loads((project / "docs/samples/blood_smears.json").read_text())
    names = {category["id"]: category["name"] for category in facts["categories"]}
    for image in facts["images"]:
        boxes: dict[str, list[list[float]]] = {}
        for truth in facts["annotations"]:
            if truth["image_id"] == image["id"]:
                x, y, width, height = truth["bbox"]
                boxes.setdefault(names[truth["category_id"]], []).append(
                    [x, y, x + width, y + height]
                )
        path = project / "docs/samples" / image["file_name"]
        yield path, {name: np.array(values) for name, values in boxes.items()}


def test_the_cells_of_the_sample_pictures_are_found(url: str, project: Path) -> None:
    found, all_cells, right, all_found = 0, 0, 0, 0
    for path, truth in samples(project):
        detections = request_detections(url, path.read_bytes())["detections"]
        assert detections
        for name, boxes in truth.items():
            ours = np.array([d["bbox"] for d in detections if d["class_name"] == name])
            all_cells += len(boxes)
            if len(ours):
                found += sum(iou(box, ours).max() >= 0.5 for box in boxes.tolist())
        for detection in detections:
            boxes = truth.get(detection["class_name"], np.empty((0, 4)))
            right += bool(len(boxes)) and iou(detection["bbox"], boxes).max() >= 0.5
            all_found += 1
    assert all_cells > 20
    assert found / all_cells >= 0.85
    assert right / all_found >= 0.85


def test_64_clients_with_64_pictures_get_the_answers_they_get_alone(url: str) -> None:
    bodies = []
    for seed in range(64):
        buffer = io.BytesIO()
        pixels = render_smear(np.random.default_rng(900 + seed)).pixels
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        bodies.append(buffer.getvalue())
    with httpx.Client(base_url=url, timeout=60) as client:
        alone = [client.post("/detect", content=body).json()["detections"] for body in bodies]
    assert len({json.dumps(detections) for detections in alone}) == 64
    barrier = threading.Barrier(64)

    def ask(body: bytes) -> httpx.Response:
        with httpx.Client(base_url=url, timeout=60) as client:
            barrier.wait()
            return client.post("/detect", content=body)

    with ThreadPoolExecutor(64) as clients:
        responses = list(clients.map(ask, bodies))
    assert [response.status_code for response in responses] == [200] * 64
    assert [response.json()["detections"] for response in responses] == alone
    sizes = [int(response.headers["X-Batch-Size"]) for response in responses]
    assert max(sizes) > 1, "batches must form"


def test_the_readme_s_request_gives_the_readme_s_answer(url: str, project: Path) -> None:
    """The command in the README, with its port changed; the answer less what differs per call."""
    readme = (project / "README.md").read_text()
    command = re.search(r"^curl .*$", readme, re.MULTILINE)
    answer = re.search(r"```json\n(.*?)```", readme, re.DOTALL)
    assert command is not None
    assert answer is not None
    result = subprocess.run(
        ["bash", "-c", command[0].replace("http://127.0.0.1:8000", url)],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    shown, received = json.loads(answer[1]), json.loads(result.stdout)
    assert shown.keys() == received.keys()
    assert shown["timing_ms"].keys() == received["timing_ms"].keys()
    assert shown["model"] == received["model"]
    assert shown["image"] == received["image"]
    for ours, theirs in zip(shown["detections"], received["detections"], strict=True):
        assert ours["class_name"] == theirs["class_name"]
        # Processors with other vector units round their sums differently.
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.02)
