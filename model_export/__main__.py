"""Entry point of ``centernet-export``.

Imports only what the command needs: ``build`` runs without torch. Reports the extra to install
where a dependency of the command is missing.
"""

import sys
from collections.abc import Sequence

from command_line.version import exit_with_version
from model_export.engines.libraries import install_commands
from model_package.onnxruntime import OnnxRuntimeConflictError

_EXIT_FAILED = 2
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with ``arguments``, by default those of the process."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_version("centernet-export", args)
    install = "pip install 'centernet-serving[export]'"
    try:
        if args[:1] == ["build"]:
            install = install_commands()
            from model_export.engines import cli as build_cli

            return build_cli.main(args[1:])
        if "--evaluate" in args:
            install = "pip install 'centernet-serving[export,serve,eval]'"
        from model_export import cli

        return cli.main(args)
    except ModuleNotFoundError as error:
        print(
            f"centernet-export: error: {error.name} is not installed. {install}.", file=sys.stderr
        )
        return _EXIT_FAILED
    except KeyboardInterrupt:  # while the modules of the command are imported
        return _EXIT_INTERRUPTED
    except OnnxRuntimeConflictError as error:
        print(f"centernet-export: error: {error}", file=sys.stderr)
        return _EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
