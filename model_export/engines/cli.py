"""The command ``centernet-export build``, with output for people or for programs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from command_line.progress import PERCENTAGE, Steps, add_quiet_option
from command_line.version import add_version_option
from model_export.engines.build import BuiltEngine, EngineRequest, build_engines
from model_export.engines.interruption import Interruption
from model_export.errors import ExportError
from model_package import EngineArtifact, PackageError, Precision
from model_package.tensorrt_libraries import TENSORRT_LIBRARIES

SUMMARY = "build TensorRT engines from a package's ONNX files ahead of time"

_EXIT_FAILED = 2
_EXIT_INTERRUPTED = 130


class _TextReporter:
    """Progress of each engine on standard error, the results on standard output."""

    def __init__(self, *, quiet: bool) -> None:
        self._steps = Steps(1, quiet=quiet)
        self._fraction = 0.0

    def removed(self, engine: EngineArtifact) -> None:
        print(f"Remove {engine.file}: it is missing or was changed", file=sys.stderr)

    def started(self, number: int, count: int, step: str) -> None:  # noqa: ARG002
        self._steps.total = count
        self._steps.begin(step, PERCENTAGE, 1)
        self._fraction = 0.0

    def progress(self, fraction: float, phase: str) -> None:  # noqa: ARG002
        self._steps.advance(fraction - self._fraction)
        self._fraction = fraction

    def finished(self, engine: BuiltEngine) -> None:
        self.close("already built" if engine.cost is None else f"{engine.cost.seconds:.1f} s")
        print(_describe(engine))

    def close(self, outcome: str) -> None:
        """End the step of the current engine, if there is one."""
        self._steps.end(outcome)


class _JsonReporter:
    """JSON lines on standard output: ``progress`` of all engines, 0 to 1, and ``step``."""

    def __init__(self) -> None:
        self._number, self._count = 1, 1

    def removed(self, engine: EngineArtifact) -> None:
        self._print(0.0, f"Remove {engine.file}: it is missing or was changed")

    def started(self, number: int, count: int, step: str) -> None:
        self._number, self._count = number, count
        self._print(0.0, step)

    def progress(self, fraction: float, phase: str) -> None:
        self._print(fraction, phase)

    def finished(self, engine: BuiltEngine) -> None:
        self._print(1.0, _describe(engine))

    def close(self, outcome: str) -> None:
        """Print nothing: the exit status gives the outcome."""

    def _print(self, fraction: float, step: str) -> None:
        progress = round((self._number - 1 + fraction) / self._count, 3)
        print(json.dumps({"progress": progress, "step": step}), flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``build`` to a parser."""
    add = parser.add_argument
    add("package", type=Path, metavar="PACKAGE", help="directory of the package")
    add(
        "--backend",
        choices=list(TENSORRT_LIBRARIES),
        help="library to build with (default: the installed one)",
    )
    add(
        "--precision", choices=list(get_args(Precision)),
        help="build only from ONNX files in this precision (default: all ONNX files)",
    )  # fmt: skip
    add(
        "--optimal-batch-size", type=int, default=EngineRequest.optimal_batch_size, metavar="N",
        help="batch size to tune for (default: %(default)s)",
    )  # fmt: skip
    add(
        "--max-batch-size", type=int, default=EngineRequest.max_batch_size, metavar="N",
        help="largest batch size that the engine takes (default: %(default)s)",
    )  # fmt: skip
    add(
        "--compute-capability", metavar="X.Y",
        help="of the GPU that will run the engine, like 8.9; TensorRT-RTX only (default: this GPU)",
    )  # fmt: skip
    add("--tf32", action="store_true", help="allow TensorFloat-32 in float32 products")
    add(
        "--timing-cache", type=Path, metavar="FILE",
        help="file with timings of earlier builds, read and extended; TensorRT only",
    )  # fmt: skip
    add(
        "--progress", choices=["text", "json"], default="text",
        help="json: one line on stdout per step, with progress 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    add_quiet_option(parser)
    add_version_option(parser)


def main(arguments: Sequence[str]) -> int:
    """Run ``build`` and return the exit status: 0, 2 after an error or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="centernet-export build", description=SUMMARY)
    add_options(parser)
    args = parser.parse_args(arguments)
    request = EngineRequest(
        backend=args.backend,
        precision=args.precision,
        optimal_batch_size=args.optimal_batch_size,
        max_batch_size=args.max_batch_size,
        compute_capability=args.compute_capability,
        tf32=args.tf32,
        timing_cache=args.timing_cache,
    )
    reporter = _TextReporter(quiet=args.quiet) if args.progress == "text" else _JsonReporter()
    try:
        interruption = Interruption()
        with interruption.handle_signals():
            build_engines(args.package, request, reporter, interruption)
    except (ExportError, PackageError, OSError) as error:
        reporter.close("failed")
        print(f"centernet-export: error: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        reporter.close("interrupted")
        return _EXIT_INTERRUPTED
    return 0


def _describe(engine: BuiltEngine) -> str:
    artifact = engine.artifact
    batch = artifact.batch
    text = (
        f"{artifact.file}: {artifact.size_bytes / 1e6:.1f} MB, batches {batch.min} to {batch.max}"
    )
    if engine.cost is not None and engine.cost.peak_bytes:
        text += f", built with {engine.cost.peak_bytes / 1e6:.0f} MB of memory"
    return text
