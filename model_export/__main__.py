"""``centernet-export``: loads only what the command needs; ``build`` runs without torch.

Says what to install where the extra of a command is missing.
"""

import sys
from collections.abc import Sequence

from model_export.engines.libraries import install_commands

_EXIT_FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with ``arguments``, or those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    install = "pip install 'centernet-serving[export]'"
    try:
        if given[:1] == ["build"]:
            install = install_commands()
            from model_export.engines import cli as build_cli

            return build_cli.main(given[1:])
        from model_export import cli

        return cli.main(given)
    except ModuleNotFoundError as error:
        print(
            f"centernet-export: error: {error.name} is not installed. {install}.", file=sys.stderr
        )
        return _EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
