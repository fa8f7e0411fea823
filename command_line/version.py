"""``--version``: the versions of the project and of the libraries that its commands run on."""

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

_OPTION = "--version"
_LIBRARIES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt_cu13",
    "tensorrt_rtx_cu13",
    "onnx",
    "torch",
)


def exit_with_version(program: str, arguments: Sequence[str]) -> None:
    """Print the versions and exit if ``--version`` is one of the arguments.

    Called before the modules of a command are imported, which takes seconds with PyTorch and is not
    possible without the extra of the command.
    """
    if _OPTION in arguments:
        print(describe_versions(program))
        raise SystemExit(0)


def add_version_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--version`` to the help of a parser; see :func:`exit_with_version`."""
    parser.add_argument(
        _OPTION,
        action="version",
        version=describe_versions(parser.prog),
        help="print the versions of the program and of its libraries, and exit",
    )


def describe_versions(program: str) -> str:
    """Return one line with the versions of the program, of Python and of the installed libraries.

    They are read from the metadata of the distributions: no library is imported.
    """
    libraries = [f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{program} {version('centernet-serving')} ({', '.join(libraries)})"
