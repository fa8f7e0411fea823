"""Fixtures for all tests."""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.serving import ColourEngine, RunningServer, one_model, run_server
from support.tools import REQUIRE_TOOLS, required_tool

from model_package import ModelManifest
from service.engines import Engine
from service.settings import Settings

PROJECT = Path(__file__).parents[1]

LONG_FILES = frozenset(
    {
        *("test_extras.py", "test_hostile_inputs.py", "test_page.py"),
        *("test_rendered_parity.py", "test_upstream_parity.py"),
    }
)
"""Files of a minute or more, which run first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first, then those with most tests."""
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG_FILES, -sizes[item.path], item.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped for lack of a tool that ``REQUIRE_TOOLS`` lists."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if (tool := required_tool(reason)) is not None:
            report.outcome = "failed"
            report.longrepr = f"{reason}, but {REQUIRE_TOOLS} lists {tool}"
    return report


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference outputs and labelled images outside the repository, beside some checkouts."""
    directory = PROJECT.parent / "shared"
    if not (directory / "upstream").is_dir():
        pytest.skip("the upstream goldens and data are not beside this checkout (../shared)")
    return directory


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Undo changes of the logging configuration by programs that run in this process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)


@pytest.fixture(scope="session")
def bundled(project: Path) -> Path:
    """The bundled package ``blood_cells``."""
    return project / "models" / "blood_cells"


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server with a colour engine, for tests that do not change its state."""
    with run_server(one_model(ColourEngine()), Settings(max_batch_size=4)) as running:
        yield running


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """Start servers with an engine and settings."""
    with ExitStack() as stack:

        def start(
            engine: Engine, manifest: ModelManifest | None = None, **given: Any
        ) -> RunningServer:
            settings = Settings(**{"max_batch_size": 4} | given)
            return stack.enter_context(run_server(one_model(engine, manifest), settings))

        yield start
