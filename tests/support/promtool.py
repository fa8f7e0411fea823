"""Questions to Prometheus about made-up series, answered by ``promtool test rules``."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.tools import find_tool

Series = Mapping[str, str]
"""Values in promtool's notation, ``first+step x count``, by the series they belong to."""


@dataclass(frozen=True)
class Alert:
    """An alert that is to fire: its labels without the severity, and what it says."""

    labels: Mapping[str, str]
    summary: str


@dataclass(frozen=True)
class Case:
    """Series of one value per ``interval``, and what is to be true of them ``at`` a time."""

    series: Series
    at: str
    interval: str = "15s"
    alerts: Mapping[str, Sequence[Alert]] = field(default_factory=dict)
    """Alerts by their rule; rules that are to be silent have none."""
    samples: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By expression: the values that it has, by the series they belong to."""


def find_promtool() -> str:
    return find_tool("promtool", "Debian: apt-get install prometheus")


def run_promtool(*arguments: str | Path) -> None:
    """Run it and fail with what it says where it finds something wrong."""
    result = subprocess.run(
        [find_promtool(), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def check_cases(
    cases: Mapping[str, Case], rules: Path, severities: Mapping[str, str], directory: Path
) -> None:
    """Fail where ``promtool`` finds anything else than the cases say; one interval for all."""
    tests = [{"name": name, **_as_test(case, severities)} for name, case in cases.items()]
    (interval,) = {case.interval for case in cases.values()}
    file = directory / "cases.yml"  # JSON is YAML
    file.write_text(
        json.dumps({"rule_files": [str(rules)], "evaluation_interval": interval, "tests": tests})
    )
    run_promtool("test", "rules", file)


def _as_test(case: Case, severities: Mapping[str, str]) -> dict[str, Any]:
    return {
        "interval": case.interval,
        "input_series": [{"series": name, "values": v} for name, v in case.series.items()],
        "alert_rule_test": [
            {
                "eval_time": case.at,
                "alertname": rule,
                "exp_alerts": [
                    {
                        "exp_labels": {"severity": severities[rule], **alert.labels},
                        "exp_annotations": {"summary": alert.summary},
                    }
                    for alert in alerts
                ],
            }
            for rule, alerts in case.alerts.items()
        ],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": case.at,
                "exp_samples": [{"labels": name, "value": v} for name, v in samples.items()],
            }
            for expression, samples in case.samples.items()
        ],
    }
