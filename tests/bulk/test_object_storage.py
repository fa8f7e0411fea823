"""``centernet-detect-ray`` with images and results in an S3 bucket of a local server, moto."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, S3FileSystem
from support.processes import free_port
from support.serving import wait_until

from benchmarks.ray_data.images import write_images
from service.detector import load_detector

pytest.importorskip("ray", reason="ray is not installed (extra ray)")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
SERVER = Path(".venv-s3/bin/moto_server")
IMAGES, PER_FILE = 8, 2
THRESHOLD = 0.3


@pytest.fixture
def endpoint(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an S3 server with the bucket ``bucket``; the environment has its credentials."""
    if not (project / SERVER).is_file():
        pytest.skip("moto is not installed: `make test-ray` installs it")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "CENTERNET_BACKEND": "onnxruntime-cpu",
    }.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "server.log").open("wb") as log:
        command = [str(project / SERVER), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: responds(url), seconds=60)
        assert httpx.put(f"{url}/bucket").status_code == 200
        yield url
    finally:
        process.kill()
        process.wait()


def responds(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def read_rows(bucket: S3FileSystem) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table("bucket/results", filesystem=bucket).to_pylist()
    return rows


def test_images_and_results_are_in_object_storage(
    project: Path, tmp_path: Path, endpoint: str
) -> None:
    local = tmp_path / "images"
    write_images(project / "docs/samples/blood_smear_1.jpg", local, IMAGES)
    (local / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    bucket = S3FileSystem(endpoint_override=endpoint)
    for path in local.iterdir():
        with bucket.open_output_stream(f"bucket/images/{path.name}") as file:
            file.write(path.read_bytes())
    package = project / "models/blood_cells"
    command = [sys.executable, "-m", "bulk", "s3://bucket/images", "--package", str(package)]
    command += ["--output", "s3://bucket/results", "--images-per-file", str(PER_FILE)]
    command += ["--score-threshold", str(THRESHOLD), "--address", "local", "--quiet"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}

    assert subprocess.run(command, cwd=project, env=environment).returncode == 1  # one is damaged
    rows = read_rows(bucket)
    assert [row["path"] for row in rows] == sorted(path.name for path in local.iterdir())
    with load_detector(package, backend="onnxruntime-cpu") as detector:
        for row in rows:
            if row["path"] == "damaged.jpg":
                assert row["error"] == "bad_image"
                continue
            image = (local / row["path"]).read_bytes()
            found = detector.detect(image, score_threshold=THRESHOLD).detections
            scores = [one["score"] for one in row["detections"]]
            assert scores == pytest.approx(found.scores.tolist(), abs=1e-4)

    parts = [
        info.path
        for info in bucket.get_file_info(FileSelector("bucket/results"))
        if info.base_name.startswith("part-")
    ]
    assert len(parts) == (IMAGES + 1 + PER_FILE - 1) // PER_FILE
    bucket.delete_file(parts[1])
    dataset = tmp_path / "coco.json"
    command += ["--resume", "--coco", str(dataset)]
    assert subprocess.run(command, cwd=project, env=environment).returncode == 0
    assert read_rows(bucket) == rows
    assert len(json.loads(dataset.read_text())["images"]) == IMAGES
