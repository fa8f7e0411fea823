"""The packages in a directory: which there are, and loading them.

Everything here blocks, and runs in a thread while models are served.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from model_package import (
    MANIFEST_FILE,
    ModelManifest,
    ModelPackage,
    PackageError,
    PackageNotFoundError,
    load_package,
)
from model_package.directory import check_files, read_manifest
from model_package.versions import version_key
from service.async_detector import AsyncDetector
from service.detector import DEFAULT_GPU_BATCH_SIZE, open_detector
from service.engines import EngineUnavailableError
from service.engines.build_engines import build_engines
from service.engines.errors import EngineBrokenError
from service.image_pool import ImagePool
from service.observability.metrics import Metrics
from service.settings import Settings

_log = logging.getLogger(__name__)

BAD_MANIFEST = "its model.json is damaged, or of a version that is not supported"
BAD_FILES = "a file of its package is damaged or missing, or was changed after the export"
NO_ENGINE = "no engine of this machine runs it with the expected outputs"
FAILED_WARM_UP = "its engine failed in the warm-up"
DUPLICATE = "several packages have this name and version"
"""Reasons that clients see. The error in the log is for operators: it contains paths."""

BUILD_LOG_INTERVAL_S = 10.0
"""Seconds between lines of the log while an engine is built, which takes minutes."""


@dataclass(frozen=True)
class FoundPackage:
    """A package whose manifest was read; its files are checked when it is loaded."""

    directory: Path
    manifest: ModelManifest


@dataclass(frozen=True)
class FailedPackage:
    """A package that could not be loaded.

    If its manifest cannot be read, ``name`` is that of the directory and ``version`` is empty.
    ``reason``: for clients; ``error``: the cause, for operators.
    """

    directory: Path
    name: str
    version: str
    reason: str
    error: Exception


@dataclass(frozen=True)
class Scan:
    """The packages in the directory, and those whose manifest cannot be read.

    ``signature``: that of the files, see :meth:`ModelRepository.signature`.
    """

    signature: object
    packages: Sequence[FoundPackage]
    unreadable: Sequence[FailedPackage]

    @property
    def names(self) -> list[str]:
        """The names of the models, each once, in the order of the directories."""
        return list(dict.fromkeys(package.manifest.name for package in self.packages))


@dataclass(frozen=True)
class LoadedVersions:
    """The versions of one model to serve, newest first, and its packages that failed."""

    detectors: tuple[AsyncDetector, ...]
    failed: tuple[FailedPackage, ...]


class _LoadError(Exception):
    """A package cannot be loaded; the message is the reason for clients."""


class ModelRepository:
    """The packages in ``settings.models``.

    ``pool``: threads that decode images for the loaded models.
    """

    def __init__(self, settings: Settings, metrics: Metrics, pool: ImagePool) -> None:
        self.settings = settings
        self.metrics = metrics
        self.pool = pool

    def scan(self) -> Scan:
        """Read the manifest of every package.

        Raises :class:`model_package.PackageNotFoundError` if there is no package.
        """
        signature = self.signature()
        packages: list[FoundPackage] = []
        unreadable: list[FailedPackage] = []
        for directory in _package_directories(self.settings.models):
            try:
                packages.append(FoundPackage(directory, read_manifest(directory)))
            except PackageError as error:
                name = directory.name.encode("utf-8", "replace").decode()  # any bytes are possible
                unreadable.append(_failed(directory, name, "", BAD_MANIFEST, error))
        return Scan(signature, packages, unreadable)

    def signature(self) -> object:
        """Return a value that changes when a file of a package is added, removed or written.

        Raises :class:`model_package.PackageNotFoundError` if there is no package.
        """
        files = []
        for directory in _package_directories(self.settings.models):
            with suppress(OSError):  # removed in the meantime
                for path in sorted(directory.iterdir()):
                    status = path.lstat()
                    files.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        return files

    def load(
        self,
        name: str,
        scan: Scan,
        served: Sequence[AsyncDetector],
        report_step: Callable[[str], None],
    ) -> LoadedVersions:
        """Load the newest packages of a model, as many as ``settings.model_versions``.

        The version in ``settings.shadow`` is loaded in addition.

        Those that are served already are not loaded again. Packages are tried from the newest
        version on, so that in place of one that cannot be loaded the next is served. Likewise, a
        version that is served remains if the package that took its place cannot be loaded.

        Raises :class:`service.engines.errors.EngineBrokenError`: after it, no model can use the
        GPU.
        """
        packages = [package for package in scan.packages if package.manifest.name == name]
        failed: list[FailedPackage] = []
        # The detector of each package that was tried, None if it failed.
        tried: dict[Path, AsyncDetector | None] = dict.fromkeys(
            package.directory for package in scan.unreadable
        )

        def try_package(package: FoundPackage) -> AsyncDetector | None:
            if package.directory not in tried:
                try:
                    _check_is_single(package, packages)
                    detector = _find(package, served) or self._open(package, report_step)
                    tried[package.directory] = detector
                except _LoadError as error:
                    tried[package.directory] = None
                    failed.append(_failed_package(package, error))
            return tried[package.directory]

        def try_version(version: str) -> AsyncDetector | None:
            for package in packages:
                if package.manifest.version == version and (detector := try_package(package)):
                    return detector
            for detector in served:
                if detector.manifest.version == version and was_spoiled(detector.directory):
                    return detector
            return None

        def was_spoiled(directory: Path | None) -> bool:
            """Return whether the package that is now in the directory cannot be loaded."""
            for package in packages:
                if package.directory == directory:
                    return try_package(package) is None
            return directory in tried

        shadow = self.settings.shadows.get(name)
        left = self.settings.model_versions
        versions = {package.manifest.version for package in packages}
        versions |= {detector.manifest.version for detector in served}
        selected: list[AsyncDetector] = []
        for version in sorted(versions, key=version_key, reverse=True):
            is_shadow = shadow is not None and version == shadow.version
            if (left or is_shadow) and (detector := try_version(version)):
                selected.append(detector)
                left -= not is_shadow
        for detector in tried.values():
            if detector is not None and detector not in (*selected, *served):
                detector.detector.close()
        return LoadedVersions(tuple(selected), tuple(failed))

    def _open(self, package: FoundPackage, report_step: Callable[[str], None]) -> AsyncDetector:
        """Check, load and warm up a package; raises :class:`_LoadError`."""
        metrics = self.metrics
        metrics.model_loading.set(1)
        try:
            detector = self._open_package(package, report_step)
        except BaseException:
            metrics.model_loads.labels("failed").inc()
            raise
        finally:
            metrics.model_loading.set(0)
        metrics.model_loads.labels("ok").inc()
        return detector

    def _open_package(
        self, package: FoundPackage, report_step: Callable[[str], None]
    ) -> AsyncDetector:
        title = f"{package.manifest.name} {package.manifest.version}"
        report_step(f"checking the files of {title}")
        with _reason(BAD_FILES):
            checked = check_files(package.directory, package.manifest)
        with _reason(NO_ENGINE):
            if self.settings.build_engines:
                checked = _build_engines(checked, self.settings, self.metrics, report_step)
            report_step(f"loading {title}")
            detector, self_test = open_detector(checked, self.settings)
        loaded = AsyncDetector(
            detector, self.pool, self.settings, self.metrics, self_test, package.directory
        )
        report_step(f"warming up {title}")
        with _reason(FAILED_WARM_UP):
            _warm_up(loaded, checked)
        return loaded


def find_packages(settings: Settings) -> Iterator[ModelPackage]:
    """Read every package of ``settings.models``. Raises :class:`model_package.PackageError`."""
    return map(load_package, _package_directories(settings.models))


@contextmanager
def _reason(reason: str) -> Iterator[None]:
    """Raise :class:`_LoadError` with this reason for an error of the block."""
    try:
        yield
    except EngineBrokenError:
        raise
    except Exception as error:  # libraries raise any exception for a damaged package
        raise _LoadError(reason) from error


def _check_is_single(package: FoundPackage, packages: Sequence[FoundPackage]) -> None:
    """Raise :class:`_LoadError` if another package of the model has the same version."""
    version = package.manifest.version
    directories = [str(one.directory) for one in packages if one.manifest.version == version]
    if len(directories) > 1:
        with _reason(DUPLICATE):
            raise PackageError(
                f"the packages in {' and '.join(directories)} have the name "
                f"{package.manifest.name} and the version {version}; remove all but one, or "
                "export them with another name or version."
            )


def _find(package: FoundPackage, served: Sequence[AsyncDetector]) -> AsyncDetector | None:
    """Return the detector of exactly this package, if it is served."""
    for detector in served:
        # A manifest has the digests of all files.
        if detector.manifest == package.manifest:
            detector.directory = package.directory  # it may have been renamed
            return detector
    return None


def _failed_package(package: FoundPackage, error: _LoadError) -> FailedPackage:
    cause, manifest = error.__cause__, package.manifest
    assert isinstance(cause, Exception)
    return _failed(package.directory, manifest.name, manifest.version, str(error), cause)


def _failed(
    directory: Path, name: str, version: str, reason: str, error: Exception
) -> FailedPackage:
    title = f"{name} {version}".rstrip()
    is_described = isinstance(error, PackageError | EngineUnavailableError)
    _log.error("%s is not served: %s", title, error, exc_info=None if is_described else error)
    return FailedPackage(directory, name, version, reason, error)


def _build_engines(
    package: ModelPackage,
    settings: Settings,
    metrics: Metrics,
    report_step: Callable[[str], None],
) -> ModelPackage:
    name, version = package.manifest.name, package.manifest.version
    gauge = metrics.build_progress.labels(name, version)
    logged_at = time.monotonic()

    def report_progress(share: float, step: str) -> None:
        nonlocal logged_at
        text = f"building an engine of {name} {version}, {100 * share:.0f} % done: {step}"
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
