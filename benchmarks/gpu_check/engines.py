"""Build the engines of a package, and open its artifacts of one precision."""

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
from model_package.tensorrt_libraries import TENSORRT_LIBRARIES
from service.engines import Engine, open_engine
from service.engines.backends import CANDIDATES

BUILD_TIMEOUT_S = 3600


def build(package: ModelPackage, max_batch_size: int, notes: Notes) -> list[dict[str, Any]]:
    """Build the package's engines with every installed library; return one row per library."""
    rows = []
    for backend, library in TENSORRT_LIBRARIES.items():
        check_name = f"{package.manifest.name}: build for {backend}"
        if find_spec(library.backend) is None:
            notes.skip(check_name, f"the Python package {library.backend} is not installed")
            continue
        with notes.skip_on_error(check_name):
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
    return {"seconds": round(time.perf_counter() - started_at, 1), "output": run.stdout.strip()}


@contextmanager
def open_precision(
    package: ModelPackage, backend: str, precision: str, threads: int, max_batch_size: int
) -> Iterator[Engine]:
    """Open the package's artifacts of one precision only, and close the engine after the block.

    Raises ``LookupError`` if the package has none.
    """
    artifacts = tuple(
        artifact for artifact in package.manifest.artifacts if artifact.precision == precision
    )
    if not artifacts:
        raise LookupError(f"the package has no artifacts in {precision}")
    restricted = replace(
        package, manifest=package.manifest.model_copy(update={"artifacts": artifacts})
    )
    engine = open_engine(restricted, backend, threads, max_batch_size=max_batch_size)
    try:
        yield engine
    finally:
        engine.close()


def gpu_backends() -> list[str]:
    """Return every backend that runs on a GPU."""
    return list(dict.fromkeys(one.backend for one in CANDIDATES if not one.on_cpu))


def reload(package: ModelPackage) -> ModelPackage:
    """Load a package again, with the engines that were added to it."""
    return load_package(package.directory)
