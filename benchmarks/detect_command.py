"""Throughput of ``centernet-detect`` compared with the load generator, against one service.

    python -m benchmarks.detect_command

Per round, the command processes 1,000 images with its default concurrency; its time includes its
start and the writing of JSON Lines. Before and after, the generator sends the same images on as
many connections; the ratio is that to the mean of both, because the speed of shared machines
changes. Exits 1 if the median ratio is below 0.9.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.endurance.service import IMAGES, run_service
from benchmarks.load import Target, closed_loop
from client.http_client import DEFAULT_CONCURRENCY

COMMAND = "from client.detect import main; main()"
MIN_RATIO = 0.9
LOAD_S = 15


def main() -> None:
    """Print a line per round and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ratios = []
    with TemporaryDirectory() as directory, run_service() as service:
        folder = Path(directory) / "images"
        folder.mkdir()
        for number in range(args.images):
            shutil.copy(IMAGES[number % len(IMAGES)], folder / f"{number:06}.jpg")
        target = Target(service.port, "/detect", IMAGES)
        closed_loop(target, 5, DEFAULT_CONCURRENCY)
        before = closed_loop(target, LOAD_S, DEFAULT_CONCURRENCY).images_per_second
        for number in range(1, args.rounds + 1):
            output = Path(directory) / f"{number}.jsonl"
            seconds, cpu_s = run_command(folder, output, service.port)
            rows = len(output.read_text().splitlines())
            if rows != args.images:
                sys.exit(f"{rows} rows for {args.images} images")
            after = closed_loop(target, LOAD_S, DEFAULT_CONCURRENCY).images_per_second
            rate = args.images / seconds
            ratios.append(rate / statistics.mean((before, after)))
            print(
                f"round {number}: centernet-detect {rate:.1f} images/s "
                f"({1000 * cpu_s / args.images:.2f} ms CPU per image), load generator {before:.1f} "
                f"before and {after:.1f} after, ratio {ratios[-1]:.3f}",
                flush=True,
            )
            before = after
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.3f}, expected at least {MIN_RATIO}")
    sys.exit(ratio < MIN_RATIO)


def run_command(folder: Path, output: Path, port: int) -> tuple[float, float]:
    """Run the command; return its duration and its CPU time in seconds."""
    command = [sys.executable, "-c", COMMAND, str(folder), "--output", str(output), "--quiet"]
    before, began_at = os.times(), time.perf_counter()
    subprocess.run([*command, "--url", f"http://127.0.0.1:{port}"], check=True)
    seconds, after = time.perf_counter() - began_at, os.times()
    cpu_s = after.children_user + after.children_system
    return seconds, cpu_s - before.children_user - before.children_system


if __name__ == "__main__":
    main()
