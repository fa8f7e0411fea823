"""Registry of the loaded models, and loading of the packages of a directory."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_package import (
    MANIFEST_FILE,
    ModelPackage,
    PackageError,
    PackageNotFoundError,
    load_package,
)
from service.async_detector import AsyncDetector
from service.detector import DEFAULT_GPU_BATCH_SIZE, open_detector
from service.engines.build_engines import build_engines
from service.errors import UnknownModelError
from service.image_pool import ImagePool
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelRegistry:
    """Every loaded model by name, and the name of the default model."""

    detectors: Mapping[str, AsyncDetector]
    default_name: str
    pool: ImagePool

    def get(self, name: str | None) -> AsyncDetector:
        """Return the model of that name, or the default model for None.

        Raises :class:`UnknownModelError`.
        """
        try:
            return self.detectors[self.default_name if name is None else name]
        except KeyError:
            known = ", ".join(self.detectors)
            raise UnknownModelError(
                f"There is no model {str(name)[:100]!r}. The loaded models are {known}."
            ) from None

    def start(self, tracing: Tracing | None) -> None:
        """Start every model; call it inside the running event loop."""
        for detector in self.detectors.values():
            detector.start(tracing)

    async def stop(self) -> None:
        """Finish the admitted requests and end all threads."""
        await asyncio.gather(*(detector.stop() for detector in self.detectors.values()))
        self.pool.close()


def load_models(
    settings: Settings, metrics: Metrics, report_step: Callable[[str], None]
) -> ModelRegistry:
    """Load and warm up every package of ``settings.models``.

    ``report_step`` receives a description of each step. Raises
    :class:`model_package.PackageError` or :class:`service.engines.EngineUnavailableError`: one
    package that cannot be served stops the start-up, so that no model is missing silently.
    """
    packages = list(find_packages(settings))
    default_name = _default_name(settings, [package.manifest.name for package in packages])
    pool = ImagePool(settings.image_threads, settings.max_decoding_bytes)
    metrics.watch_image_pool(lambda: pool.oldest_age_s, lambda: pool.held_bytes)
    detectors: dict[str, AsyncDetector] = {}
    for package in packages:
        name = package.manifest.name
        if settings.build_engines:
            package = _build_engines(package, settings, metrics, report_step)
        report_step(f"loading {name}")
        detector, self_test = open_detector(package, settings)
        detectors[name] = AsyncDetector(detector, pool, settings, metrics, self_test)
        report_step(f"warming up {name}")
        detectors[name].warm_up()
        _log.info(
            "%s is ready: %d classes, maximum batch size %d, %s",
            *(name, len(package.manifest.classes), detectors[name].max_batch_size),
            package.directory,
        )
    return ModelRegistry(detectors, default_name, pool)


def find_packages(settings: Settings) -> Iterator[ModelPackage]:
    """Read every package of ``settings.models``. Raises :class:`model_package.PackageError`."""
    names = set()
    for directory in _package_directories(settings.models):
        package = load_package(directory)
        if package.manifest.name in names:
            raise PackageError(
                f"two packages in {settings.models} have the name {package.manifest.name}; "
                "remove one, or export it again with another name."
            )
        names.add(package.manifest.name)
        yield package


def _build_engines(
    package: ModelPackage,
    settings: Settings,
    metrics: Metrics,
    report_step: Callable[[str], None],
) -> ModelPackage:
    name = package.manifest.name
    gauge = metrics.build_progress.labels(name)

    def report_progress(share: float, step: str) -> None:
        gauge.set(share)
        report_step(f"building an engine of {name}, {100 * share:.0f} % done: {step}")

    max_batch_size = settings.max_batch_size or DEFAULT_GPU_BATCH_SIZE
    package = build_engines(package, settings.backend, max_batch_size, report_progress)
    gauge.set(1)
    return package


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
