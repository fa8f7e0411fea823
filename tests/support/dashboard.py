"""The Grafana dashboard as Prometheus sees it: its queries with the variables filled in."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads(
    (PROJECT / "docker/grafana/dashboards/centernet.json").read_text()
)
_LABEL_VALUES = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")


@dataclass(frozen=True)
class Query:
    """One query of a panel; ``expression`` is PromQL without variables."""

    panel: str
    expression: str

    @property
    def needs_gpu(self) -> bool:
        return "centernet_gpu_" in self.expression


def queries(rate_interval: str) -> list[Query]:
    """Every query of every panel, for all instances and models."""
    values = {"$__rate_interval": rate_interval, "$instance": ".*", "$model": ".*"}
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, f"{panel['title']}: an unknown variable in {expression}"
            found.append(Query(panel["title"], expression))
    return found


def variables() -> dict[str, tuple[str, str]]:
    """The series and the label that each variable takes its values from."""
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        match = _LABEL_VALUES.fullmatch(variable["query"])
        assert match, f"{variable['name']}: {variable['query']} is no label_values(series, label)"
        found[variable["name"]] = (match["series"], match["label"])
    return found
