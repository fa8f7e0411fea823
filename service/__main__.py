"""Entry point of ``centernet-serve``; names the extra to install if a dependency is missing."""

import sys


def main() -> None:
    """Run the program with the arguments of the process."""
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
