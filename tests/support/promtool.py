"""Unit tests of alert rules and PromQL expressions, run by ``promtool test rules``."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.tools import find_tool

Series = Mapping[str, str]
"""Series to values in promtool's expanding notation, for example ``0+5x60``."""


@dataclass(frozen=True)
class Alert:
    """An expected alert: its labels without the severity, and its summary."""

    labels: Mapping[str, str]
    summary: str


@dataclass(frozen=True)
class Case:
    """Input series with one value per ``interval``, and the expectations at the time ``at``."""

    series: Series
    at: str
    interval: str = "15s"
    alerts: Mapping[str, Sequence[Alert]] = field(default_factory=dict)
    """Expected alerts by rule; an empty sequence expects the rule to be inactive."""
    samples: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Expected samples by expression: series to value."""


def find_promtool() -> str:
    return find_tool("promtool", "Debian: apt-get install prometheus")


def run_promtool(*arguments: str | Path) -> None:
    """Run promtool; fail with its output if its exit status is not 0."""
    result = subprocess.run(
        [find_promtool(), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def check_cases(
    cases: Mapping[str, Case], rules: Path, severities: Mapping[str, str], directory: Path
) -> None:
    """Run the cases, which must share one interval; fail if an expectation is not met."""
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
