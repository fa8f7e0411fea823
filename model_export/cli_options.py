"""The options of ``centernet-export``."""

import argparse
from pathlib import Path
from typing import get_args

from model_export.architectures import ARCHITECTURES
from model_export.config import ExportConfig
from model_export.engines.cli import SUMMARY
from model_export.graph.normalization import NORMALIZATIONS
from model_export.tasks import TASKS
from model_package import Precision

_FREE_SIZE_PX = 1536
"""Longest side where ``--free-size`` names none: 1.5 times COCO's images, and KITTI's whole."""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line; ``command`` in the result is the one that was chosen."""
    parser = argparse.ArgumentParser(
        prog="centernet-export", description="Turn trained checkpoints into model packages."
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    package = commands.add_parser("package", help="export a checkpoint to a verified package")
    add = package.add_argument
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="trained weights (.pth)")
    add(
        "--arch", choices=list(ARCHITECTURES),
        help="what the checkpoint holds (default: what it is recognised as)",
    )  # fmt: skip
    _add_names(package)
    add(
        "--flip", action="store_true",
        help="add a second graph that averages over the image and its flipped image",
    )  # fmt: skip
    add(
        "--free-size", nargs="?", type=int, const=_FREE_SIZE_PX, metavar="MAX",
        help=f"let height and width be free, up to MAX pixels ({_FREE_SIZE_PX})",
    )  # fmt: skip
    add(
        "--precision", choices=list(get_args(Precision)), default=ExportConfig.precision,
        help="fp16 adds files whose network computes in half precision (%(default)s)",
    )  # fmt: skip
    add(
        "--normalization", choices=list(NORMALIZATIONS),
        help="pixel scaling that the network was trained with (coco; 3D: imagenet)",
    )  # fmt: skip
    _add_details(package)

    foreign = commands.add_parser("import", help="make a package of somebody else's ONNX file")
    add = foreign.add_argument
    add("--onnx", required=True, type=Path, metavar="FILE", help="network with raw heads")
    _add_names(foreign)
    _add_pixels(foreign)
    _add_details(foreign)
    foreign.set_defaults(
        arch=None, flip=False, free_size=None, normalization=None, precision="fp32"
    )

    inspect = commands.add_parser("inspect", help="say what a checkpoint is")
    inspect.add_argument("checkpoint", type=Path, metavar="FILE", help="trained weights (.pth)")

    # For the list of commands; it has an entry and options of its own, away from torch.
    commands.add_parser("build", help=SUMMARY)
    return parser


def _add_names(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--task", choices=list(TASKS), help="what it finds (default: what its heads say)")
    add(
        "--classes", metavar="NAMES",
        help="coco, pascal, a text file with one name per line, or names separated by commas "
        "(default: the data set of the paper, if the number of classes agrees)",
    )  # fmt: skip
    add(
        "--keypoints",
        metavar="NAMES",
        help="coco, a text file, or names separated by commas (coco)",
    )
    add(
        "--projection", nargs=12, type=float, default=ExportConfig.projection, metavar="P",
        help="camera matrix (3, 4), row by row, for 3D boxes (KITTI's)",
    )  # fmt: skip
    add("--output", required=True, type=Path, metavar="DIR", help="directory of the new package")


def _add_pixels(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--mean", nargs=3, type=float, default=(0.0, 0.0, 0.0), metavar="M",
        help="subtracted per channel after scaling, in the order of --order (0 0 0)",
    )  # fmt: skip
    add(
        "--std", nargs=3, type=float, default=(1.0, 1.0, 1.0), metavar="D",
        help="what that is divided by (1 1 1)",
    )  # fmt: skip
    add(
        "--scale", type=float, default=1 / 255, metavar="S",
        help="factor for pixel values before mean and deviation (1/255); 1 leaves 0...255",
    )  # fmt: skip
    add("--order", choices=["rgb", "bgr"], default="rgb", help="channels of its input (rgb)")


def _add_details(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--name", help="name in URLs (default: the name of the output directory)")
    add("--model-version", default="1", metavar="V", help="version of the model (%(default)s)")
    add(
        "--input-size", metavar="WxH",
        help="input of the network in pixels, multiples of 32, for hourglasses of 128, for corner "
        "systems one less (512x512; 3D: 1280x384; corner systems: 511x511)",
    )  # fmt: skip
    add(
        "--resize", choices=["letterbox", "fit_width", "keep_resolution"],
        help="how images become inputs (letterbox; 3D: fit_width)",
    )  # fmt: skip
    add(
        "--score-threshold", default=ExportConfig.score_threshold, type=float, metavar="S",
        help="lowest score that is served unless a request says otherwise (%(default)s)",
    )  # fmt: skip
    add(
        "--top-k", default=ExportConfig.top_k, type=int, metavar="K",
        help="detections per image at most (%(default)s)",
    )  # fmt: skip
    add("--source", default=ExportConfig.source, help="where the weights came from (%(default)s)")
    add("--license", default=ExportConfig.license, help="licence of the weights (%(default)s)")
    add("--description", default=ExportConfig.description, help="a sentence about the model")
    add("--verify-images", type=Path, metavar="DIR", help="images to verify with as well")
