"""Command line: average precision of a checkpoint on a COCO-format split, as JSON.

``python -m training.evaluate_checkpoint CONFIG CHECKPOINT --annotations FILE --images DIR``
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.graph.normalization import NORMALIZATIONS
from model_export.key_mappings.objects_as_points import to_network_key
from training.average_precision import evaluate
from training.config import TrainConfig, read_config
from training.data.coco import read_coco_split


def load_trained_network(config: TrainConfig, checkpoint: Path) -> nn.Module:
    """Build the configuration's network with the weights under ``state_dict``, in evaluation mode.

    Raises ``RuntimeError`` listing the keys when the checkpoint does not fit exactly.
    """
    network = ARCHITECTURES[config.architecture].build(box_head_channels(len(config.classes)))
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({to_network_key(key): value for key, value in state.items()})
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print AP and AP50, overall and per class."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate_checkpoint", description="Score a checkpoint."
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances file")
    parser.add_argument("--images", type=Path, required=True, help="directory of its images")
    options = parser.parse_args(arguments)
    config = read_config(options.config)
    result = evaluate(
        load_trained_network(config, options.checkpoint),
        read_coco_split(options.annotations, options.images, config.classes).images,
        config.classes,
        (config.input_width, config.input_height),
        NORMALIZATIONS[config.normalization],
    )
    print(json.dumps(dataclasses.asdict(result), indent=1))


if __name__ == "__main__":
    main()
