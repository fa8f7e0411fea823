"""Autoscaling policy of the service.

Ray runs it in its controller, to which it sends this module: import nothing of the service here.
"""

from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

QUEUE_AGE = "queue_oldest_age_seconds"
"""The metric that each replica reports: how long its oldest image has been waiting."""
_MAX_GROWTH = 2.0
"""Largest factor by which the age changes the number of replicas at a time."""


class QueueAgePolicy:
    """Policy that scales on ongoing requests, and on the age of the oldest image that waits.

    The larger number of replicas of the two applies. The age covers what the number of requests
    does not: images or options that cost more than usual, and slow engines. Alone it would remove
    replicas whenever no image waits.

    ``target_queue_age_s``: mean of the replicas above which replicas are added, in proportion and
    at most twice as many at a time.
    """

    def __init__(self, target_queue_age_s: float = 0.2) -> None:
        if target_queue_age_s <= 0:
            raise ValueError(
                f"target_queue_age_s: received {target_queue_age_s}; it must be more than 0"
            )
        self._target_queue_age_s = target_queue_age_s

    def __call__(self, context: "AutoscalingContext") -> tuple[float, dict[str, Any]]:
        """Return the number of replicas that is needed, and the state of the policy (none)."""
        replicas = context.total_num_requests / context.config.get_target_ongoing_requests()
        ages = (context.aggregated_metrics or {}).get(QUEUE_AGE, {}).values()
        ratio = fmean(ages) / self._target_queue_age_s if ages else 0.0
        if ratio > 1:
            replicas = max(replicas, context.current_num_replicas * min(ratio, _MAX_GROWTH))
        return replicas, {}
