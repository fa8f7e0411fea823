"""Command line: ``python -m training CONFIG --output DIR``, see ``--help``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from training.config import read_config
from training.tensorboard import TensorBoardLogger
from training.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> None:
    """Train a configuration and write checkpoints and the log to the output directory."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train a detector.")
    parser.add_argument("config", type=Path, help="TOML file, see training/configs")
    parser.add_argument("--output", type=Path, required=True, help="directory for checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from last.pth in --output")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (%(default)s); on GPUs in mixed precision",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write event files to --output")
    args = parser.parse_args(argv)
    config = read_config(args.config)
    tensorboard = TensorBoardLogger(args.output / "tensorboard") if args.tensorboard else None
    Trainer(
        config, args.output, device=args.device, tensorboard=tensorboard, resume=args.resume
    ).run()


if __name__ == "__main__":
    main()
