"""Registry of the loaded models, and loading of the packages of a directory."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from model_package import (
    MANIFEST_FILE,
    ModelPackage,
    PackageError,
    PackageNotFoundError,
)
from model_package.directory import check_files, read_manifest
from service.async_detector import AsyncDetector
from service.detector import DEFAULT_GPU_BATCH_SIZE, open_detector
from service.engines import EngineUnavailableError
from service.engines.build_engines import build_engines
from service.engines.errors import EngineBrokenError
from service.errors import ModelUnavailableError, UnknownModelError
from service.image_pool import ImagePool
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import Settings

_log = logging.getLogger(__name__)

BAD_MANIFEST = "its model.json is damaged, or of a version that is not supported"
BAD_FILES = "a file of its package is damaged or missing, or was changed after the export"
NO_ENGINE = "no engine of this machine runs it with the expected outputs"
FAILED_WARM_UP = "its engine failed in the warm-up"
"""Reasons that clients see. The error in the log is for operators: it contains paths."""

BUILD_LOG_INTERVAL_S = 10.0
"""Seconds between lines of the log while an engine is built, which takes minutes."""

_Collect = Callable[[str, str, str], AbstractContextManager[None]]
"""Context manager for the loading of a package: its name, its version, and the reason to give to
clients if the block raises."""


@dataclass(frozen=True)
class ModelRegistry:
    """Every loaded model by name, and the name of the default model.

    ``failed``: the models that could not be loaded, and the reasons for clients.
    """

    detectors: Mapping[str, AsyncDetector]
    default_name: str
    pool: ImagePool
    failed: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str | None, version: str | None = None) -> AsyncDetector:
        """Return the model of that name, or the default model for None.

        ``version``: the version that the model must have; None for any.

        Raises :class:`UnknownModelError` and :class:`ModelUnavailableError`.
        """
        name = self.default_name if name is None else name
        if name in self.detectors:
            detector = self.detectors[name]
            if version is not None and version != detector.manifest.version:
                raise UnknownModelError(
                    f"Model {name} has no version {version[:100]!r}, only "
                    f"{detector.manifest.version}. Leave the version out to use that."
                )
            return detector
        known = ", ".join(self.detectors)
        if name in self.failed:
            raise ModelUnavailableError(
                f"The model {name} could not be loaded: {self.failed[name]}. The cause is in the "
                f"log of the service. The loaded models are {known}."
            )
        raise UnknownModelError(f"There is no model {name[:100]!r}. The loaded models are {known}.")

    @property
    def summary(self) -> str:
        """The names of the models, the default model marked, and of those that failed."""
        names = [
            f"{name} (default)" if name == self.default_name else name for name in self.detectors
        ]
        return ", ".join([*names, *(f"{name} (failed)" for name in self.failed)])

    @property
    def problem(self) -> str | None:
        """Reason a model is not ready; None if all are ready."""
        return self._first_problem(lambda detector: detector.problem)

    @property
    def fatal_problem(self) -> str | None:
        """Reason the process must be restarted; None if it need not be."""
        return self._first_problem(lambda detector: detector.fatal_problem)

    def _first_problem(self, problem_of: Callable[[AsyncDetector], str | None]) -> str | None:
        for name, detector in self.detectors.items():
            problem = problem_of(detector)
            if problem is not None:
                return f"Model {name}: {problem}."
        return None

    def start(self, tracing: Tracing | None) -> None:
        """Start every model; call it inside the running event loop."""
        for detector in self.detectors.values():
            detector.start(tracing)

    async def stop(self) -> None:
        """Finish the admitted requests and end all threads."""
        await asyncio.gather(*(detector.stop() for detector in self.detectors.values()))
        self.pool.close()


class _Failures:
    """The packages that could not be loaded: reasons for clients by name, and the first error."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.reasons: dict[str, str] = {}
        self.first_error: Exception | None = None

    @contextmanager
    def collect(self, name: str, version: str, reason: str) -> Iterator[None]:
        """Log, record and suppress an error of the block; see :data:`_Collect`.

        Only :class:`EngineBrokenError` is raised: after it, no model can use the GPU.
        """
        try:
            yield
        except EngineBrokenError:
            raise
        except Exception as error:  # libraries raise any exception for a damaged package
            is_described = isinstance(error, PackageError | EngineUnavailableError)
            _log.error("%s is not served: %s", name, error, exc_info=not is_described)
            self._metrics.model_ready.labels(name, version).set(0)
            self.reasons[name] = reason
            self.first_error = self.first_error or error


def _raise_all(*_: str) -> AbstractContextManager[None]:
    return nullcontext()


