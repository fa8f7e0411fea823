"""Registry of the models that are served, and the changes of it while the service runs."""

import asyncio
import ctypes
import gc
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from model_package import PackageError
from service.async_detector import AsyncDetector
from service.daemon_thread import DaemonThread
from service.engines.errors import EngineBrokenError
from service.errors import ModelUnavailableError, RestartRequiredError, UnknownModelError
from service.image_pool import ImagePool
from service.model_repository import FailedPackage, LoadedVersions, ModelRepository, Scan
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import Settings, Shadow
from service.shadow import ShadowComparisons

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ModelState:
    """The state of one version of a model, as the Open Inference Protocol names it.

    ``version``: empty for a package whose manifest cannot be read. ``reason``: of a state other
    than READY; it contains no paths.
    """

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
    reason: str = ""


class ModelRegistry:
    """The models that are served, by name, and the default model.

    ``detectors``: the newest version of each model that is no shadow. ``repository``: the packages
    to load; without it, models can only be unloaded.

    Lookups and changes take place in the event loop, packages are loaded in a thread. Changes are
    made one at a time, and each moves the requests of a model in one step: those that come after it
    use the new versions, and a detector that is not served any more is stopped after the last
    request that holds it (:meth:`lease`).
    """

    def __init__(
        self,
        detectors: Mapping[str, AsyncDetector],
        default_name: str,
        pool: ImagePool,
        repository: ModelRepository | None = None,
    ) -> None:
        self.default_name = default_name
        self.pool = pool
        self._repository = repository
        self._versions: Mapping[str, tuple[AsyncDetector, ...]] = {
            name: (detector,) for name, detector in detectors.items()
        }
        self._loading: tuple[str, str] | None = None
        """The model of which a package is being loaded, and the current step."""
        self._failed: dict[str, tuple[FailedPackage, ...]] = {}
        self._unreadable: Sequence[FailedPackage] = ()
        self._signature: object = None
        """Signature of the files at the last scan of all packages."""
        self._reported: set[tuple[str, str]] = set()
        """Names and versions of the failed packages that the metrics report."""
        self._unloaded: dict[str, tuple[str, ...]] = {}
        """Models that were unloaded on request, and their versions."""
        self._retiring: dict[AsyncDetector, asyncio.Task[None]] = {}
        # One thread: when each model is compiled in a new one, OpenVINO keeps some MB for each.
        self._thread = DaemonThread("model-loader")
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._is_started = False
        self._tracing: Tracing | None = None
        self._shadows: Mapping[str, Shadow] = {}
        self._comparisons: ShadowComparisons | None = None
        if repository is not None:
            settings = repository.settings
            self._shadows = settings.shadows
            self._comparisons = ShadowComparisons(settings, repository.metrics, pool, self._running)
        self._select()

    def _select(self) -> None:
        """Set the detectors that requests use from the versions that are served."""
        detectors: dict[str, AsyncDetector] = {}
        shadows: dict[str, AsyncDetector] = {}
        for name, versions in self._versions.items():
            for detector in versions:
                shadow = self._shadows.get(name)
                if shadow is not None and detector.manifest.version == shadow.version:
                    shadows[name] = detector
                else:
                    detectors.setdefault(name, detector)
        self.detectors: Mapping[str, AsyncDetector] = detectors
        if self._comparisons is not None:
            self._comparisons.update(detectors, shadows)

    def get(self, name: str | None, version: str | None = None) -> AsyncDetector:
        """Return the model of that name, or the default model for None; its newest version.

        To run it, use :meth:`lease`. Raises :class:`UnknownModelError` and
        :class:`ModelUnavailableError`.
        """
        name = self.default_name if name is None else name
        if version is None:
            detector = self.detectors.get(name)
        else:
            versions = self._versions.get(name, ())
            detector = next((one for one in versions if one.manifest.version == version), None)
        if detector is None:
            raise self._missing(name, version)
        return detector

    def lease(
        self, name: str | None, version: str | None = None
    ) -> AbstractContextManager[AsyncDetector]:
        """Return a block with the model of :meth:`get`, which keeps running until the block ends.

        Enter it at once: before, the model may be stopped.
        """
        return self.get(name, version).hold()

    def versions(self, name: str) -> Sequence[AsyncDetector]:
        """Return the versions of a model that are served, newest first."""
        return self._versions.get(name, ())

    @property
    def loading(self) -> str | None:
        """The current step of loading a package; None while none is being loaded."""
        return None if self._loading is None else self._loading[1]

    @property
    def failed(self) -> Sequence[FailedPackage]:
        """The packages that could not be loaded."""
        return [*self._unreadable, *(one for group in self._failed.values() for one in group)]

    def states(self) -> list[ModelState]:
        """Return the state of every version of every model."""
        states = [
            ModelState(
                *_identity(detector),
                "READY" if detector.problem is None else "UNAVAILABLE",
                detector.problem or "",
            )
            for detector in self._served()
        ]
        states += [
            ModelState(one.name, one.version, "UNAVAILABLE", one.reason) for one in self.failed
        ]
        if self._loading is not None:
            name, step = self._loading
            states.append(ModelState(name, "", "LOADING", step))
        states += [ModelState(*_identity(one), "UNLOADING") for one in self._retiring]
        states += [
            ModelState(name, version, "UNAVAILABLE", "unloaded")
            for name, versions in self._unloaded.items()
            for version in versions
        ]
        return states

    def _missing(self, name: str, version: str | None) -> Exception:
        known = _list(self.detectors)
        served = self.versions(name)
        if served and version is None:
            return UnknownModelError(
                f"Version {served[0].manifest.version} of model {name} is loaded only as a shadow, "
                "and no other version is loaded."
            )
        if served:
            return UnknownModelError(
                f"There is no version {str(version)[:100]!r} of model {name}. The loaded versions "
                f"are {_list(one.manifest.version for one in served)}."
            )
        for package in self.failed:
            if package.name == name:
                return ModelUnavailableError(
                    f"The model {name} could not be loaded: {package.reason}. The cause is in the "
                    f"log of the service. The loaded models are {known}."
                )
        if name in self._unloaded:
            return UnknownModelError(
                f"The model {name} is unloaded. The loaded models are {known}."
            )
        return UnknownModelError(
            f"There is no model {name[:100]!r}. The loaded models are {known}."
        )

    @property
    def summary(self) -> str:
        """The names of the models, the default model marked, and of those that failed."""
        names = []
        for name, versions in self._versions.items():
            notes = ["default"] * (name == self.default_name)
            if len(versions) > 1:
                notes.append(f"versions {', '.join(one.manifest.version for one in versions)}")
            names.append(f"{name} ({', '.join(notes)})" if notes else name)
        return ", ".join([*names, *(f"{one.name} (failed)" for one in self.failed)])

    @property
    def problem(self) -> str | None:
        """Reason a model is not ready; None if all are ready."""
        return _first_problem(self._served(), lambda detector: detector.problem)

    @property
    def fatal_problem(self) -> str | None:
        """Reason the process must be restarted; None if it need not be."""
        return _first_problem(self._running(), lambda detector: detector.fatal_problem)

    def _served(self) -> list[AsyncDetector]:
        return [detector for versions in self._versions.values() for detector in versions]

    def _running(self) -> list[AsyncDetector]:
        return [*self._served(), *self._retiring]

    def load_all(self, scan: Scan, report_step: Callable[[str], None]) -> None:
        """Load the packages of every model, before :meth:`start`; blocks.

        Raises the error of the first package that cannot be loaded, if ``strict_start`` is set or
        if no other can.
        """
        assert self._repository is not None
        is_strict = self._repository.settings.strict_start
        self._unreadable, self._signature = scan.unreadable, scan.signature
        for number, name in enumerate(scan.names, start=1):
            if is_strict and self.failed:
                break

            def report(step: str, number: int = number) -> None:
                report_step(f"{step}, model {number} of {len(scan.names)}")

            self._apply(name, self._repository.load(name, scan, (), report))
        if self.failed and (is_strict or not self.detectors):
            raise self.failed[0].error
        self._report_failed()

    def start(self, tracing: Tracing | None) -> None:
        """Start every model; call it inside the running event loop."""
        self._tracing = tracing
        self._is_started = True
        for detector in self._served():
            detector.start(tracing)

    async def stop(self) -> None:
        """Finish the admitted requests and end all threads."""
        if self._comparisons is not None:
            self._comparisons.update({}, {})
        detectors = self._running()
        tasks = [*self._changes, *self._retiring.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(detector.stop() for detector in detectors))
        self._thread.close()
        self.pool.close()

    async def load(self, name: str) -> None:
        """Load the packages of a model as they are now, and serve its newest version.

        Returns when requests use it. A package that is served already is not loaded again. If one
        cannot be loaded, the versions before it continue to be served.

        Raises :class:`UnknownModelError` and :class:`ModelUnavailableError`.
        """
        await self._change(self._load(name))

    async def unload(self, name: str) -> None:
        """Stop serving a model, until it is loaded again by :meth:`load`.

        Returns when no further request can use it; those that hold it are completed. Raises
        :class:`UnknownModelError`.
        """
        await self._change(self._unload(name))

    async def reload(self) -> None:
        """Serve the packages of the directory as they are now.

        New packages are loaded, and models whose packages are gone are unloaded, except that a
        directory without any package changes nothing. Packages that cannot be loaded are logged,
        and the versions before them continue to be served.
        """
        await self._change(self._reload())

    async def reload_on_change(self, interval_s: float) -> None:
        """Call :meth:`reload` when the files of the packages have changed; until cancelled.

        Files that changed within the last ``interval_s`` seconds may be incomplete: they are left
        for the next time.
        """
        seen = self._signature
        while True:
            await asyncio.sleep(interval_s)
            current = await self._read_signature()
            if current == seen and current != self._signature:
                await self.reload()
            seen = current

    async def _read_signature(self) -> object:
        if self._repository is None:
            return self._signature
        try:
            return await self._thread.call(self._repository.signature)
        except (PackageError, OSError):
            return None

    async def _change(self, change: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a change after those before it, even if the caller is cancelled."""

        async def run() -> _Result:
            async with self._changing:
                try:
                    return await change
                finally:
                    self._report_failed()

        task = asyncio.create_task(run(), name="model change")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load(self, name: str) -> None:
        try:
            repository, scan = await self._scan()
        except (PackageError, OSError) as error:
            _log.error("%s is not loaded: %s", name, error)
            raise UnknownModelError(
                f"There is no package of a model {name[:100]!r}, nor of any other."
            ) from error
        directories = [detector.directory for detector in self.versions(name)]
        failed = [
            one for one in scan.unreadable if one.name == name or one.directory in directories
        ]
        if name in scan.names:
            self._unloaded.pop(name, None)
            await self._update(repository, name, scan)
            failed += self._failed.get(name, ())
        elif not failed:
            raise UnknownModelError(
                f"There is no package of a model {name[:100]!r}. There are packages of "
                f"{_list(scan.names)}."
            )
        self._unreadable = scan.unreadable
        if failed:
            served = _list(one.manifest.version for one in self.versions(name))
            raise ModelUnavailableError(
                f"A package of model {name}, version {failed[0].version or 'unknown'}, could not "
                f"be loaded: {failed[0].reason}. The cause is in the log of the service. The "
                f"versions that are served are {served}."
            )

    async def _unload(self, name: str) -> None:
        detectors = self.versions(name)
        if not detectors:
            raise self._missing(name, None)
        self._unloaded[name] = tuple(one.manifest.version for one in detectors)
        self._failed.pop(name, None)
        self._serve(name, ())

    async def _reload(self) -> None:
        try:
            repository, scan = await self._scan()
        except (PackageError, OSError) as error:
            _log.error("the models are not changed: %s", error)
            self._signature = None
            return
        self._unreadable, self._signature = scan.unreadable, scan.signature
        for name in (self._unloaded.keys() | self._failed.keys()) - set(scan.names):
            self._unloaded.pop(name, None)
            self._failed.pop(name, None)
        for name in dict.fromkeys([*scan.names, *self._versions]):
            if name not in self._unloaded:
                try:
                    await self._update(repository, name, scan)
                except Exception:
                    _log.exception("%s is not changed", name)

    async def _scan(self) -> tuple[ModelRepository, Scan]:
        repository = self._repository
        if repository is None:
            raise PackageError("the models of this service have no packages")
        return repository, await self._thread.call(repository.scan)

    async def _update(self, repository: ModelRepository, name: str, scan: Scan) -> None:
        """Load the packages of one model in a thread, then serve them."""
        # Detectors that are still being stopped use memory that a further one may not find.
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)

        def report_step(step: str) -> None:
            self._loading = name, step

        load = partial(repository.load, name, scan, self.versions(name), report_step)
        try:
            self._apply(name, await self._thread.call(load))
        except EngineBrokenError as error:
            raise RestartRequiredError(
                f"Model {name} could not be loaded: {error}. Restart the service."
            ) from error
        finally:
            self._loading = None

    def _apply(self, name: str, loaded: LoadedVersions) -> None:
        self._failed.pop(name, None)
        if loaded.failed:
            self._failed[name] = loaded.failed
        self._serve(name, loaded.detectors)

    def _serve(self, name: str, detectors: tuple[AsyncDetector, ...]) -> None:
        before = self.versions(name)
        started = [detector for detector in detectors if detector not in before]
        if self._is_started:
            for detector in started:
                detector.start(self._tracing)
                _log.info("%s %s is served", *_identity(detector))
        versions = {**self._versions, name: detectors}
        if not detectors:
            del versions[name]
        self._versions = versions
        self._select()
        for detector in before:
            if detector not in detectors:
                self._retiring[detector] = asyncio.create_task(self._retire(detector))

    async def _retire(self, detector: AsyncDetector) -> None:
        name, version = _identity(detector)
        try:
            await detector.retire()
        finally:
            del self._retiring[detector]
        if all(one.manifest.version != version for one in self.versions(name)):
            detector.remove_metrics()
        _log.info("%s %s is unloaded", name, version)
        del detector  # the last reference but those of cycles
        self._thread.submit(_release_memory)

    def _report_failed(self) -> None:
        """Set the metrics of the packages that could not be loaded."""
        if self._repository is None:
            return
        metrics = self._repository.metrics
        running = {_identity(detector) for detector in self._running()}
        failed = {(package.name, package.version) for package in self.failed} - running
        for identity in self._reported - failed - running:
            metrics.remove_model(*identity)
        for identity in failed:
            metrics.model_ready.labels(*identity).set(0)
        self._reported = failed


def _release_memory() -> None:
    """Return the memory of objects that are not used any more to the operating system."""
    gc.collect()
    with suppress(OSError, AttributeError):  # other C libraries than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _identity(detector: AsyncDetector) -> tuple[str, str]:
    return detector.manifest.name, detector.manifest.version


def _first_problem(
    detectors: Iterable[AsyncDetector], problem_of: Callable[[AsyncDetector], str | None]
) -> str | None:
    for detector in detectors:
        problem = problem_of(detector)
        if problem is not None:
            return f"Model {detector.manifest.name}: {problem}."
    return None


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def load_models(
    settings: Settings, metrics: Metrics, report_step: Callable[[str], None]
) -> ModelRegistry:
    """Load and warm up the newest packages of every model in ``settings.models``.

    ``report_step`` receives a description of each step. A package that cannot be loaded is logged
    and listed in :attr:`ModelRegistry.failed`, unless ``settings.strict_start`` is set.

    Raises :class:`model_package.PackageError` or :class:`service.engines.EngineUnavailableError` if
    no package can be loaded, or if the default model does not exist.
    """
    pool = open_image_pool(settings, metrics)
    repository = ModelRepository(settings, metrics, pool)
    try:
        report_step(f"reading the packages in {settings.models}")
        scan = repository.scan()
        names = dict.fromkeys([*scan.names, *(package.name for package in scan.unreadable)])
        models = ModelRegistry({}, _default_name(settings, list(names)), pool, repository)
        models.load_all(scan, report_step)
        return models
    except BaseException:
        pool.close()
        raise


def open_image_pool(settings: Settings, metrics: Metrics) -> ImagePool:
    """Start the threads that decode images, with their metrics."""
    pool = ImagePool(settings.image_threads, settings.max_decoding_bytes)
    metrics.watch_image_pool(
        depth=lambda: pool.depth,
        oldest_age_s=lambda: pool.oldest_age_s,
        held_bytes=lambda: pool.held_bytes,
    )
    return pool


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
