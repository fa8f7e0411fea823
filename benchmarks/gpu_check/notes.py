"""Record of the checks that failed or could not be run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Notes:
    """Failed checks, and those that this machine cannot run, one line each, for the report."""

    not_run: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def fail_on_error(self, check: str) -> Iterator[None]:
        """Suppress an exception of the block and record ``check`` as failed.

        The other checks still run.
        """
        try:
            yield
        except Exception as error:
            self.fail(check, f"{type(error).__name__}: {error}")

    def skip(self, check: str, reason: str) -> None:
        """Record that ``check`` is not possible here.

        The reasons are a missing GPU or package, and networks that the exporter refuses in fp16.
        """
        self.not_run.append(f"{check}: {reason}")
        print(f"not run: {self.not_run[-1]}", flush=True)

    def fail(self, check: str, reason: str) -> None:
        """Record that ``check`` raised an exception or gave a wrong result."""
        self.failed.append(f"{check}: {reason}")
        print(f"FAILED: {self.failed[-1]}", flush=True)
