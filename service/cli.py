"""``centernet-serve``: load the models, then listen."""

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
from service.tracing import TracingUnavailableError


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; exit with status 2 when the start fails."""
    metrics = Metrics()
    try:
        given = None if arguments is None else list(arguments)
        settings = CliApp.run(Settings, cli_args=given)
        set_up_logging(settings.log_format, settings.log_level)
        models = load_models(settings, metrics)
        app = create_app(models, settings, metrics)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors()
        )
        _fail(problems)
    except (
        SettingsError,
        KeyFileError,
        TracingUnavailableError,
        PackageError,
        EngineUnavailableError,
    ) as error:
        _fail(str(error))
    Server(app, settings).run()


def _fail(reason: str) -> NoReturn:
    print(f"centernet-serve: error: {reason}", file=sys.stderr)
    sys.exit(2)
