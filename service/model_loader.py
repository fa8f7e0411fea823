"""Background loading of the models, while the server already responds to probes."""

from collections.abc import Callable

from service.daemon_thread import DaemonThread
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
        thread = DaemonThread("model-loader")
        try:
            models = self._loaded
            if models is None:
                models = await thread.call(lambda: self._load(self._report_step))
        except Exception as error:
            self.error = error
            return
        finally:
            thread.close()
        models.start(tracing)
        self._models = models

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
