"""Entry point of ``centernet-detect-ray``; names the extras to install where one is missing."""

import sys
from collections.abc import Sequence

from command_line.extras import explain_missing_module
from command_line.version import exit_with_version


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with ``arguments``, by default those of the process."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_version("centernet-detect-ray", args)
    install = "Install the package with its extras: centernet-serving[serve,ray]"
    with explain_missing_module("centernet-detect-ray", install, 2):
        from bulk import cli
    cli.main(args)


if __name__ == "__main__":
    main()
