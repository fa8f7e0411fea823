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
    def skip_on_error(self, what: str) -> Iterator[None]:
        """Suppress an exception of the block and record ``what`` as not run.

        Few machines have every optional package, and the other checks should still run.
        """
        try:
            yield
        except Exception as error:
            self.skip(what, f"{type(error).__name__}: {error}")

    def skip(self, what: str, reason: str) -> None:
        """Record that ``what`` was not run."""
        self.not_run.append(f"{what}: {reason}")
        print(f"not run: {self.not_run[-1]}", flush=True)

    def fail(self, what: str, reason: str) -> None:
        """Record that ``what`` was run and gave a wrong result."""
        self.failed.append(f"{what}: {reason}")
        print(f"FAILED: {self.failed[-1]}", flush=True)
