"""Pass/fail checks of measured values against bounds."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from evaluation.report import markdown_table


@dataclass(frozen=True)
class Check:
    """A measured value and its inclusive bounds."""

    name: str
    value: float
    min: float = 0.0
    max: float = float("inf")

    @property
    def passed(self) -> bool:
        """True if the value is within the bounds."""
        return self.min <= self.value <= self.max

    @property
    def bounds(self) -> str:
        """The bounds as text."""
        if self.min == self.max:
            return f"{self.max:g}"
        return f"<= {self.max:g}" if self.max < float("inf") else f">= {self.min:g}"


def exit_with_checks(checks: Sequence[Check]) -> NoReturn:
    """Print the checks as a Markdown table; exit with status 1 if one of them failed, else 0."""
    rows = (
        (check.name, f"{check.value:.4g}", check.bounds, "" if check.passed else "failed")
        for check in checks
    )
    print(f"\n{markdown_table(('', 'measured', 'required', ''), rows)}")
    sys.exit(0 if all(check.passed for check in checks) else 1)
