"""The Ray Serve application ``service.ray_serve.application:app``.

A replica is the whole service: it decodes images, forms batches and runs the engine in one process.
Ray Serve is the HTTP server, the load balancer and the supervisor of the replicas. Settings are the
``CENTERNET_*`` variables of its processes (``runtime_env.env_vars``).
"""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import ray
from ray import serve
from ray.serve.context import ReplicaContext
from starlette.types import ASGIApp

from service.app import create_app
from service.cli import SWITCH_INTERVAL_S, make_loader
from service.cpu_cores import limit_cores
from service.health import check_live
from service.http.state import state_of
from service.observability.logs import set_up_logging
from service.observability.metrics import Metrics
from service.peers import ANSWER_S, Peers
from service.ray_serve.asgi import replica_application
from service.ray_serve.autoscaling import QUEUE_AGE
from service.ray_serve.settings import read_settings

_log = logging.getLogger(__name__)


class ReplicaPeers(Peers):
    """The other replicas of the deployment; ``replica``: this one."""

    def __init__(self, replica: ReplicaContext) -> None:
        self._id: str = replica.replica_id.unique_id
        self._name, self._app_name = replica.deployment, replica.app_name
        self._answers: Mapping[bytes, Callable[[], bytes]] = {}

    async def serve(self, answers: Mapping[bytes, Callable[[], bytes]]) -> None:
        """Answer the others from now on."""
        self._answers = answers

    def answer(self, question: bytes, replica_id: str) -> bytes | None:
        """Return the answer to the replica ``replica_id``; None if it is this one."""
        answer = self._answers.get(question)
        return None if answer is None or replica_id == self._id else answer()

    async def ask(self, question: bytes) -> list[bytes]:
        """Return the answers of all other replicas that answer in time."""
        handle = serve.get_deployment_handle(self._name, self._app_name)
        calls = handle.broadcast("answer_replica", question, self._id)
        try:
            answers = await calls.results_async(timeout_s=ANSWER_S, return_exceptions=True)
        except TimeoutError:
            _log.warning("a replica did not answer within %g s", ANSWER_S)
            return []
        for error in answers:
            if isinstance(error, Exception):  # of a replica that has just ended
                _log.warning("no answer from a replica: %s", error)
        return [answer for answer in answers if isinstance(answer, bytes)]


# The numbers of replicas, cores and GPUs are those of a small machine; a file of Ray Serve sets
# them. The others follow from the default settings, see docs/ray.md.
@serve.deployment(
    name="CenterNet",
    max_ongoing_requests=512,
    max_queued_requests=512,
    backpressure_config={"status_code": 503, "retry_after_s": 1},
    graceful_shutdown_timeout_s=75,
    health_check_period_s=5,
    health_check_timeout_s=15,
)
@serve.ingress()
class CenterNet:
    """One replica. Its start ends, with the error, if its models cannot be loaded."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU")
        if cores is not None:
            limit_cores(cores)
        self._settings = read_settings()
        set_up_logging(self._settings.log_format, self._settings.log_level)
        replica = serve.get_replica_context()
        self._peers = ReplicaPeers(replica)
        self._metrics = Metrics(replica.replica_id.unique_id)
        loader = make_loader(self._settings, self._metrics)
        self._app = create_app(loader, self._settings, self._metrics, self._peers)
        # Ray sends requests to a replica once it is constructed.
        loader.load()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application that Ray runs with its lifespan."""
        return replica_application(self._app, self._settings)

    async def check_health(self) -> None:
        """Raise if Ray must replace the replica: its engine is broken or computes wrong results."""
        state = state_of(self._app)
        check_live(state)
        if state.loader.is_done and (problem := state.loader.models.problem):
            raise RuntimeError(problem)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the metrics for the autoscaling policy."""
        return {QUEUE_AGE: self._metrics.queue_age_s()}

    def answer_replica(self, question: bytes, replica_id: str) -> bytes | None:
        """Answer a question of another replica."""
        return self._peers.answer(question, replica_id)


app: Any = cast(Any, CenterNet).bind()
