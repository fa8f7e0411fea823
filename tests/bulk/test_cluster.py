"""``centernet-detect-ray`` on a cluster of three nodes, with faults.

With 20,000 images if the environment variable HEAVY_TESTS is set; `-s` prints what was compared.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.bulk_rows import check_row
from support.processes import SERVE, serve_process

from benchmarks.ray_data.images import write_images

ray = pytest.importorskip("ray", reason="ray is not installed (extra ray)")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
HEAVY = "HEAVY_TESTS" in os.environ
IMAGES, PER_FILE, COMPARED = (20_000, 100, 400) if HEAVY else (60, 5, 20)
FILES = IMAGES // PER_FILE
END_S = 7200 if HEAVY else 600


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    arguments = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **arguments})
    cluster.nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in "ab"]
    yield cluster
    cluster.shutdown()


def test_each_image_has_one_row_after_faults(cluster: Any, project: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(project / "docs/samples/blood_smear_1.jpg", images, IMAGES)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "bulk", str(images), "--output", str(output)]
    command += ["--package", str(project / "models/blood_cells"), "--quiet"]
    command += ["--images-per-file", str(PER_FILE), "--address", cluster.address]
    command += ["--min-actors", "2", "--max-actors", "2"]

    run = subprocess.Popen(command, cwd=project)
    wait_for_files(output, FILES // 12)
    os.kill(actors()[0], signal.SIGKILL)
    wait_for_files(output, FILES // 4)
    run.kill()
    run.wait()
    done = len(list(output.glob("part-*")))
    assert done < FILES

    run = subprocess.Popen([*command, "--resume"], cwd=project)
    wait_for_files(output, done + FILES // 12)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    assert run.wait(END_S) == 0
    rows = pq.read_table(output).to_pylist()
    paths = [row["path"] for row in rows]
    assert paths == [f"{number:06}.jpg" for number in range(IMAGES)]

    sample = rows[:: IMAGES // COMPARED]
    with (
        serve_process(SERVE, "--models", str(project / "models/blood_cells")) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        server.wait_for("/readyz")
        bodies = [(images / row["path"]).read_bytes() for row in sample]
        responses = clients.map(lambda body: server.client.post("/detect", content=body), bodies)
        equal = [
            check_row(row, response.json()) for row, response in zip(sample, responses, strict=True)
        ]
    detections = sum(len(row["detections"]) for row in rows)
    assert detections > IMAGES
    print(
        f"{len(rows)} rows, {detections} detections; {len(equal)} compared, {sum(equal)} identical"
    )


def wait_for_files(output: Path, count: int) -> None:
    end = time.monotonic() + END_S
    while len(list(output.glob("part-*"))) < count:
        assert time.monotonic() < end
        time.sleep(0.05)


def actors() -> list[int]:
    """Return the processes of the actors of Ray Data that run on the nodes of this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::MapWorker"):
                node = parent(int(path.parent.name))
                found += [int(path.parent.name)] * (parent(node) == os.getpid())
        except OSError:  # it has ended
            continue
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])
