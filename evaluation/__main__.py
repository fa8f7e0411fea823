"""``centernet-eval``: says what to install where the extra ``eval`` is missing."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program with ``arguments``, or those of the process."""
    try:
        from evaluation import cli
    except ModuleNotFoundError as error:
        print(
            f"centernet-eval: error: {error.name} is not installed. Install the package with its "
            "extra: centernet-serving[serve,eval], or [gpu,eval] on a GPU.",
            file=sys.stderr,
        )
        sys.exit(1)
    cli.main(arguments)


if __name__ == "__main__":
    main()
