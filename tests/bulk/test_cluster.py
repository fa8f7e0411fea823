"""``centernet-detect-ray`` on a cluster of three nodes, with faults."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

ray = pytest.importorskip("ray", reason="ray is not installed (extra ray)")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
IMAGES, PER_FILE = 60, 5
END_S = 600


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
    content = (project / "docs/samples/blood_smear_1.jpg").read_bytes()
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        (tmp_path / f"images/{number:03}.jpg").write_bytes(content)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "bulk", str(tmp_path / "images"), "--output", str(output)]
    command += ["--package", str(project / "models/blood_cells"), "--quiet"]
    command += ["--images-per-file", str(PER_FILE), "--address", cluster.address]
    command += ["--min-actors", "2", "--max-actors", "2"]

    run = subprocess.Popen(command, cwd=project)
    wait_for_files(output, 1)
    os.kill(actors()[0], signal.SIGKILL)
    wait_for_files(output, 3)
    run.kill()
    run.wait()
    done = len(list(output.glob("part-*")))
    assert done < IMAGES // PER_FILE

    run = subprocess.Popen([*command, "--resume"], cwd=project)
    wait_for_files(output, done + 1)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    assert run.wait(END_S) == 0
    rows = pq.read_table(output).to_pylist()
    assert [row["path"] for row in rows] == [f"{number:03}.jpg" for number in range(IMAGES)]
    assert {len(row["detections"]) for row in rows} == {len(rows[0]["detections"])}


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
