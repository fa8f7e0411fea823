"""Command line: ``python -m training RECIPE --output DIR [--resume]``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.recipe import read_recipe
from training.trainer import Trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a recipe; checkpoints and the log go to the output directory."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train a detector.")
    parser.add_argument("recipe", type=Path, help="TOML file, see training/recipes")
    parser.add_argument("--output", type=Path, required=True, help="directory for checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from last.pth in --output")
    options = parser.parse_args(arguments)
    trainer = Trainer(read_recipe(options.recipe), options.output)
    if options.resume:
        trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
