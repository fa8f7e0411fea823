"""Log lines, as text or as JSON; the facts of a request travel in ``extra={"facts": {...}}``."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from service.observability.request_record import RequestRecord

_access_log = logging.getLogger("service.http.auth")
_to_json = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder each time
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""Printable ASCII that nobody can take for more than one word."""


def set_up_logging(form: Literal["text", "json"], level: str) -> None:
    """Send everything that is logged in this process, uvicorn's lines too, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """``time LEVEL logger: message`` and the facts as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (their name)
        """Append the facts, in quotes and escaped where they are more than a word."""
        facts = "".join(f" {name}={_word(fact)}" for name, fact in _facts_of(record).items())
        return super().formatMessage(record) + facts


class JsonFormatter(logging.Formatter):
    """One JSON object per line; an exception's traceback is its member ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a line; whatever strangers sent cannot break out of its string."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts_of(record),
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
) -> None:
    """Write the line of a finished request; ``quiet`` ones are of interest when they fail."""
    failed = status is None or status >= 500
    level = logging.WARNING if failed else logging.DEBUG if quiet else logging.INFO
    if not _access_log.isEnabledFor(level):
        return
    facts = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "client": record.client,
        "method": method,
        "route": route,
        # The path of a known route is said by the route; query strings are nobody's business.
        "path": path[:200] if route == "unmatched" else None,
        "status": status,
        "code": record.code,
        "duration_ms": round(1000 * seconds, 3),
        "model": record.model,
        "body_bytes": record.body_bytes,
        "batch_size": record.batch_size,
        "stages_ms": {stage.name: round(1000 * stage.seconds, 3) for stage in record.stages},
    }
    known = {name: fact for name, fact in facts.items() if fact not in (None, {})}
    _access_log.log(level, "request", extra={"facts": known})


def _facts_of(record: logging.LogRecord) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    return facts


def _word(fact: Any) -> str:
    # Most facts are numbers, and each request has a dozen: JSON says the same, but takes longer.
    if type(fact) in (int, float):
        return repr(fact)
    if isinstance(fact, str):
        return fact if _PLAIN.fullmatch(fact) else _to_json(fact)
    if isinstance(fact, Mapping):
        return ",".join(f"{name}:{_word(part)}" for name, part in fact.items())
    text = _to_json(fact)
    return text if _PLAIN.fullmatch(text) else _to_json(text)
