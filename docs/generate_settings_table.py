"""Update the table of settings: ``python -m docs.generate_settings_table docs/settings.md``."""

import re
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.settings import PREFIX, Settings

# Descriptions of defaults that are computed, by the name of their factory.
_COMPUTED_DEFAULTS = {"available_cores": "the cores that the process may use"}

_HEAD = """\
| option | variable | default | accepted | meaning |
|---|---|---|---|---|
"""


def settings_table() -> str:
    """Return the table in Markdown; each row ends with a line break."""
    return _HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def with_table(page: str) -> str:
    """Return ``page`` with its table, of which it must have exactly one, replaced."""
    before, _, after = re.split(r"((?:^\|.*\n)+)", page, maxsplit=1, flags=re.MULTILINE)
    return before + settings_table() + after


def _row(name: str, field: FieldInfo) -> str:
    cells = (
        f"`--{name.replace('_', '-')}`",
        f"`{PREFIX}{name.upper()}`",
        _default(field),
        _accepted(field),
        field.description or "",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return _COMPUTED_DEFAULTS[field.default_factory.__name__]
    if field.default in (None, ()):
        return "none"
    return f"`{_plain(field.default)}`"


def _accepted(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    bounds = {
        sign: getattr(item, attribute)
        for item in field.metadata
        for attribute, sign in (("gt", "more than"), ("ge", "from"), ("le", "to"))
        if hasattr(item, attribute)
    }
    return " ".join(f"{sign} {_plain(bound)}" for sign, bound in bounds.items())


def _plain(value: object) -> str:
    """Return a default or bound as the command line accepts it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))
