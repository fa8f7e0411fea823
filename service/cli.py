"""The command ``centernet-serve``, with its subcommand ``tune``."""

import argparse
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from command_line.progress import print_line
from command_line.version import add_version_option
from model_package import PackageError
from service.access import KeyFileError
from service.app import GrpcUnavailableError, create_app
from service.cpu_cores import available_cores, share_quota
from service.engines import EngineUnavailableError
from service.grpc_port import reserved_grpc_port
from service.http.label_studio.images import TokenFileError
from service.http.uvicorn_server import Server, WorkerServer
from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry, load_models
from service.observability.logs import set_up_logging
from service.observability.metrics import Metrics
from service.observability.tracing import TracingUnavailableError
from service.peers import WorkerPeers
from service.settings import Settings
from service.tune import TuneSettings, tune
from service.workers import Worker, supervise

_Settings = TypeVar("_Settings", bound=Settings)

_START_ERRORS = (
    *(PackageError, EngineUnavailableError),
    *(KeyFileError, TokenFileError, TracingUnavailableError, GrpcUnavailableError),
)
_EXIT_INTERRUPTED = 130
SWITCH_INTERVAL_S = 0.0005
"""GIL switch interval: how long an engine thread waits for the GIL after a run. Python's default of
5 ms would leave a core idle while the event loop writes responses; much less than this takes a
fifth more CPU time with a fast engine (docs/adr/0020-fast-engines.md)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or tune; exit with status 2 if the start fails."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if args[:1] == ["tune"]:
        _tune(args[1:])
    else:
        _serve(args)


def _serve(arguments: list[str]) -> None:
    worker = Worker.from_environment()
    if worker is not None:
        share_quota(worker.count)
    parser = argparse.ArgumentParser(
        "centernet-serve",
        description="Serve model packages over HTTP. Each option is also an environment variable: "
        "CENTERNET_MAX_BATCH_SIZE is --max-batch-size. centernet-serve tune finds the batch size "
        "for this machine.",
    )
    settings = _read_settings(Settings, parser, arguments, worker)
    if worker is not None:
        _run(settings.model_copy(update={"grpc_port": worker.grpc_port}), worker)
        return
    cores = available_cores()
    if settings.workers > cores:
        _fail(f"workers: received {settings.workers}, but the process may use {cores} cores")
    with _reserved_grpc_port(settings) as settings:
        if settings.workers > 1:
            sys.exit(supervise(settings))
        _run(settings, None)


def _run(settings: Settings, worker: Worker | None) -> None:
    metrics = Metrics(None if worker is None else worker.index)
    loader = make_loader(settings, metrics)
    try:
        app = create_app(
            loader, settings, metrics, None if worker is None else WorkerPeers(worker.socket_path)
        )
        if worker is not None and not worker.listens_first:
            loader.load()
    except _START_ERRORS as error:
        _fail(str(error))
    try:
        if worker is None:
            Server(app, settings).run()
        else:
            listener = socket.socket(fileno=worker.listener)
            WorkerServer(app, settings, worker.supervisor_pid).run([listener])
    except KeyboardInterrupt:
        # Exit at once, as run() does after SIGTERM: a hanging thread must not keep the process
        # alive.
        logging.shutdown()
        os._exit(_EXIT_INTERRUPTED)
    if isinstance(loader.error, _START_ERRORS):
        _fail(str(loader.error))
    if loader.error is not None:
        raise loader.error


@contextmanager
def _reserved_grpc_port(settings: Settings) -> Iterator[Settings]:
    with ExitStack() as stack:
        try:
            settings = stack.enter_context(reserved_grpc_port(settings))
        except OSError as error:
            _fail(f"grpc_port: {settings.host}:{settings.grpc_port}: {error.strerror}")
        yield settings


def make_loader(settings: Settings, metrics: Metrics) -> ModelLoader:
    """Return the loader of a process that serves these models until it ends."""

    def load(report_step: Callable[[str], None]) -> ModelRegistry:
        models = load_models(settings, metrics, report_step)
        # The objects created so far live as long as the process: exclude them from collection.
        gc.collect()
        gc.freeze()
        return models

    return ModelLoader(load)


def _tune(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "centernet-serve tune",
        description="Find the batch size and the queue delay with the lowest latency at a load of "
        "80 % on this machine, which should be idle. All options of centernet-serve apply.",
    )
    settings = _read_settings(TuneSettings, parser, arguments)
    try:
        tune(settings, print_line)
    except (PackageError, EngineUnavailableError, OSError) as error:
        _fail(str(error))


def _read_settings(
    settings_type: type[_Settings],
    parser: argparse.ArgumentParser,
    arguments: list[str],
    worker: Worker | None = None,
) -> _Settings:
    add_version_option(parser)
    options = CliSettingsSource[Any](settings_type, root_parser=parser)
    try:
        settings = CliApp.run(settings_type, cli_args=arguments, cli_settings_source=options)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors()
        )
        _fail(problems)
    except SettingsError as error:
        _fail(str(error))
    index = None if worker is None else worker.index
    set_up_logging(settings.log_format, settings.log_level, index)
    return settings


def _fail(reason: str) -> NoReturn:
    print(f"centernet-serve: error: {reason}", file=sys.stderr)
    sys.exit(2)
