"""From the models directory to loaded, warmed-up predictors."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_package import (
    MANIFEST_FILE,
    ModelPackage,
    PackageError,
    PackageNotFoundError,
    load_package,
)
from service.detector import Detector
from service.engines import Engine, open_engine
from service.engines.build_engines import build_engines
from service.errors import UnknownModelError
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.self_test import SelfTest
from service.settings import Settings, available_cores

_log = logging.getLogger(__name__)

DEFAULT_GPU_BATCH_SIZE = 16
"""Room that engines on GPUs make for a batch where the settings do not say."""
LONG_RUN_S = 0.25
"""A run that takes longer than this in one thread is given all cores: more images per second in
the end are no consolation to somebody who waits for one."""


@dataclass(frozen=True)
class ModelRegistry:
    """Every loaded model by name, and the one behind ``/detect``."""

    predictors: Mapping[str, Detector]
    default_name: str
    cpu_pool: Executor

    def get(self, name: str | None) -> Detector:
        """The predictor of that name; the default one for None.

        Raises :class:`UnknownModelError`.
        """
        try:
            return self.predictors[self.default_name if name is None else name]
        except KeyError:
            known = ", ".join(self.predictors)
            raise UnknownModelError(
                f"There is no model {str(name)[:100]!r} here; there are {known}."
            ) from None

    def start(self, tracing: Tracing | None) -> None:
        """Begin to serve; call it inside the running event loop."""
        for predictor in self.predictors.values():
            predictor.start(tracing)

    async def stop(self) -> None:
        """Finish what was admitted and end all threads."""
        await asyncio.gather(*(predictor.stop() for predictor in self.predictors.values()))
        self.cpu_pool.shutdown(wait=False)  # nobody waits for an image any more


def load_models(settings: Settings, metrics: Metrics, note: Callable[[str], None]) -> ModelRegistry:
    """Load and warm up every package of ``settings.models``, saying to ``note`` what is done.

    Raises :class:`model_package.PackageError` or :class:`service.engines.EngineUnavailableError`:
    a package that cannot be served stops the start, so that nothing is missing silently.
    """
    cpu_pool = ThreadPoolExecutor(settings.image_threads, thread_name_prefix="images")
    predictors: dict[str, Detector] = {}
    for package in find_packages(settings):
        name = package.manifest.name
        if settings.build_engines:
            package = _with_engines(package, settings, metrics, note)
        note(f"{name} is being loaded")
        engine = open_model_engine(package, settings)
        self_test = _make_self_test(package, engine)
        predictor = Detector(package.manifest, engine, cpu_pool, settings, metrics, self_test)
        note(f"{name} is being timed")
        predictor.warm_up()
        predictors[name] = predictor
        _log.info(
            "%s is ready: %d classes, batches of up to %d, %s",
            *(name, len(package.manifest.classes), predictor.max_batch_size, package.directory),
        )
    return ModelRegistry(predictors, _default_name(settings, predictors), cpu_pool)


def find_packages(settings: Settings) -> Iterator[ModelPackage]:
    """Read every package of ``settings.models``. Raises :class:`model_package.PackageError`."""
    names = set()
    for directory in _package_directories(settings.models):
        package = load_package(directory)
        if package.manifest.name in names:
            raise PackageError(
                f"two packages in {settings.models} have the name {package.manifest.name}."
            )
        names.add(package.manifest.name)
        yield package


def _with_engines(
    package: ModelPackage, settings: Settings, metrics: Metrics, note: Callable[[str], None]
) -> ModelPackage:
    name = package.manifest.name
    gauge = metrics.build_progress.labels(name)

    def tell(share: float, step: str) -> None:
        gauge.set(share)
        note(f"an engine of {name} is being built, {100 * share:.0f} % done: {step}")

    largest = settings.max_batch_size or DEFAULT_GPU_BATCH_SIZE
    package = build_engines(package, settings.backend, largest, tell)
    gauge.set(1)
    return package


def open_model_engine(package: ModelPackage, settings: Settings) -> Engine:
    """Open the engine; on the CPU, with the number of threads that suits the model."""
    cores = available_cores()
    threads = settings.engine_threads or 1
    largest = settings.max_batch_size or DEFAULT_GPU_BATCH_SIZE
    concurrency = max(1, cores // threads)
    engine = open_engine(package, settings.backend, threads, concurrency, largest)
    if settings.engine_threads is None and engine.is_reference and cores > 1:
        spec = package.manifest.input
        began_at = time.perf_counter()
        engine.run(np.zeros((1, spec.height_px, spec.width_px, 3), np.uint8))
        if time.perf_counter() - began_at > LONG_RUN_S:
            engine.close()
            return open_engine(package, settings.backend, cores, 1, largest)
    return engine


def _make_self_test(package: ModelPackage, engine: Engine) -> SelfTest:
    """A self-test by the fp32 file on the CPU, which is what the export compared with the network."""
    if engine.is_reference:
        return SelfTest(package.manifest.input, engine)
    reference = open_engine(package, "onnxruntime-cpu", available_cores())
    self_test = SelfTest(package.manifest.input, reference)
    reference.close()
    return self_test


def _package_directories(models: Path) -> list[Path]:
    if (models / MANIFEST_FILE).is_file():
        return [models]
    # A directory whose name starts with a dot is a package in the making.
    found = sorted(
        path.parent for path in models.glob(f"*/{MANIFEST_FILE}") if path.parent.name[0] != "."
    )
    if not found:
        raise PackageNotFoundError(
            f"{models.absolute()} is no model package and holds none. "
            "Make one with centernet-export, or name another directory with --models."
        )
    return found


def _default_name(settings: Settings, predictors: Mapping[str, Detector]) -> str:
    names = ", ".join(predictors)
    if settings.default_model is None:
        if len(predictors) > 1:
            raise PackageError(
                f"there are several models, {names}: name the one behind POST /detect "
                "with --default-model."
            )
        return next(iter(predictors))
    if settings.default_model not in predictors:
        raise PackageError(f"there is no model {settings.default_model!r}; there are {names}.")
    return settings.default_model
