"""Everything that only a GPU can settle, with one command on a machine that has one.

    python -m benchmarks.gpu_check [--output DIR]

Kernels against PyTorch and a copy's bandwidth, every backend of the host against ONNX Runtime on
the CPU, engines built here, and their speed against PyTorch. Writes ``gpu_check.json`` and
``gpu_check.md``, which name the hardware and say what could not be run. Needs torch, the packages
of the extra ``http`` and this checkout; uses what else it finds, and no network.

Exit status: 0 when all that was run agrees, 1 when something does not, 3 without a GPU.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import engines, host, parity, report, speed
from benchmarks.gpu_check.cases import CASES, SMOKE_CASES, Case, make_package, read_weights
from benchmarks.gpu_check.notes import Notes
from model_package import ModelPackage, load_package

NO_GPU = 3
MODELS = Path(__file__).parents[2] / "models"
LARGEST_BATCH = max(speed.FULL.batch_sizes)


def main() -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR")
    parser.add_argument(
        "--smoke", action="store_true", help="a small network, a few runs, the CPU's backends too"
    )
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    notes = Notes()
    with tempfile.TemporaryDirectory() as directory:
        result = check(Path(directory), notes, given.smoke)
    (given.output / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.output / "gpu_check.md").write_text(report.markdown(result))
    print(report.markdown(result))
    if notes.failed:
        return 1
    return 0 if result["host"]["gpu"] else NO_GPU


def check(directory: Path, notes: Notes, smoke: bool) -> dict[str, Any]:
    """Run everything that this host can; packages are made in ``directory``."""
    facts = host.describe()
    has_gpu = facts["gpu"] is not None
    if not has_gpu:
        notes.skip("everything on a GPU", "torch finds no CUDA device")
    backends = engines.gpu_backends() if has_gpu else []
    if smoke:
        backends.append("onnxruntime-cpu")
    threads = len(os.sched_getaffinity(0))
    effort = speed.SMOKE if smoke else speed.FULL
    found: dict[str, list[Any]] = {"builds": [], "parity": [], "speed": []}
    kernels = _kernels(notes)
    if has_gpu and not smoke:
        _check_bundled(backends, threads, notes, found)
    for case in SMOKE_CASES if smoke else CASES if has_gpu else ():
        with notes.instead(case.name):
            weights = read_weights(case)
            package = _package(case, weights, directory, has_gpu, notes, found)
            if package is not None:
                found["parity"] += parity.check(package, backends, threads, notes)
            if case.timed:
                found["speed"] += speed.check(
                    case, weights, package, backends, effort, threads, notes
                )
        if has_gpu:
            torch.cuda.empty_cache()
    return {
        "host": facts,
        "kernels": kernels,
        **found,
        "failed": notes.failed,
        "not_run": notes.not_run,
    }


def _kernels(notes: Notes) -> dict[str, Any]:
    """Corner pooling; empty where that cannot be run."""
    nothing: dict[str, Any] = {"parity": [], "speed": []}
    with notes.instead("corner pooling kernels"):
        from benchmarks.gpu_check import kernels

        result: dict[str, Any] = kernels.check()
        if result["not_run"]:
            notes.skip("corner pooling kernels", result["not_run"])
        for row in result["parity"]:
            if not row["equal"]:
                notes.fail("corner pooling", f"{row} differs from PyTorch")
        return result
    return nothing


def _check_bundled(
    backends: list[str], threads: int, notes: Notes, found: dict[str, list[Any]]
) -> None:
    """The packages of this checkout; their engines would be built into it, so none are."""
    for path in sorted(MODELS.glob("*/model.json")):
        with notes.instead(path.parent.name):
            package = load_package(path.parent)
            found["parity"] += parity.check(package, backends, threads, notes)


def _package(
    case: Case,
    weights: dict[str, torch.Tensor],
    directory: Path,
    has_gpu: bool,
    notes: Notes,
    found: dict[str, list[Any]],
) -> ModelPackage | None:
    """Export a case and build its engines; None where the exporter's packages are missing."""
    with notes.instead(f"{case.name}: export, and with it every engine"):
        package = make_package(case, weights, directory, notes)
        if has_gpu:
            found["builds"] += engines.build(package, LARGEST_BATCH, notes)
        return engines.reload(package)
    return None


if __name__ == "__main__":
    sys.exit(main())
