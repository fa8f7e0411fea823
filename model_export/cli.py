"""Commands of ``centernet-export``, except ``build``."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence

from command_line.progress import Steps
from model_export.class_names import read_classes, read_keypoints
from model_export.cli_options import make_parser
from model_export.config import ExportConfig
from model_export.errors import ConfigError, ExportError
from model_export.graph.normalization import Normalization
from model_export.import_onnx import import_package
from model_export.inspect_checkpoint import inspect_checkpoint
from model_export.pipeline import FP16_STEPS, STEPS, export_package
from model_export.quantize_package import LabelFiles, quantize_package
from model_export.references import add_references
from model_export.report import REPORT_FILE, rewrite_package_report
from model_export.verification.ap_limits import MIN_CLASS_OBJECTS, classes_without_limit
from model_export.verification.comparison import EXCEPTIONS
from model_package import (
    ModelPackage,
    OnnxArtifact,
    PackageError,
    Quantization,
    Verification,
)

_EXIT_FAILED = 2
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns 0 on success, 2 on an error, 130 on an interruption."""
    commands = {
        "package": _package,
        "import": _import,
        "inspect": _inspect,
        "references": _references,
        "quantize": _quantize,
        "report": _rewrite_report,
    }
    args = make_parser().parse_args(arguments)
    steps = Steps(STEPS, quiet=args.quiet)
    try:
        return commands[args.command](args, steps)
    except (ExportError, PackageError, OSError) as error:
        steps.end("failed")
        print(f"centernet-export: error: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        steps.end("interrupted")
        return _EXIT_INTERRUPTED


def _package(args: argparse.Namespace, steps: Steps) -> int:
    steps.total += FP16_STEPS if args.precision == "fp16" else 0
    package = export_package(
        _read_config(args),
        args.checkpoint,
        args.output,
        progress=steps.begin,
        image_dir=args.verify_images,
    )
    steps.end()
    print(_report(package))
    return 0


def _import(args: argparse.Namespace, steps: Steps) -> int:
    package = import_package(
        _read_config(args),
        args.onnx,
        Normalization(tuple(args.mean), tuple(args.std), args.order, args.scale),
        args.output,
        progress=steps.begin,
        image_dir=args.verify_images,
    )
    steps.end()
    print(_report(package))
    return 0


def _inspect(args: argparse.Namespace, steps: Steps) -> int:
    steps.total = 1
    steps.begin(f"Read {args.checkpoint}")
    description, fits = inspect_checkpoint(args.checkpoint, args.weights)
    steps.end()
    print(description)
    return 0 if fits else _EXIT_FAILED


def _references(args: argparse.Namespace, steps: Steps) -> int:
    steps.total = 1
    steps.begin(f"Record the outputs of {args.package} in ONNX Runtime")
    references = add_references(args.package, args.images).manifest.references
    steps.end()
    assert references is not None
    print(f"{args.package / references.file}: {references.size_bytes / 1e6:.1f} MB")
    return 0


def _rewrite_report(args: argparse.Namespace, steps: Steps) -> int:
    steps.total = 1
    steps.begin(f"Measure the latency and draw the detections of {args.package}")
    rewrite_package_report(args.package)
    steps.end()
    print(f"The report is {args.package / REPORT_FILE}.")
    return 0


def _quantize(args: argparse.Namespace, steps: Steps) -> int:
    labels = None if args.evaluate is None else LabelFiles(*args.evaluate)
    package = quantize_package(args.package, args.images, labels, steps)
    for artifact in package.manifest.artifacts:
        if isinstance(artifact, OnnxArtifact) and artifact.quantization is not None:
            print(_describe_int8_file(package, artifact, artifact.quantization))
    return 0


def _describe_int8_file(
    package: ModelPackage, artifact: OnnxArtifact, quantization: Quantization
) -> str:
    agreement = artifact.agreement
    assert agreement is not None
    lines = [
        f"{package.path_of(artifact)}: {artifact.size_bytes / 1e6:.1f} MB, "
        f"{quantization.quantized_layers} layers in int8, "
        f"{len(quantization.float_layers)} in float32",
        f"{agreement.matched} of {agreement.detections} detections agree with fp32 in "
        f"{agreement.inputs} images",
    ]
    for one in quantization.average_precisions:
        aps = (f"{name} {ap:.4f} (fp32 {one.fp32[name]:.4f})" for name, ap in one.int8.items())
        lines.append(f"AP of {one.metric} on {one.images} images: {', '.join(aps)}")
        if unlimited := classes_without_limit(one):
            lines.append(
                f"not limited, with fewer than {MIN_CLASS_OBJECTS} objects: {', '.join(unlimited)}"
            )
    return "\n".join(lines)


def _read_config(args: argparse.Namespace) -> ExportConfig:
    width_px, height_px = (None, None)
    if args.input_size is not None:
        width_px, height_px = _read_size(args.input_size)
    return ExportConfig(
        name=args.output.resolve().name if args.name is None else args.name,
        version=args.model_version,
        architecture=args.arch,
        task=args.task,
        weights=args.weights,
        ignored_heads=tuple(args.ignore_heads),
        classes=None if args.classes is None else read_classes(args.classes),
        keypoints=None if args.keypoints is None else read_keypoints(args.keypoints),
        keypoint_classes=(
            None if args.keypoint_classes is None else tuple(args.keypoint_classes.split(","))
        ),
        projection=tuple(args.projection),
        width_px=width_px,
        height_px=height_px,
        resize=args.resize,
        max_side_px=args.free_size,
        flip=args.flip,
        edge_aggregation=args.edge_aggregation,
        precision=args.precision,
        normalization=args.normalization,
        top_k=args.top_k,
        score_threshold=args.score_threshold,
        source=args.source,
        license=args.license,
        description=args.description,
    )


def _read_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None:
        raise ConfigError(
            f"--input-size {text!r} is not a size. Give WIDTHxHEIGHT in pixels, like 512x512."
        )
    return int(match[1]), int(match[2])


def _report(package: ModelPackage) -> str:
    manifest = package.manifest
    verification = manifest.verification
    megabytes = " + ".join(f"{file.size_bytes / 1e6:.1f}" for file in manifest.artifacts)
    models = shlex.quote(str(package.directory.parent))
    agreements = "".join(
        f"{artifact.file} agrees with fp32: {_summary(artifact.agreement)}\n"
        for artifact in manifest.artifacts
        if isinstance(artifact, OnnxArtifact) and artifact.agreement is not None
    )
    return (
        f"{package.directory}: {manifest.name} version {manifest.version}, "
        f"{manifest.provenance.architecture}, {manifest.decoder.kind}, "
        f"{len(manifest.classes)} classes, {megabytes} MB\n"
        f"ONNX Runtime agrees with {verification.reference}: {_summary(verification)}\n"
        f"{agreements}The report is {package.directory / REPORT_FILE}.\n"
        f"Serve it: MODELS={models} make serve"
    )


def _summary(verification: Verification) -> str:
    errors = ", ".join(f"{name} {error:.1g}" for name, error in verification.worst_errors.items())
    exceptions = "".join(
        f"\n  accepted without a match: {count} {EXCEPTIONS[reason]}"
        for reason, count in verification.exceptions.items()
    )
    left_out = "".join(f"\n  left out: {text}" for text in verification.left_out)
    return (
        f"{verification.matched} of {verification.detections} detections matched in "
        f"{verification.inputs} images, alone and in a batch; worst errors {errors}"
        f"{exceptions}{left_out}"
    )
