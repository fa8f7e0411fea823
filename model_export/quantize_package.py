"""Addition of int8 files to a package: calibration, selection of float32 layers, verification."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.errors import ImagesError, QuantizationError
from model_export.onnx.quantize import Quantizer
from model_export.verification.average_precision import (
    LabelledImages,
    measure_average_precision,
    read_labels,
)
from model_export.verification.images import MAX_IMAGES, ImageArray, read_images
from model_export.verification.int8_agreement import verify_int8
from model_export.verification.onnx_vs_torch import onnx_runner
from model_package import (
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
EFFECT_IMAGES = 4
"""Images on which the effect of each layer is measured."""
FLOAT_SHARES = (0.01, 0.05, 0.1)
"""Shares of the multiplications that stay float32, tried in this order. The first costs no time
that could be measured; with more than the last, int8 is hardly faster than bf16."""


QUANTIZATION_STEPS = 3
"""Calls of ``progress`` in :func:`quantize_package` for each fp32 file."""


@dataclass(frozen=True)
class LabelFiles:
    """A COCO file and the directory of its images."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class _QuantizedFile:
    content: bytes
    quantization: Quantization
    agreement: Verification


def quantize_package(
    directory: Path,
    image_dir: Path,
    labels: LabelFiles | None,
    progress: Callable[[str], None],
) -> ModelPackage:
    """Add an int8 file for each fp32 file of a package; they replace those that it has.

    ``image_dir``: images to calibrate with; ``labels``: labelled images to measure AP on. Raises
    :class:`~model_export.errors.ExportError` and :class:`~model_package.PackageError`; the package
    is then unchanged.
    """
    with edit_package(directory) as edit:
        manifest = edit.manifest
        recorded = _read_recorded_images(directory, manifest)
        spec = manifest.input
        images = read_images(image_dir, spec.height_px, spec.width_px, MAX_CALIBRATION_IMAGES)
        labelled = None
        if labels is not None:
            labelled = read_labels(labels.annotations, labels.images, manifest)
        files = fp32_files(manifest)
        quantized = [
            _quantize(directory / artifact.file, manifest, images, recorded, labelled, progress)
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
    return load_package(directory)


def fp32_files(manifest: ModelManifest) -> list[OnnxArtifact]:
    """Return the fp32 files of a package: one, and one with flip if there is one."""
    return [
        artifact
        for artifact in manifest.artifacts
        if isinstance(artifact, OnnxArtifact) and artifact.precision == "fp32"
    ]


def _read_recorded_images(directory: Path, manifest: ModelManifest) -> Sequence[ImageArray]:
    if manifest.references is None:
        raise ImagesError(
            f"{directory} has no references, without which the service uses no int8 file. Record "
            f"them first: centernet-export references {directory} --images DIR"
        )
    path = directory / manifest.references.file
    spec = manifest.input
    try:
        with np.load(path) as file:
            images: ImageArray = file["images"]
        if images.dtype != np.uint8 or images.shape[1:] != (spec.height_px, spec.width_px, 3):
            raise ValueError(f"images are {images.dtype} of shape {images.shape}")
    except Exception as error:  # NumPy raises any exception for a damaged file
        raise ImagesError(
            f"{path} does not contain references of this model: {error}. Record them again: "
            f"centernet-export references {directory} --images DIR"
        ) from error
    return list(images)


def _quantize(
    fp32_file: Path,
    manifest: ModelManifest,
    images: Sequence[ImageArray],
    recorded: Sequence[ImageArray],
    labelled: LabelledImages | None,
    progress: Callable[[str], None],
) -> _QuantizedFile:
    """Quantize one file with as few float32 layers as its verification requires."""
    progress(f"Calibrate {fp32_file.name} with {len(images)} images")
    names = [output.name for output in manifest.decoder.outputs()]
    with Quantizer(fp32_file, images) as quantizer:
        quantizer.quantize(quantizer.layers)  # measures the ranges of all layers
        progress(f"Measure the effect of each of {len(quantizer.layers)} layers")
        effects = quantizer.measure_effects(images[:EFFECT_IMAGES])
        progress("Compare int8 with fp32")
        problem: QuantizationError | None = None
        for share in FLOAT_SHARES:
            float_layers = quantizer.select_float_layers(effects, share)
            quantized = [layer for layer in quantizer.layers if layer not in float_layers]
            content = quantizer.quantize(quantized).SerializeToString()
            try:
                agreement = verify_int8(content, fp32_file, names, recorded, images[:MAX_IMAGES])
                average_precision = None
                if labelled is not None:
                    average_precision = measure_average_precision(
                        onnx_runner(fp32_file, names),
                        onnx_runner(content, names),
                        labelled,
                        manifest,
                    )
            except QuantizationError as error:
                problem = error
                continue
            quantization = Quantization(
                tool=f"ONNX Runtime {load_onnxruntime().__version__}",
                calibration_images=len(images),
                quantized_layers=len(quantized),
                float_layers=tuple(float_layers),
                average_precision=average_precision,
            )
            return _QuantizedFile(content, quantization, agreement)
    raise QuantizationError(
        f"with {FLOAT_SHARES[-1]:.0%} of the multiplications in float32: {problem} Calibrate with "
        "more images of the objects that the network detects, or serve it in bf16 or fp32."
    ) from problem
