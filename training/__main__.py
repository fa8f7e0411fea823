"""Command line: ``python -m training RECIPE --output DIR``, see ``--help``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from training.tensorboard import Curves
from training.config import read_recipe
from training.trainer import Trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a recipe; checkpoints and the log go to the output directory."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train a detector.")
    parser.add_argument("recipe", type=Path, help="TOML file, see training/recipes")
    parser.add_argument("--output", type=Path, required=True, help="directory for checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from last.pth in --output")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (%(default)s); on GPUs in mixed precision",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write event files to --output")
    options = parser.parse_args(arguments)
    recipe = read_recipe(options.recipe)
    curves = Curves(options.output / "tensorboard") if options.tensorboard else None
    Trainer(
        recipe, options.output, device=options.device, curves=curves, resume=options.resume
    ).run()


if __name__ == "__main__":
    main()
