"""Command-line options of ``centernet-export``."""

import argparse
from pathlib import Path
from typing import get_args

from command_line.progress import add_quiet_option
from command_line.version import add_version_option
from model_export.architectures import ARCHITECTURES, TIMM_PREFIX
from model_export.config import ExportConfig, ExportPrecision
from model_export.engines.cli import SUMMARY
from model_export.graph.normalization import NORMALIZATIONS
from model_export.quantize_package import MAX_CALIBRATION_IMAGES
from model_export.references import MAX_IMAGES
from model_export.tasks import TASKS
from model_export.verification.ap_limits import (
    MAX_AP_LOSS,
    MAX_CLASS_AP_LOSS,
    MIN_CLASS_OBJECTS,
)
from model_package import ResizeMode

_FREE_SIZE_PX = 1536
"""Default of ``--free-size``: 1.5 times the size of COCO images; covers KITTI images."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; ``command`` of its result is the chosen subcommand."""
    parser = argparse.ArgumentParser(
        prog="centernet-export", description="Turn trained checkpoints into model packages."
    )
    add_version_option(parser)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    _add_package(commands.add_parser("package", help="export a checkpoint to a verified package"))
    _add_import(commands.add_parser("import", help="make a package from an external ONNX file"))
    inspect = commands.add_parser("inspect", help="show the architecture and task of a checkpoint")
    inspect.add_argument(
        "checkpoint", type=Path, metavar="FILE", help="trained weights (.pth, .safetensors)"
    )
    _add_weights(inspect)

    references = commands.add_parser(
        "references", help="record the outputs that the service checks engines with"
    )
    references.add_argument("package", type=Path, metavar="PACKAGE", help="an existing package")
    references.add_argument(
        "--images", type=Path, metavar="DIR",
        help=f"images with objects; the first {MAX_IMAGES} by name are recorded "
        "(default: synthetic images)",
    )  # fmt: skip
    _add_quantize(
        commands.add_parser("quantize", help="add int8 files to a package, verified on detections")
    )
    report = commands.add_parser("report", help="write the report of a package again")
    report.add_argument("package", type=Path, metavar="PACKAGE", help="a package with references")
    for command in commands.choices.values():
        add_quiet_option(command)

    # Only for the list of commands; `build` has its own parser, which does not import torch.
    commands.add_parser("build", help=SUMMARY)
    return parser


def _add_quantize(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("package", type=Path, metavar="PACKAGE", help="an existing package with references")
    add(
        "--images", required=True, type=Path, metavar="DIR",
        help="images like those of training, without labels, to measure the ranges of the layers "
        f"with; the first {MAX_CALIBRATION_IMAGES} by name are used",
    )  # fmt: skip
    add(
        "--evaluate", nargs=2, type=Path, metavar=("LABELS", "DIR"),
        help="labels (a COCO file, or a directory of Pascal VOC or KITTI files) and the directory "
        "of their images, not those of --images: also refuse int8 if an AP of the task is more "
        f"than {MAX_AP_LOSS} lower, or more than {MAX_CLASS_AP_LOSS} for a class with "
        f"{MIN_CLASS_OBJECTS} or more objects",
    )  # fmt: skip


def _add_package(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="trained weights (.pth, .safetensors)",
    )
    add(
        "--arch", metavar="NAME",
        help=f"architecture of the checkpoint (default: detected from its tensors): "
        f"{', '.join(ARCHITECTURES)}, or {TIMM_PREFIX}MODEL",
    )  # fmt: skip
    _add_weights(command)
    add(
        "--ignore-heads", nargs="+", default=(), metavar="NAME",
        help="heads of the checkpoint to leave out, such as tracking or velocity; inspect prints "
        "them (default: refuse such a checkpoint)",
    )  # fmt: skip
    _add_task(command)
    add(
        "--flip", action="store_true",
        help="add a second graph that averages the maps of the image and its horizontal flip",
    )  # fmt: skip
    add(
        "--free-size", nargs="?", type=int, const=_FREE_SIZE_PX, metavar="MAX",
        help=f"make height and width dynamic, up to MAX pixels ({_FREE_SIZE_PX})",
    )  # fmt: skip
    add(
        "--edge-aggregation", type=float, default=ExportConfig.edge_aggregation, metavar="WEIGHT",
        help="extreme points: add this share of the scores that rise towards a cell along its edge "
        "of the object; ExtremeNet used 0.1 (%(default)g: off)",
    )  # fmt: skip
    add(
        "--precision", choices=list(get_args(ExportPrecision)), default=ExportConfig.precision,
        help="fp16 adds files whose network computes in fp16 (%(default)s); for int8 see quantize",
    )  # fmt: skip
    add(
        "--normalization", choices=list(NORMALIZATIONS),
        help="pixel scaling that the network was trained with (coco; 3D: imagenet; checkpoints of "
        "MMDetection: that of their configuration)",
    )  # fmt: skip
    _add_manifest_fields(command)


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights", metavar="KEY",
        help="key of the checkpoint that holds the weights (default: an average such as "
        "state_dict_ema before state_dict)",
    )  # fmt: skip


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--onnx",
        required=True,
        type=Path,
        metavar="FILE",
        help="network whose outputs are the undecoded head maps",
    )
    _add_task(command)
    _add_normalization(command)
    _add_manifest_fields(command)
    command.set_defaults(
        arch=None,
        weights=None,
        ignore_heads=(),
        flip=False,
        free_size=None,
        normalization=None,
        precision="fp32",
        edge_aggregation=0.0,
    )


