"""The state of the service that all requests share, whatever their protocol."""

import asyncio
from dataclasses import dataclass

from service.access import Access
from service.body_budget import BodyBudget
from service.cancellation import CancelSignal
from service.model_loader import ModelLoader
from service.observability.metrics import Metrics
from service.peers import Peers
from service.settings import Settings


@dataclass(frozen=True)
class ServiceState:
    """State shared by all requests of one process.

    ``draining``: set when no further requests should be sent to the service; ``stopping``: set when
    bodies are no longer read; ``reload``: set to load the packages as they are now. ``peers``: the
    other worker processes, if there are several.
    """

    loader: ModelLoader
    settings: Settings
    metrics: Metrics
    bodies: BodyBudget
    access: Access
    draining: asyncio.Event
    stopping: CancelSignal
    reload: asyncio.Event
    peers: Peers | None
