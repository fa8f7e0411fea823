"""What could not be run, and why: the part of a report that is easily forgotten."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Notes:
    """Lines for the report, as they come up."""

    not_run: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """What was run and was wrong."""

    @contextmanager
    def instead(self, what: str) -> Iterator[None]:
        """Note that ``what`` was not run if the block fails, and go on: a host is rarely whole."""
        try:
            yield
        except Exception as error:
            self.skip(what, f"{type(error).__name__}: {error}")

    def skip(self, what: str, why: str) -> None:
        """Note that ``what`` was not run."""
        self.not_run.append(f"{what}: {why}")
        print(f"not run: {self.not_run[-1]}", flush=True)

    def fail(self, what: str, why: str) -> None:
        """Note that ``what`` was run and is wrong."""
        self.failed.append(f"{what}: {why}")
        print(f"FAILED: {self.failed[-1]}", flush=True)