def load_models(
    settings: Settings, metrics: Metrics, report_step: Callable[[str], None]
) -> ModelRegistry:
    """Load and warm up every package of ``settings.models``.

    ``report_step`` receives a description of each step. A package that cannot be loaded is logged
    and listed in :attr:`ModelRegistry.failed`, unless ``settings.strict_start`` is set.

    Raises :class:`model_package.PackageError` or :class:`service.engines.EngineUnavailableError` if
    no package can be loaded, if two have the same name, or if the default model does not exist.
    """
    failures = _Failures(metrics)
    collect: _Collect = _raise_all if settings.strict_start else failures.collect
    report_step(f"checking the files in {settings.models}")
    packages = list(_read_packages(settings.models, collect))
    names = [*(package.manifest.name for package in packages), *failures.reasons]
    default_name = _default_name(settings, names)
    pool = open_image_pool(settings, metrics)
    detectors: dict[str, AsyncDetector] = {}
    for number, package in enumerate(packages, start=1):
        name, version = package.manifest.name, package.manifest.version
        with collect(name, version, NO_ENGINE):
            if settings.build_engines:
                package = _build_engines(package, settings, metrics, report_step)
            report_step(f"loading {name}, {number} of {len(packages)}")
            detector, self_test = open_detector(package, settings)
            loaded = AsyncDetector(detector, pool, settings, metrics, self_test)
            with collect(name, version, FAILED_WARM_UP):
                report_step(f"warming up {name}, {number} of {len(packages)}")
                _warm_up(loaded, package)
                detectors[name] = loaded
    if failures.first_error is not None and not detectors:
        raise failures.first_error
    return ModelRegistry(detectors, default_name, pool, failures.reasons)


def open_image_pool(settings: Settings, metrics: Metrics) -> ImagePool:
    """Start the threads that decode images, with their metrics."""
    pool = ImagePool(settings.image_threads, settings.max_decoding_bytes)
    metrics.watch_image_pool(
        depth=lambda: pool.depth,
        oldest_age_s=lambda: pool.oldest_age_s,
        held_bytes=lambda: pool.held_bytes,
    )
    return pool


def find_packages(settings: Settings) -> Iterator[ModelPackage]:
    """Read every package of ``settings.models``. Raises :class:`model_package.PackageError`."""
    return _read_packages(settings.models, _raise_all)


def _read_packages(models: Path, collect: _Collect) -> Iterator[ModelPackage]:
    """Yield every package whose files are those of its manifest.

    A package whose manifest cannot be read has the name of its directory.
    """
    names = set()
    for directory in _package_directories(models):
        package = None
        name = directory.name.encode("utf-8", "replace").decode()  # any bytes are possible
        with collect(name, "", BAD_MANIFEST):
            manifest = read_manifest(directory)
            name = manifest.name
            with collect(name, manifest.version, BAD_FILES):
                package = check_files(directory, manifest)
        if name in names:
            raise PackageError(
                f"two packages in {models} have the name {name}; "
                "remove one, or export it again with another name."
            )
        names.add(name)
        if package is not None:
            yield package


def _build_engines(
    package: ModelPackage,
    settings: Settings,
    metrics: Metrics,
    report_step: Callable[[str], None],
) -> ModelPackage:
    name = package.manifest.name
    gauge = metrics.build_progress.labels(name)
    logged_at = time.monotonic()

    def report_progress(share: float, step: str) -> None:
        nonlocal logged_at
        text = f"building an engine of {name}, {100 * share:.0f} % done: {step}"
        gauge.set(share)
        report_step(text)
        if time.monotonic() > logged_at + BUILD_LOG_INTERVAL_S:
            logged_at = time.monotonic()
            _log.info(text)

    max_batch_size = settings.max_batch_size or DEFAULT_GPU_BATCH_SIZE
    package = build_engines(package, settings.backend, max_batch_size, report_progress)
    gauge.set(1)
    return package


def _warm_up(detector: AsyncDetector, package: ModelPackage) -> None:
    """Warm up the model; it is closed if that fails."""
    try:
        detector.warm_up()
    except BaseException:
        detector.detector.close()
        raise
    _log.debug(
        "%s is ready: %d classes, maximum batch size %d, %s",
        *(package.manifest.name, len(package.manifest.classes), detector.max_batch_size),
        package.directory,
    )


def _package_directories(models: Path) -> list[Path]:
    if (models / MANIFEST_FILE).is_file():
        return [models]
    # A directory whose name starts with a dot is a package that is being written.
    directories = sorted(
        path.parent for path in models.glob(f"*/{MANIFEST_FILE}") if path.parent.name[0] != "."
    )
    if not directories:
        raise PackageNotFoundError(
            f"{models.absolute()} is not a model package and contains none. "
            "Make one with centernet-export, or name another directory with --models."
        )
    return directories


def _default_name(settings: Settings, loadable: Sequence[str]) -> str:
    names = ", ".join(loadable)
    if settings.default_model is None:
        if len(loadable) > 1:
            raise PackageError(
                f"there are several models, {names}: choose the model of POST /detect "
                "with --default-model."
            )
        return loadable[0]
    if settings.default_model not in loadable:
        raise PackageError(f"there is no model {settings.default_model!r}; there are {names}.")
    return settings.default_model
