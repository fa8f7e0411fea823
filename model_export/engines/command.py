"""``centernet-export build``: engines ahead of time, for people and for programs."""

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from model_export.engines.building import BuiltEngine, EngineRequest, build_engines
from model_export.engines.libraries import LIBRARIES
from model_export.errors import ExportError
from model_package import EngineArtifact, PackageError

SUMMARY = "build TensorRT engines of a package's ONNX files ahead of time"

_EXIT_FAILED = 2
_EXIT_INTERRUPTED = 130
_SHARE_TOLD = 0.1


class _Text:
    """One line per engine on standard error as it is built, and on standard output as it is."""

    def __init__(self) -> None:
        self._told = 0.0
        self._open = False

    def dropped(self, engine: EngineArtifact) -> None:
        print(f"Remove {engine.file}: it was lost or changed", file=sys.stderr)

    def begin(self, number: int, count: int, step: str) -> None:
        print(f"[{number}/{count}] {step} ...", end="", file=sys.stderr, flush=True)
        self._told, self._open = 0.0, True

    def progress(self, share: float, phase: str) -> None:  # noqa: ARG002
        if share >= self._told + _SHARE_TOLD:
            self._told = share
            print(f" {share:.0%}", end="", file=sys.stderr, flush=True)

    def end(self, engine: BuiltEngine) -> None:
        self.close("already built" if engine.cost is None else f"{engine.cost.seconds:.1f} s")
        print(_describe(engine))

    def close(self, outcome: str) -> None:
        """End the line of the engine that was being built, if one was."""
        if self._open:
            print(f" {outcome}", file=sys.stderr)
        self._open = False


class _Json:
    """One object per line on standard output: ``progress`` of the whole, 0 to 1, and ``step``."""

    def __init__(self) -> None:
        self._number, self._count = 1, 1

    def dropped(self, engine: EngineArtifact) -> None:
        self._tell(0.0, f"Remove {engine.file}: it was lost or changed")

    def begin(self, number: int, count: int, step: str) -> None:
        self._number, self._count = number, count
        self._tell(0.0, step)

    def progress(self, share: float, phase: str) -> None:
        self._tell(share, phase)

    def end(self, engine: BuiltEngine) -> None:
        self._tell(1.0, _describe(engine))

    def close(self, outcome: str) -> None:
        """Say nothing: the last line tells how far it came, the exit status why it ended."""

    def _tell(self, share: float, step: str) -> None:
        progress = round((self._number - 1 + share) / self._count, 3)
        print(json.dumps({"progress": progress, "step": step}), flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``build``."""
    add = parser.add_argument
    add("package", type=Path, metavar="PACKAGE", help="directory of the package")
    add("--backend", choices=list(LIBRARIES), help="library to build with (the one installed)")
    add(
        "--precision", choices=["fp32", "fp16"],
        help="build only of ONNX files in this precision (of every ONNX file of the package)",
    )  # fmt: skip
    add(
        "--optimal-batch-size", type=int, default=EngineRequest.optimal_batch_size, metavar="N",
        help="batch size to tune for (%(default)s)",
    )  # fmt: skip
    add(
        "--max-batch-size", type=int, default=EngineRequest.max_batch_size, metavar="N",
        help="largest batch size that the engine takes (%(default)s)",
    )  # fmt: skip
    add(
        "--compute-capability", metavar="X.Y",
        help="GPU that will run the engine, like 8.9; TensorRT-RTX only (the GPU of this machine)",
    )  # fmt: skip
    add("--tf32", action="store_true", help="let float32 products be rounded to TensorFloat-32")
    add(
        "--timing-cache", type=Path, metavar="FILE",
        help="measurements of earlier builds to start from and to add to; TensorRT only",
    )  # fmt: skip
    add(
        "--progress", choices=["text", "json"], default="text",
        help="json: a line on standard output for each step, with progress from 0 to 1 (text)",
    )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run ``build`` with these options; 0 is success, 2 a refusal told in one line."""
    parser = argparse.ArgumentParser(prog="centernet-export build", description=SUMMARY)
    add_options(parser)
    parsed = parser.parse_args(arguments)
    request = EngineRequest(
        backend=parsed.backend,
        precision=parsed.precision,
        optimal_batch_size=parsed.optimal_batch_size,
        max_batch_size=parsed.max_batch_size,
        compute_capability=parsed.compute_capability,
        tf32=parsed.tf32,
        timing_cache=parsed.timing_cache,
    )
    watcher = _Text() if parsed.progress == "text" else _Json()
    try:
        with _termination_cleans_up():
            build_engines(parsed.package, request, watcher)
    except (ExportError, PackageError, OSError) as error:
        watcher.close("failed")
        print(f"centernet-export: error: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        watcher.close("interrupted")
        return _EXIT_INTERRUPTED
    return 0


@contextmanager
def _termination_cleans_up() -> Iterator[None]:
    """Leave by way of every ``finally`` when told to end, as at Ctrl-C."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(engine: BuiltEngine) -> str:
    artifact = engine.artifact
    batch = artifact.batch
    text = (
        f"{artifact.file}: {artifact.size_bytes / 1e6:.1f} MB, batches {batch.min} to {batch.max}"
    )
    if engine.cost is not None and engine.cost.peak_bytes:
        text += f", built with {engine.cost.peak_bytes / 1e6:.0f} MB of memory"
    return text
