"""Loading the models while the server answers its probes already."""

import asyncio
import threading
from collections.abc import Callable

from service.errors import NotReadyError
from service.model_registry import ModelRegistry
from service.observability.tracing import Tracing

RETRY_AFTER_S = 5
"""Nobody knows how long loading takes; a client may ask so often."""


class ModelLoader:
    """The models, once ``load`` has given them.

    ``load`` runs in a thread of its own and is handed a function to say what it is doing.
    """

    def __init__(self, load: Callable[[Callable[[str], None]], ModelRegistry]) -> None:
        self._load = load
        self._models: ModelRegistry | None = None
        self._step = "starting"
        self.error: BaseException | None = None

    async def run(self, tracing: Tracing | None) -> None:
        """Load the models and begin to serve; :attr:`error` has what ``load`` raised."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[ModelRegistry] = loop.create_future()

        def finish(models: ModelRegistry | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if models is None:
                done.set_exception(error or RuntimeError("nothing was loaded"))
            else:
                done.set_result(models)

        def work() -> None:
            models, error = None, None
            try:
                models = self._load(self._note)
            except BaseException as caught:  # whatever it was, the waiting task must hear of it
                error = caught
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, models, error)

        # A daemon, so that SIGTERM does not wait for a large model to be loaded.
        threading.Thread(target=work, name="startup", daemon=True).start()
        try:
            models = await done
        except Exception as error:
            self.error = error
            return
        models.start(tracing)
        self._models = models

    def _note(self, step: str) -> None:
        self._step = step

    @property
    def is_done(self) -> bool:
        """Whether the models are loaded."""
        return self._models is not None

    @property
    def models(self) -> ModelRegistry:
        """The loaded models. Raises :class:`NotReadyError` before there are any."""
        if self._models is None:
            raise NotReadyError(
                f"The service is starting: {self._step}. Send the request again after the time "
                "in Retry-After.",
                retry_after_s=RETRY_AFTER_S,
            )
        return self._models

    async def stop(self) -> None:
        """Finish what was admitted, if anything was."""
        if self._models is not None:
            await self._models.stop()
