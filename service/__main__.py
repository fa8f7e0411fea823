"""Entry point of ``centernet-serve``; names the extra to install if a dependency is missing."""

import sys

from command_line.version import exit_with_version


def main() -> None:
    """Run the program with the arguments of the process."""
    exit_with_version("centernet-serve", sys.argv[1:])
    try:
        from service import cli
    except ModuleNotFoundError as error:
        sys.exit(
            f"centernet-serve: error: {error.name} is not installed. Install the extra 'serve' "
            "or, for a GPU, 'gpu'."
        )
    cli.main()


if __name__ == "__main__":
    main()
