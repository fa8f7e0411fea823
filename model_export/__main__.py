"""``centernet-export``: loads only what the command needs; ``build`` runs without torch."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with ``arguments``, or those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["build"]:
        from model_export.engines import command

        return command.main(given[1:])
    from model_export import cli

    return cli.main(given)


if __name__ == "__main__":
    sys.exit(main())
