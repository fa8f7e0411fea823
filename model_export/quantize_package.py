"""Addition of int8 files to a package: calibration, selection of float32 layers, verification."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line.progress import TIME_LEFT, Steps
from model_export.errors import QuantizationError
from model_export.onnx.quantize import Quantizer
from model_export.references import recorded_images
from model_export.report import write_package_report
from model_export.verification.ap_limits import AveragePrecisions, compare_average_precisions
from model_export.verification.detection_agreement import Int8Error, verify_int8
from model_export.verification.images import ImageArray, read_images
from model_package import (
    AveragePrecision,
    ModelManifest,
    ModelPackage,
    OnnxArtifact,
    Quantization,
    Verification,
)
from model_package.directory import load_package, sha256_of
from model_package.editing import edit_package
from model_package.onnxruntime import load_onnxruntime

MAX_CALIBRATION_IMAGES = 200
"""More images hardly widen the ranges of the activations."""
MEAN_IMAGES = 32
"""Images on which the mean errors of the layers are measured, over all cells of their outputs."""
EFFECT_IMAGES = 16
"""Images on which the effect of each layer on the detections is measured."""
COMPARED_IMAGES = 64
"""Images on which int8 is compared with fp32. If 93 % of the detections match on average, fewer
than 90 % match of 16 % of the samples of 88 detections, and of 4 % of those of 223 detections."""
FLOAT_SHARES = (0.01, 0.05, 0.1, 0.2)
"""Shares of the multiplications that stay float32, tried in this order. The first costs no time
that could be measured; with the last, int8 is faster than fp32 and slower than bf16."""

_STEPS_PER_FILE = 4


@dataclass(frozen=True)
class LabelFiles:
    """A COCO file, or a directory of Pascal VOC or KITTI files, and the directory of the images."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class _Evaluation:
    """Labelled images; ``objects``: their number by class; ``measure``: APs of a graph on them."""

    images: int
    objects: Mapping[str, int]
    measure: Callable[[bytes], AveragePrecisions]


@dataclass(frozen=True)
class _QuantizedFile:
    content: bytes
    quantization: Quantization
    agreement: Verification


def quantize_package(
    directory: Path,
    image_dir: Path,
    labels: LabelFiles | None,
    steps: Steps,
) -> ModelPackage:
    """Add an int8 file for each fp32 file of a package; they replace those that it has.

    The report of the package is written again, with the new files. ``image_dir``: images to
    calibrate with; ``labels``: labelled images to measure AP on; ``steps``: shows the progress.
    Raises :class:`~model_export.errors.ExportError` and :class:`~model_package.PackageError`; the
    package is then unchanged.
    """
    with edit_package(directory) as edit:
        manifest = edit.manifest
        recorded = recorded_images(directory, manifest)
        spec = manifest.input
        images = read_images(image_dir, spec.height_px, spec.width_px, MAX_CALIBRATION_IMAGES)
        evaluation = None if labels is None else _read_labels(labels, manifest)
        files = _fp32_files(manifest)
        steps.total = (_STEPS_PER_FILE + (evaluation is not None)) * len(files) + 1
        quantized = [
            _quantize(directory / artifact.file, manifest, images, recorded, evaluation, steps)
            for artifact in files
        ]
        for artifact, result in zip(files, quantized, strict=True):
            content = edit.new_file()
            content.write_bytes(result.content)
            digest = sha256_of(content)
            int8_artifact = OnnxArtifact(
                file=f"{Path(artifact.file).stem}_int8.{digest[:8]}.onnx",
                precision="int8",
                flip=artifact.flip,
                sha256=digest,
                size_bytes=len(result.content),
                agreement=result.agreement,
                quantization=result.quantization,
            )
            edit.add_int8_file(int8_artifact, content)
        steps.begin("Measure the latency and draw the detections for the report")
        write_package_report(directory, edit.manifest)
        steps.end()
    return load_package(directory)


def _fp32_files(manifest: ModelManifest) -> list[OnnxArtifact]:
    """Return the fp32 files of a package: one, and one with flip if there is one."""
    return [
        artifact
        for artifact in manifest.artifacts
        if isinstance(artifact, OnnxArtifact) and artifact.precision == "fp32"
    ]


def _read_labels(labels: LabelFiles, manifest: ModelManifest) -> _Evaluation:
    """Read the labels. Imports libraries that only this needs."""
    from model_export.verification.average_precision import measure_average_precision, read_labels

    labelled = read_labels(labels.annotations, labels.images, manifest)
    return _Evaluation(
        len(labelled.ground_truth.images),
        labelled.count_objects(),
        lambda onnx_file: measure_average_precision(onnx_file, manifest, labelled),
    )


def _evenly_spaced(images: Sequence[ImageArray], count: int) -> Sequence[ImageArray]:
    """Return at most ``count`` images; neighbours by name are often of one scene or video."""
    return images[:: -(-len(images) // count)]


def _quantize(
    fp32_file: Path,
    manifest: ModelManifest,
    images: Sequence[ImageArray],
    recorded: Sequence[ImageArray],
    evaluation: _Evaluation | None,
    steps: Steps,
) -> _QuantizedFile:
    """Quantize one file with as few float32 layers as its verification requires."""
    steps.begin(f"Calibrate {fp32_file.name} with {len(images)} images", TIME_LEFT, len(images))
    quantizer = Quantizer(fp32_file, images, steps.advance)
    sample = _evenly_spaced(images, MEAN_IMAGES)
    steps.begin("Measure the mean errors of the layers", TIME_LEFT, len(sample))
    quantizer.correct_means(sample, steps.advance)
    layers = len(quantizer.layers)
    steps.begin(f"Measure the effect of each of {layers} layers", TIME_LEFT, layers)
    error_of = Int8Error(fp32_file, manifest.decoder, _evenly_spaced(images, EFFECT_IMAGES))
    effects = quantizer.measure_effects(error_of, steps.advance)
    fp32_aps: AveragePrecisions = {}
    if evaluation is not None:
        steps.begin("Measure the AP in fp32")
        fp32_aps = evaluation.measure(fp32_file.read_bytes())
    problem: QuantizationError | None = None
    for share in FLOAT_SHARES:
        steps.begin(f"Compare int8 with fp32, {share:.0%} of the multiplications in float32")
        float_layers = quantizer.select_float_layers(effects, share)
        quantized = [layer for layer in quantizer.layers if layer not in float_layers]
        content = quantizer.quantize(quantized).SerializeToString()
        try:
            agreement = verify_int8(
                content,
                fp32_file,
                manifest.decoder,
                recorded,
                _evenly_spaced(images, COMPARED_IMAGES),
            )
            average_precisions: tuple[AveragePrecision, ...] = ()
            if evaluation is not None:
                average_precisions = compare_average_precisions(
                    fp32_aps, evaluation.measure(content), evaluation.images, evaluation.objects
                )
        except QuantizationError as error:
            steps.end("refused")
            steps.total += 1
            problem = error
            continue
        quantization = Quantization(
            tool=f"ONNX Runtime {load_onnxruntime().__version__}",
            calibration_images=len(images),
            quantized_layers=len(quantized),
            float_layers=tuple(float_layers),
            average_precisions=average_precisions,
        )
        return _QuantizedFile(content, quantization, agreement)
    raise QuantizationError(
        f"with {FLOAT_SHARES[-1]:.0%} of the multiplications in float32: {problem} Calibrate with "
        "more images of the objects that the network detects, or serve it in bf16 or fp32."
    ) from problem
