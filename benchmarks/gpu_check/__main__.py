"""Run every check and measurement that needs a GPU.

    python -m benchmarks.gpu_check [--output DIR]

Compares the corner pooling kernels with PyTorch and with the bandwidth of a copy, builds engines,
compares every available backend with ONNX Runtime on the CPU, and measures their speed against
PyTorch. Writes ``gpu_check.json`` and ``gpu_check.md``, which state the hardware and what could
not be run. Needs torch, the packages of the extra ``http`` and this checkout; uses the optional
packages that are installed, and no network.

Exit status: 1 if a result is wrong or anything raised an exception, otherwise 0, or 3 without a
GPU. Only what this machine cannot have is reported as not run: a GPU, or a package that is not
installed.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import engines, host, parity, report, sizes, speed
from benchmarks.gpu_check.cases import CASES, SMOKE_CASES, generate_weights, make_package
from benchmarks.gpu_check.notes import Notes
from model_package import load_package
from model_package.tensorrt_libraries import TENSORRT_LIBRARIES

EXIT_NO_GPU = 3
MODELS = Path(__file__).parents[2] / "models"
MAX_BATCH_SIZE = max(speed.FULL.batch_sizes)


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a small network and a few runs, on the CPU backend too",
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    notes = Notes()
    with tempfile.TemporaryDirectory() as directory:
        result = check(Path(directory), notes, args.smoke)
    (args.output / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output / "gpu_check.md").write_text(report.markdown(result))
    print(report.markdown(result))
    if notes.failed:
        return 1
    return 0 if result["host"]["gpu"] else EXIT_NO_GPU


def check(directory: Path, notes: Notes, smoke: bool) -> dict[str, Any]:
    """Run everything that this machine supports; packages are written to ``directory``."""
    machine = host.describe()
    has_gpu = machine["gpu"] is not None
    if not has_gpu:
        notes.skip("everything on a GPU", "torch finds no CUDA device")
    backends = engines.gpu_backends(notes) if has_gpu else []
    if smoke:
        backends.append("onnxruntime-cpu")
    threads = len(os.sched_getaffinity(0))
    repetitions = speed.SMOKE if smoke else speed.FULL
    results: dict[str, list[Any]] = {"builds": [], "parity": [], "speed": [], "sizes": []}
    kernels = _check_kernels(notes)
    if has_gpu and not smoke:
        _check_bundled_packages(backends, threads, notes, results)
    for case in SMOKE_CASES if smoke else CASES if has_gpu else ():
        with notes.fail_on_error(case.name):
            weights = generate_weights(case)
            package = make_package(case, weights, directory, notes)
            results["builds"] += engines.build(package, backends, MAX_BATCH_SIZE, notes)
            package = load_package(package.directory)
            results["parity"] += parity.check(package, backends, threads, notes)
            if case.timed:
                results["speed"] += speed.check(
                    case, weights, package, backends, repetitions, threads, notes
                )
            if package.manifest.input.free_size and "onnxruntime-cuda" in backends:
                results["sizes"] += sizes.check(package, threads, notes)
        if has_gpu:
            torch.cuda.empty_cache()
    return {
        "host": machine,
        "kernels": kernels,
        **results,
        "failed": notes.failed,
        "not_run": notes.not_run,
    }


def _check_kernels(notes: Notes) -> dict[str, Any]:
    """Check the corner pooling kernels; empty if they cannot be run."""
    empty: dict[str, Any] = {"parity": [], "speed": []}
    with notes.fail_on_error("corner pooling kernels"):
        from benchmarks.gpu_check import kernels

        result: dict[str, Any] = kernels.check()
        if result["not_run"]:
            notes.skip("corner pooling kernels", result["not_run"])
        for row in result["parity"]:
            if not row["equal"]:
                notes.fail("corner pooling", f"{row} differs from PyTorch")
        return result
    return empty


def _check_bundled_packages(
    backends: list[str], threads: int, notes: Notes, results: dict[str, list[Any]]
) -> None:
    """Compare the packages of this checkout, without engines: a build would write into it."""
    backends = [backend for backend in backends if backend not in TENSORRT_LIBRARIES]
    for path in sorted(MODELS.glob("*/model.json")):
        with notes.fail_on_error(path.parent.name):
            package = load_package(path.parent)
            results["parity"] += parity.check(package, backends, threads, notes)


if __name__ == "__main__":
    sys.exit(main())
