"""``centernet-serve``: listen, and load the models."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from model_package import PackageError
from service.access import KeyFileError
from service.app import create_app
from service.engines import EngineUnavailableError
from service.logs import set_up_logging
from service.metrics import Metrics
from service.models import load_models
from service.server import Server
from service.settings import Settings
from service.startup import Startup
from service.tracing import TracingUnavailableError


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; exit with status 2 when the start fails."""
    metrics = Metrics()
    try:
        given = None if arguments is None else list(arguments)
        settings = CliApp.run(Settings, cli_args=given)
        set_up_logging(settings.log_format, settings.log_level)
        startup = Startup(lambda note: load_models(settings, metrics, note))
        app = create_app(startup, settings, metrics)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors()
        )
        _fail(problems)
    except (SettingsError, KeyFileError, TracingUnavailableError) as error:
        _fail(str(error))
    Server(app, settings).run()
    if isinstance(startup.error, PackageError | EngineUnavailableError):
        _fail(str(startup.error))
    if startup.error is not None:
        raise startup.error


def _fail(reason: str) -> NoReturn:
    print(f"centernet-serve: error: {reason}", file=sys.stderr)
    sys.exit(2)
