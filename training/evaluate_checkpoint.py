"""Command line: average precision of a checkpoint on a COCO-format split, as JSON.

``python -m training.evaluate_checkpoint RECIPE CHECKPOINT --annotations FILE --images DIR``
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.checkpoints.objects_as_points import to_network_key
from model_export.graph.normalization import NORMALIZATIONS
from training.data.coco import read_coco_split
from training.average_precision import evaluate
from training.config import Recipe, read_recipe


def load_trained_network(recipe: Recipe, checkpoint: Path) -> nn.Module:
    """Build the recipe's network with the weights under ``state_dict``, in evaluation mode.

    Raises ``RuntimeError`` listing the keys when the checkpoint does not fit exactly.
    """
    network = ARCHITECTURES[recipe.architecture].build(box_head_channels(len(recipe.classes)))
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({to_network_key(key): value for key, value in state.items()})
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print AP and AP50, overall and per class."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate_checkpoint", description="Score a checkpoint."
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances file")
    parser.add_argument("--images", type=Path, required=True, help="directory of its pictures")
    options = parser.parse_args(arguments)
    recipe = read_recipe(options.recipe)
    result = evaluate(
        load_trained_network(recipe, options.checkpoint),
        read_coco_split(options.annotations, options.images, recipe.classes).images,
        recipe.classes,
        (recipe.input_width, recipe.input_height),
        NORMALIZATIONS[recipe.normalization],
    )
    print(json.dumps(dataclasses.asdict(result), indent=1))


if __name__ == "__main__":
    main()
