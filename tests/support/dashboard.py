"""Queries of the Grafana dashboard, with its variables substituted."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads(
    (PROJECT / "docker/grafana/dashboards/centernet.json").read_text()
)
DCGM_METRICS = {
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_POWER_USAGE",
}
"""External metrics: fields of the default counters file of dcgm-exporter."""
_LABEL_VALUES = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")


@dataclass(frozen=True)
class Query:
    """A query of a panel; ``expression`` is PromQL without dashboard variables."""

    panel: str
    expression: str

    @property
    def needs_gpu(self) -> bool:
        """True if the query reads metrics of dcgm-exporter, which needs a GPU."""
        return "DCGM_" in self.expression


def queries(rate_interval: str) -> list[Query]:
    """Return every query of every panel, for all instances and models."""
    values = {"$__rate_interval": rate_interval, "$instance": ".*", "$model": ".*"}
    result = []
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, f"{panel['title']}: unknown variable in {expression}"
            result.append(Query(panel["title"], expression))
    return result


def variables() -> dict[str, tuple[str, str]]:
    """Return the series and the label from which each variable takes its values."""
    sources = {}
    for variable in DASHBOARD["templating"]["list"]:
        match = _LABEL_VALUES.fullmatch(variable["query"])
        assert match, f"{variable['name']}: {variable['query']} is not label_values(series, label)"
        sources[variable["name"]] = (match["series"], match["label"])
    return sources
