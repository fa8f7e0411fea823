"""Update the schema of the chart's value ``settings`` from the settings of the service.

    python -m deploy.kubernetes.generate_settings_schema FILE

Helm then rejects unknown settings and values out of range before anything is installed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from service.settings import Settings

SET_BY_CHART = frozenset({"host", "port", "models", "api_keys_file"})
"""Settings that the templates set themselves."""
REQUIRED = ("drain_delay_s", "shutdown_timeout_s")
"""Settings from which the templates compute the termination grace period."""


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of the value ``settings``; null removes a default of the chart."""
    fields = Settings.model_json_schema()["properties"]
    properties = {
        name: _property(field) for name, field in fields.items() if name not in SET_BY_CHART
    }
    for name in REQUIRED:
        properties[name] = {"type": "number", **properties[name]["anyOf"][0]}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(REQUIRED),
        "properties": properties,
    }


def with_settings(text: str) -> str:
    """Return a values.schema.json with the schema of the settings replaced."""
    schema = json.loads(text)
    schema["properties"]["settings"] = settings_schema()
    return json.dumps(schema, indent=2) + "\n"


def _property(field: dict[str, Any]) -> dict[str, Any]:
    choices = field.get("anyOf", [field])
    kinds = [_without_texts(choice) for choice in choices if choice.get("type") != "null"]
    return {"anyOf": [*kinds, {"type": "null"}], "description": field["description"]}


def _without_texts(schema: dict[str, Any]) -> dict[str, Any]:
    if schema["type"] == "array":
        return {"type": "string"}  # separated by commas, as in the environment variable
    ignored = ("default", "description", "title", "format")
    return {key: value for key, value in schema.items() if key not in ignored}


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_settings(path.read_text()))
