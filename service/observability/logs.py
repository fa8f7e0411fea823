"""Logging as text or JSON; structured fields are passed as ``extra={"fields": {...}}``."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from service.observability.request_record import RequestRecord

_access_log = logging.getLogger("service.access")
_to_json = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder each time
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""Printable ASCII without spaces, quotes and equals signs: needs no quoting."""


def set_up_logging(
    log_format: Literal["text", "json"], level: str, worker: int | None = None
) -> None:
    """Send all log records of this process to stderr.

    Those of uvicorn about the start and the end of its server are left out, unless the level is
    debug: :mod:`service.http.uvicorn_server` logs when the service listens, is ready and stops.
    ``worker``: index of a worker process, a field of each of its records.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    if worker is not None:
        handler.addFilter(_WorkerField(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if level != "debug":
        minimum = max(logging.WARNING, logging.getLogger().level)
        logging.getLogger("uvicorn.error").setLevel(minimum)


class _WorkerField(logging.Filter):
    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.fields = {"worker": self._worker, **_fields_of(record)}
        return True


class TextFormatter(logging.Formatter):
    """``time LEVEL logger: message`` and the fields as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (name of the base class)
        """Append the fields, quoted and escaped if they are more than one word."""
        fields = "".join(
            f" {name}={_format_value(value)}" for name, value in _fields_of(record).items()
        )
        return super().formatMessage(record) + fields


class JsonFormatter(logging.Formatter):
    """One JSON object per line; an exception's traceback is its member ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; untrusted values are escaped by the JSON encoder."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _to_json(line)


def log_request(
    record: RequestRecord,
    method: str,
    route: str,
    path: str,
    status: int | None,
    seconds: float,
    *,
    quiet: bool,
    starting: bool,
) -> None:
    """Log a finished request; ``quiet`` ones at debug level unless they failed.

    ``starting``: the models are being loaded, so that status 503 is no failure.
    """
    failed = status is None or (status >= 500 and not (starting and status == 503))
    level = logging.WARNING if failed else logging.DEBUG if quiet else logging.INFO
    if not _access_log.isEnabledFor(level):
        return
    fields = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "client": record.client,
        "method": method,
        "route": route,
        # Only of unknown routes; query strings may contain personal data.
        "path": path[:200] if route == "unmatched" else None,
        "status": status,
        "code": record.code,
        "duration_ms": round(1000 * seconds, 3),
        "model": record.model,
        "body_bytes": record.body_bytes,
        "batch_size": record.batch_size,
        "stages_ms": {stage.name: round(1000 * stage.seconds, 3) for stage in record.stages},
    }
    known = {name: value for name, value in fields.items() if value not in (None, {})}
    _access_log.log(level, "request", extra={"fields": known})


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _format_value(value: Any) -> str:
    # Most values are numbers, a dozen per request; repr equals their JSON and is faster.
    if type(value) in (int, float):
        return repr(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else _to_json(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{_format_value(part)}" for name, part in value.items())
    text = _to_json(value)
    return text if _PLAIN.fullmatch(text) else _to_json(text)
