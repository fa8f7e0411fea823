"""Command line of ``centernet-train``, see ``--help``."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from command_line.progress import add_quiet_option
from command_line.version import add_version_option
from labels.errors import DatasetError
from training.config import ConfigError
from training.defaults import PreparedRun, prepare
from training.tensorboard import TensorBoardLogger, TensorBoardUnavailableError
from training.trainer import BEST_CHECKPOINT, LAST_CHECKPOINT, ResumeError, Trainer

_EXIT_FAILED = 2
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> None:
    """Train on a folder or a configuration; write checkpoints and the log to the output directory.

    Ends with the commands that export and serve the result. Exits with status 2 if the
    configuration, its images or the checkpoint cannot be used, and with 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="centernet-train", description="Train a detector.")
    parser.add_argument(
        "source",
        type=Path,
        help="folder with images and COCO, YOLO, Pascal VOC or KITTI labels, or a TOML file, see "
        "training/configs",
    )
    parser.add_argument(
        "--output", type=Path, help="directory for checkpoints (default: runs/NAME of the source)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from last.pth in --output")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (%(default)s); on GPUs in mixed precision",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write event files to --output")
    add_quiet_option(parser)
    add_version_option(parser)
    args = parser.parse_args(arguments)
    try:
        _train(args)
    except (ConfigError, DatasetError, ResumeError, TensorBoardUnavailableError, OSError) as error:
        print(f"centernet-train: error: {error}", file=sys.stderr)
        sys.exit(_EXIT_FAILED)
    except KeyboardInterrupt:
        print(
            "centernet-train: interrupted; --resume continues after the last complete epoch",
            file=sys.stderr,
        )
        sys.exit(_EXIT_INTERRUPTED)


def _train(args: argparse.Namespace) -> None:
    name = _name_of(args.source)
    output = args.output or Path("runs", name)
    if not args.resume and (output / LAST_CHECKPOINT).exists():
        raise ResumeError(
            f"{output} has the checkpoints of another run; continue it with --resume, or choose "
            "another --output"
        )
    run = prepare(args.source)
    for line in run.choices:
        print(line, flush=True)
    tensorboard = TensorBoardLogger(output / "tensorboard") if args.tensorboard else None
    Trainer(
        run.config,
        output,
        data=run.data,
        device=args.device,
        tensorboard=tensorboard,
        resume=args.resume,
        quiet=args.quiet,
    ).run()
    print(_next_commands(run, output, Path("models", name)))


def _name_of(source: Path) -> str:
    """Return a name for directories and URLs."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", source.resolve().stem).strip("_-") or "model"


def _next_commands(run: PreparedRun, output: Path, package: Path) -> str:
    """Return the commands that export and serve the result."""
    export = ["centernet-export", "package", "--checkpoint", str(output / BEST_CHECKPOINT)]
    export += ["--output", str(package)]
    if run.projection is not None:
        export += ["--projection", *(f"{value:g}" for value in run.projection)]
    serve = ["centernet-serve", "--models", str(package)]
    return f"Export it: {shlex.join(export)}\nServe it: {shlex.join(serve)}"
