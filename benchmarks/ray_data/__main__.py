"""Compare ``centernet-detect-ray`` on a cluster of three nodes with one detector in a process.

    python -m benchmarks.ray_data --images 20000

Two worker nodes share the cores of this machine, each with one actor. The detector in the process
runs a sample of the same images on the same cores before and after. The durations of the command
and of the sample are without the start of Ray and the loading of models: the first files of results
begin the measurement. Also checks that each image has one row. Exits 1 if it has not, or if the
ratio is below 0.8. Needs the extras ``serve`` and ``ray``.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from benchmarks.ray_data.images import write_images
from client.ordered_map import ordered_map
from service.detector import load_detector

MIN_RATIO = 0.8
PER_FILE = 100
PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "models/blood_cells"


def main() -> None:
    """Print the throughput of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--sample", type=int, default=1000)
    args = parser.parse_args()
    with TemporaryDirectory() as directory:
        images, output = Path(directory) / "images", Path(directory) / "results"
        write_images(PROJECT / "docs/samples/blood_smear_1.jpg", images, args.images)
        sample = sorted(images.iterdir())[: args.sample]
        before = _in_process(sample)
        on_cluster = _on_cluster(images, output)
        after = _in_process(sample)
        paths = pq.read_table(output, columns=["path"])["path"].to_pylist()
        is_complete = paths == sorted(path.name for path in images.iterdir())
    ratio = on_cluster / ((before + after) / 2)
    print(f"in one process, before and after: {before:.1f}, {after:.1f} images/s")
    print(f"on the cluster: {on_cluster:.1f} images/s, ratio {ratio:.3f}")
    print(f"one row per image: {is_complete}")
    sys.exit(not is_complete or ratio < MIN_RATIO)


def _in_process(paths: list[Path]) -> float:
    """Return images per second of one detector with a thread more than its concurrent runs."""
    with load_detector(PACKAGE) as detector:
        limit = detector.engine.concurrency + 1
        with ThreadPoolExecutor(limit) as threads:
            began_at = time.perf_counter()
            for _ in ordered_map(threads, lambda p: detector.detect(p.read_bytes()), paths, limit):
                pass
            return len(paths) / (time.perf_counter() - began_at)


def _on_cluster(images: Path, output: Path) -> float:
    """Return images per second between the first and the last file of results."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cores = len(os.sched_getaffinity(0))
    node = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **node}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=cores / 2, **node)
    command = [sys.executable, "-m", "bulk", str(images), "--package", str(PACKAGE)]
    command += ["--output", str(output), "--images-per-file", str(PER_FILE)]
    command += ["--address", cluster.address, "--num-cpus", str(cores / 2)]
    command += ["--min-actors", "2", "--max-actors", "2"]
    subprocess.run(command, cwd=PROJECT, check=True)
    cluster.shutdown()
    times = sorted(path.stat().st_mtime for path in output.glob("part-*"))
    return PER_FILE * (len(times) - 2) / (times[-1] - times[1])


if __name__ == "__main__":
    main()
