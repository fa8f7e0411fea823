"""The backends of this machine: build the engines of a package, and open one precision of it."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu_check.notes import Notes
from model_export.engines.errors import EngineRequestError
from model_export.engines.libraries import find_target, import_library
from model_package import ModelPackage, OnnxArtifact
from model_package.gpu import find_gpu
from model_package.tensorrt_libraries import TENSORRT_LIBRARIES
from service.engines import Engine, EngineOptions, open_engine
from service.engines.backends import CANDIDATES
from service.engines.onnxruntime import CudaOptions, open_cuda_engine

BUILD_TIMEOUT_S = 3600

CUDA_VARIANTS = {
    "onnxruntime-cuda (exhaustive)": CudaOptions(cudnn_conv_algo_search="EXHAUSTIVE"),
    "onnxruntime-cuda (synchronized)": CudaOptions(synchronize=True),
    "onnxruntime-cuda (no graphs)": CudaOptions(cuda_graphs=False),
}
"""Settings that the service does not use, to compare with ``onnxruntime-cuda``."""


def gpu_backends(notes: Notes) -> list[str]:
    """Return the GPU backends that this machine has everything for; note the others."""
    available = []
    for backend in dict.fromkeys(one.backend for one in CANDIDATES if not one.on_cpu):
        with notes.fail_on_error(backend):
            lacking = _lacking(backend)
            if lacking:
                notes.skip(backend, lacking)
            else:
                available.append(backend)
    return available


def _lacking(backend: str) -> str:
    """Return what this machine lacks for a backend; empty if nothing."""
    library = TENSORRT_LIBRARIES.get(backend)
    modules = ["cuda", "onnxruntime" if library is None else library.backend]
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        return f"the Python modules {' and '.join(missing)} are not installed"
    if library is None:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "onnxruntime is installed without CUDA: onnxruntime-gpu is needed instead"
    elif library.builds_without_gpu:
        gpu = find_gpu()
        try:
            find_target(import_library(library), gpu.compute_capability if gpu else "")
        except EngineRequestError as error:
            return str(error)
    return ""


def precisions(package: ModelPackage, backend: str) -> list[str]:
    """Return the precisions in which a backend can run a package: those of its ONNX files.

    Without int8, whose detections agree within other limits than those of this check.
    """
    if backend == "onnxruntime-cpu":
        return ["fp32"]
    artifacts = package.manifest.artifacts
    files = (file for file in artifacts if isinstance(file, OnnxArtifact))
    return sorted({file.precision for file in files} - {"int8"})


def build(
    package: ModelPackage, backends: Iterable[str], max_batch_size: int, notes: Notes
) -> list[dict[str, Any]]:
    """Build the package's engines for every backend that needs them; return one row for each."""
    rows = []
    for backend in backends:
        if backend not in TENSORRT_LIBRARIES:
            continue
        with notes.fail_on_error(f"{package.manifest.name}: build for {backend}"):
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

    ``backend`` is one of ``BACKENDS`` or a key of :data:`CUDA_VARIANTS`.
    """
    artifacts = tuple(
        artifact for artifact in package.manifest.artifacts if artifact.precision == precision
    )
    restricted = replace(
        package, manifest=package.manifest.model_copy(update={"artifacts": artifacts})
    )
    engine: Engine
    if backend in CUDA_VARIANTS:
        options = EngineOptions(threads, max_batch_size=max_batch_size, precisions=[precision])
        engine = open_cuda_engine(restricted, options, CUDA_VARIANTS[backend])
    else:
        engine = open_engine(restricted, backend, threads, max_batch_size=max_batch_size)
    try:
        yield engine
    finally:
        engine.close()
