"""``centernet-serve`` with an engine that sleeps, so that several replicas fit on few cores."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu import CPU_ENGINES
from model_package import ModelManifest, ModelPackage, draft_package, load_package
from service import cli
from service.engines import EngineOptions, backends
from service.engines.backends import Candidate
from service.engines.engine import Images
from service.engines.precision import ComputePrecision

BASE_S, PER_IMAGE_S = 0.005, 0.02
"""Duration of a run: about that of a small network on one core."""
MAX_BATCH_SIZE = 4
CONCURRENCY = 2
_CHOICE = CPU_ENGINES["onnxruntime-fp32"]
"""The choice of engine that opens a :class:`SleepingEngine`."""
OPTIONS = (
    *("--backend", _CHOICE.backend, "--precision", _CHOICE.precision),
    *("--max-batch-size", str(MAX_BATCH_SIZE), "--engine-concurrency", str(CONCURRENCY)),
)
PROGRAM = "from benchmarks.capacity.sleeping_engine import serve; serve()"


class SleepingEngine:
    """Sleeps for the duration of a run and finds nothing; see :class:`service.engines.Engine`."""

    description = "sleeping engine"
    precision: ComputePrecision = "fp32"
    concurrency = CONCURRENCY
    max_batch_size: int | None = MAX_BATCH_SIZE
    is_reference = True

    def __init__(self, manifest: ModelManifest) -> None:
        self._outputs = manifest.decoder.outputs()

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see :meth:`service.engines.Engine.run`."""
        del flip
        size = len(images)
        time.sleep(BASE_S + size * PER_IMAGE_S)
        return {one.name: np.zeros((size, *one.shape), one.dtype) for one in self._outputs}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def serve() -> None:
    """Run ``centernet-serve`` with the engine."""

    def open_engine(package: ModelPackage, options: EngineOptions) -> SleepingEngine:
        del options
        return SleepingEngine(package.manifest)

    backends.CANDIDATES = (Candidate(_CHOICE.backend, (_CHOICE.precision,), open_engine),)
    cli.main()


@contextmanager
def sleeping_package(package: Path) -> Iterator[Path]:
    """Create a copy of ``package`` without recorded references, which the engine would fail."""
    loaded = load_package(package)
    with TemporaryDirectory() as folder, draft_package(Path(folder, "sleeping")) as draft:
        for artifact in loaded.manifest.artifacts:
            shutil.copy(loaded.directory / artifact.file, draft.directory)
        manifest = loaded.manifest.model_copy(update={"references": None})
        yield draft.publish(manifest).directory
