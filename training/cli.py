"""Command line of ``centernet-train``, see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from command_line.progress import add_quiet_option
from command_line.version import add_version_option
from labels.errors import DatasetError
from training.config import ConfigError, read_config
from training.tensorboard import TensorBoardLogger, TensorBoardUnavailableError
from training.trainer import ResumeError, Trainer

_EXIT_FAILED = 2
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> None:
    """Train a configuration and write checkpoints and the log to the output directory.

    Exits with status 2 if the configuration, its images or the checkpoint cannot be used, and with
    130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="centernet-train", description="Train a detector.")
    parser.add_argument("config", type=Path, help="TOML file, see training/configs")
    parser.add_argument("--output", type=Path, required=True, help="directory for checkpoints")
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
    config = read_config(args.config)
    tensorboard = TensorBoardLogger(args.output / "tensorboard") if args.tensorboard else None
    Trainer(
        config,
        args.output,
        device=args.device,
        tensorboard=tensorboard,
        resume=args.resume,
        quiet=args.quiet,
    ).run()
