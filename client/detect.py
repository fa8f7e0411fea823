"""Entry point of ``centernet-detect``; names the extra to install if a dependency is missing."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with ``arguments``, by default those of the process."""
    try:
        from client.command import cli
    except ModuleNotFoundError as error:
        print(
            f"centernet-detect: error: {error.name} is not installed. Install the package with its "
            "extra: centernet-serving[client]",
            file=sys.stderr,
        )
        sys.exit(2)
    cli.main(arguments)
