"""Liveness and readiness of the service, whatever the protocol of the probe."""

from service.errors import NotReadyError, RestartRequiredError, StoppingError
from service.model_loader import RETRY_AFTER_S
from service.peers import READINESS
from service.state import ServiceState


def check_live(state: ServiceState) -> None:
    """Raise :class:`RestartRequiredError` if the process must be restarted."""
    problem = state.loader.models.fatal_problem if state.loader.is_done else None
    if problem is not None:
        raise RestartRequiredError(f"{problem} Restart the service.")


async def check_ready(state: ServiceState) -> None:
    """Raise unless requests are served: models loaded, self-tests passed, not shutting down.

    With several worker processes, all that have loaded their models must be ready. Raises
    :class:`StoppingError` and :class:`NotReadyError`.
    """
    if state.draining.is_set():
        raise StoppingError("The service is shutting down. Send requests elsewhere.")
    problems = [state.loader.models.problem or ""]
    if state.peers is not None:
        problems += [answer.decode() for answer in await state.peers.ask(READINESS)]
    for problem in filter(None, problems):
        raise NotReadyError(problem, retry_after_s=RETRY_AFTER_S)
