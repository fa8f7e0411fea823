"""Entry point of ``centernet-serve``; names the extra to install if a dependency is missing."""

import sys

from command_line.extras import explain_missing_module
from command_line.version import exit_with_version


def main() -> None:
    """Run the program with the arguments of the process."""
    exit_with_version("centernet-serve", sys.argv[1:])
    install = "Install the extra 'serve' or, for a GPU, 'gpu'."
    with explain_missing_module("centernet-serve", install, 1):
        from service import cli
    cli.main()


if __name__ == "__main__":
    main()
