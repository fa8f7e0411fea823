"""Entry point of ``centernet-detect``; names the extra to install if a dependency is missing."""

import sys
from collections.abc import Sequence

from command_line.extras import explain_missing_module
from command_line.version import exit_with_version


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with ``arguments``, by default those of the process."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_version("centernet-detect", args)
    install = "Install the package with its extra: centernet-serving[client]"
    with explain_missing_module("centernet-detect", install, 2):
        from client.command import cli
    cli.main(args)
