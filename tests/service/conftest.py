"""Servers over engines that the tests control."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.serving import ColourEngine, RunningServer, one_model, run_server

from model_package import ModelManifest
from service.engines import Engine
from service.settings import Settings


@pytest.fixture(scope="session")
def bundled(project: Path) -> Path:
    """The bundled package."""
    return project / "models" / "blood_cells"


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server over a colour engine, for tests that do not change its state."""
    with run_server(one_model(ColourEngine()), Settings(max_batch_size=4)) as running:
        yield running


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """Start servers with engines and settings of the test's own."""
    with ExitStack() as stack:

        def start(
            engine: Engine, manifest: ModelManifest | None = None, **given: Any
        ) -> RunningServer:
            settings = Settings(**{"max_batch_size": 4} | given)
            return stack.enter_context(run_server(one_model(engine, manifest), settings))

        yield start
