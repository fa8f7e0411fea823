"""Record of the checks that failed or could not be run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Notes:
    """Failed and skipped checks, one line each, for the report."""

    not_run: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def skip_on_error(self, check: str) -> Iterator[None]:
        """Suppress an exception of the block and record ``check`` as not run.

        Few machines have every optional package, and the other checks should still run.
        """
        try:
            yield
        except Exception as error:
            self.skip(check, f"{type(error).__name__}: {error}")

    def skip(self, check: str, reason: str) -> None:
        """Record that ``check`` was not run."""
        self.not_run.append(f"{check}: {reason}")
        print(f"not run: {self.not_run[-1]}", flush=True)

    def fail(self, check: str, reason: str) -> None:
        """Record that ``check`` was run and gave a wrong result."""
        self.failed.append(f"{check}: {reason}")
        print(f"FAILED: {self.failed[-1]}", flush=True)