def _add_task(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--task", choices=list(TASKS), help="task of the network (default: detected from its heads)"
    )
    add(
        "--classes", metavar="NAMES",
        help="coco, pascal, a text file with one name per line, or names separated by commas "
        "(default: the data set of the paper, if the number of classes matches)",
    )  # fmt: skip
    add(
        "--keypoints",
        metavar="NAMES",
        help="coco, a text file, or names separated by commas (coco)",
    )
    add(
        "--keypoint-classes", metavar="NAMES",
        help="classes whose objects have keypoints, separated by commas (default: all)",
    )  # fmt: skip
    add(
        "--projection", nargs=12, type=float, default=ExportConfig.projection, metavar="P",
        help="default camera matrix (3, 4), row-major, for 3D boxes (KITTI's)",
    )  # fmt: skip
    add("--output", required=True, type=Path, metavar="DIR", help="directory of the new package")


def _add_normalization(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--mean", nargs=3, type=float, default=(0.0, 0.0, 0.0), metavar="M",
        help="subtracted per channel after scaling, in the order of --order (0 0 0)",
    )  # fmt: skip
    add(
        "--std", nargs=3, type=float, default=(1.0, 1.0, 1.0), metavar="D",
        help="divisor per channel after subtraction of the mean (1 1 1)",
    )  # fmt: skip
    add(
        "--scale", type=float, default=1 / 255, metavar="S",
        help="factor for pixel values before mean and std (1/255); 1 keeps 0...255",
    )  # fmt: skip
    add(
        "--order",
        choices=["rgb", "bgr"],
        default="rgb",
        help="channel order of the network input (rgb)",
    )


def _add_manifest_fields(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--name", help="name in URLs (default: the name of the output directory)")
    add("--model-version", default="1", metavar="V", help="version of the model (%(default)s)")
    add(
        "--input-size", metavar="WxH",
        help="input size in pixels; multiples of 32, for hourglasses of 128, for corner "
        "models of 128 minus 1 (512x512; 3D: 1280x384; corner models: 511x511)",
    )  # fmt: skip
    add(
        "--resize", choices=list(get_args(ResizeMode)),
        help="resizing of images to the input (letterbox; 3D: fit_width; corner models and "
        "MMDetection: keep_resolution)",
    )  # fmt: skip
    add(
        "--score-threshold", default=ExportConfig.score_threshold, type=float, metavar="S",
        help="default score threshold of requests (%(default)s)",
    )  # fmt: skip
    add(
        "--top-k", default=ExportConfig.top_k, type=int, metavar="K",
        help="maximum detections per image (%(default)s)",
    )  # fmt: skip
    add("--source", default=ExportConfig.source, help="source of the weights (%(default)s)")
    add("--license", default=ExportConfig.license, help="licence of the weights (%(default)s)")
    add("--description", default=ExportConfig.description, help="a sentence about the model")
    add("--verify-images", type=Path, metavar="DIR", help="further images to verify with")
