"""The command ``centernet-serve``, with its subcommand ``tune``."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from model_package import PackageError
from service.app import create_app
from service.engines import EngineUnavailableError
from service.http.auth import KeyFileError
from service.http.uvicorn_server import Server
from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry, load_models
from service.observability.logs import set_up_logging
from service.observability.metrics import Metrics
from service.observability.tracing import TracingUnavailableError
from service.settings import Settings
from service.tune import TuneSettings, tune

_Settings = TypeVar("_Settings", bound=Settings)

_EXIT_INTERRUPTED = 130
_SWITCH_INTERVAL_S = 0.0001
"""GIL switch interval: how long an engine thread waits for the GIL after a run. Python's default of
5 ms would leave a core idle while the event loop writes responses."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or tune; exit with status 2 if the start fails."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    if args[:1] == ["tune"]:
        _tune(args[1:])
    else:
        _serve(args)


def _serve(arguments: list[str]) -> None:
    settings = _read_settings(Settings, arguments)
    metrics = Metrics()

    def load(report_step: Callable[[str], None]) -> ModelRegistry:
        models = load_models(settings, metrics, report_step)
        # The objects created so far live as long as the process: exclude them from collection.
        gc.collect()
        gc.freeze()
        return models

    loader = ModelLoader(load)
    try:
        app = create_app(loader, settings, metrics)
    except (KeyFileError, TracingUnavailableError) as error:
        _fail(str(error))
    try:
        Server(app, settings).run()
    except KeyboardInterrupt:
        # Exit at once, as run() does after SIGTERM: a hanging thread must not keep the process
        # alive.
        logging.shutdown()
        os._exit(_EXIT_INTERRUPTED)
    if isinstance(loader.error, PackageError | EngineUnavailableError):
        _fail(str(loader.error))
    if loader.error is not None:
        raise loader.error


def _tune(arguments: list[str]) -> None:
    settings = _read_settings(TuneSettings, arguments)
    try:
        tune(settings, print)
    except (PackageError, EngineUnavailableError, OSError) as error:
        _fail(str(error))


def _read_settings(settings_type: type[_Settings], arguments: list[str]) -> _Settings:
    try:
        settings = CliApp.run(settings_type, cli_args=arguments)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors()
        )
        _fail(problems)
    except SettingsError as error:
        _fail(str(error))
    set_up_logging(settings.log_format, settings.log_level)
    return settings


def _fail(reason: str) -> NoReturn:
    print(f"centernet-serve: error: {reason}", file=sys.stderr)
    sys.exit(2)
