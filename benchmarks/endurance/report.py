"""What was found beside what was asked for."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Check:
    """One number and its bounds, both of which it may reach."""

    name: str
    found: float
    least: float = 0.0
    most: float = float("inf")

    @property
    def holds(self) -> bool:
        """Whether the number is within the bounds."""
        return self.least <= self.found <= self.most

    @property
    def asked(self) -> str:
        """The bounds in words."""
        if self.least == self.most:
            return f"{self.most:g}"
        return f"<= {self.most:g}" if self.most < float("inf") else f">= {self.least:g}"


def conclude(checks: Sequence[Check]) -> NoReturn:
    """Print the checks as Markdown and exit with 1 if one of them does not hold."""
    print("\n| | found | asked | |\n|---|---|---|---|")
    for check in checks:
        verdict = "" if check.holds else "missed"
        print(f"| {check.name} | {check.found:.4g} | {check.asked} | {verdict} |")
    sys.exit(0 if all(check.holds for check in checks) else 1)
