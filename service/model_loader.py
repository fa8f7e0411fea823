"""Background loading of the models, while the server already responds to probes."""

import asyncio
import threading
from collections.abc import Callable

from service.errors import NotReadyError
from service.model_registry import ModelRegistry
from service.observability.tracing import Tracing

RETRY_AFTER_S = 5
"""Retry-After in seconds while the models are being loaded; the actual duration is unknown."""


class ModelLoader:
    """Loader that runs ``load`` in a thread of its own and holds the result.

    ``load`` receives a callback for descriptions of its steps.
    """

    def __init__(self, load: Callable[[Callable[[str], None]], ModelRegistry]) -> None:
        self._load = load
        self._loaded: ModelRegistry | None = None
        self._models: ModelRegistry | None = None
        self._step = "starting"
        self.error: BaseException | None = None
        """The exception of ``load``, if it raised one."""

    def load(self) -> None:
        """Load the models in the calling thread, before :meth:`run`; raises what that raises."""
        self._loaded = self._load(self._report_step)

    async def run(self, tracing: Tracing | None) -> None:
        """Load the models, unless they are loaded, and start them.

        Sets :attr:`error` if that fails.
        """
        try:
            models = self._loaded or await self._load_in_thread()
        except Exception as error:
            self.error = error
            return
        models.start(tracing)
        self._models = models

    async def _load_in_thread(self) -> ModelRegistry:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[ModelRegistry] = loop.create_future()

        def finish(models: ModelRegistry | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if models is None:
                done.set_exception(error or RuntimeError("no models were loaded"))
            else:
                done.set_result(models)

        def load() -> None:
            models, error = None, None
            try:
                models = self._load(self._report_step)
            except BaseException as caught:  # of any type: the task must receive it
                error = caught
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, models, error)

        # A daemon thread, so that SIGTERM does not wait for a large model.
        threading.Thread(target=load, name="model-loader", daemon=True).start()
        return await done

    def _report_step(self, step: str) -> None:
        self._step = step

    @property
    def is_done(self) -> bool:
        """True if the models are loaded."""
        return self._models is not None

    @property
    def models(self) -> ModelRegistry:
        """The loaded models. Raises :class:`NotReadyError` until they are loaded."""
        if self._models is None:
            raise NotReadyError(
                f"The service is starting: {self._step}. Send the request again after the time "
                "in Retry-After.",
                retry_after_s=RETRY_AFTER_S,
            )
        return self._models

    async def stop(self) -> None:
        """Finish the admitted requests, if the models were loaded."""
        if self._models is not None:
            await self._models.stop()
