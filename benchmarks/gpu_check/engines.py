"""Engines of a package: built here, opened one precision at a time."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu_check.notes import Notes
from model_package import ModelPackage, load_package
from service.engines import BACKENDS, Engine, open_engine

BUILDERS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Module of each backend whose engines are built ahead of time."""
BUILD_TIMEOUT_S = 3600


def build(package: ModelPackage, max_batch_size: int, notes: Notes) -> list[dict[str, Any]]:
    """Build the package's engines with every builder that is here; one row per backend."""
    rows = []
    for backend, module in BUILDERS.items():
        what = f"{package.manifest.name}: build for {backend}"
        if find_spec(module) is None:
            notes.skip(what, f"the Python package {module} is not installed")
            continue
        with notes.instead(what):
            rows.append({"package": package.manifest.name, "backend": backend}
                        | _build(package, backend, max_batch_size))  # fmt: skip
    return rows


def _build(package: ModelPackage, backend: str, max_batch_size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "model_export", "build", str(package.directory)]
    command += ["--backend", backend, "--max-batch-size", str(max_batch_size)]
    started_at = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if run.returncode:
        raise RuntimeError(run.stderr.strip()[-500:])
    return {"seconds": round(time.perf_counter() - started_at, 1), "said": run.stdout.strip()}


@contextmanager
def opened(
    package: ModelPackage, backend: str, precision: str, threads: int, max_batch_size: int
) -> Iterator[Engine]:
    """Open only the package's files in one precision, and close them."""
    artifacts = tuple(
        artifact for artifact in package.manifest.artifacts if artifact.precision == precision
    )
    if not artifacts:
        raise LookupError(f"the package has nothing in {precision}")
    restricted = replace(
        package, manifest=package.manifest.model_copy(update={"artifacts": artifacts})
    )
    engine = open_engine(restricted, backend, threads, max_batch_size=max_batch_size)
    try:
        yield engine
    finally:
        engine.close()


def gpu_backends() -> list[str]:
    """Every backend but the reference."""
    return [name for name in BACKENDS if name != "onnxruntime-cpu"]


def reload(package: ModelPackage) -> ModelPackage:
    """Read a package again, with the engines that were built into it."""
    return load_package(package.directory)
