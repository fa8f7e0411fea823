"""Settings of a replica, from the same environment variables as those of ``centernet-serve``."""

from pydantic import ValidationError
from pydantic_settings import CliApp

from service.settings import PREFIX, Settings

_SETTINGS_OF_RAY = {
    "root_path": "route_prefix",
    "keep_alive_s": "http_options.keep_alive_timeout_s",
    "workers": "num_replicas",
    "shutdown_timeout_s": "graceful_shutdown_timeout_s",
    "drain_delay_s": "graceful_shutdown_timeout_s",
}
"""Settings of the server and the processes, and what replaces each in a file of Ray Serve.

``host`` and ``port`` are ignored: the container image sets an address.
"""


class SettingsError(Exception):
    """The environment has settings that are invalid, or that a replica cannot apply."""


def read_settings() -> Settings:
    """Return the settings of the environment; raises :class:`SettingsError`."""
    try:
        settings = CliApp.run(Settings, cli_args=[])
    except ValidationError as error:
        # Without the values, which Ray would show in the status of the application.
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(problems) from None
    for name in sorted(_SETTINGS_OF_RAY.keys() & settings.model_fields_set):
        raise SettingsError(
            f"{PREFIX}{name.upper()} has no effect in Ray Serve, which has {_SETTINGS_OF_RAY[name]}"
            " instead; remove the variable"
        )
    if settings.grpc_port is not None:
        raise SettingsError(
            "grpc_port cannot be used in Ray Serve, which balances no requests of this server; "
            f"remove {PREFIX}GRPC_PORT"
        )
    if unreachable := set(settings.model_control) - {"poll"}:
        raise SettingsError(
            f"model_control: received {', '.join(sorted(unreachable))}, which would reach one "
            "replica of several; accepted is poll"
        )
    return settings
