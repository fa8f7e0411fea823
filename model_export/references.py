"""Recording of references: images and the outputs of the fp32 file, to check engines with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_export.errors import ImagesError
from model_export.verification.images import (
    ImageArray,
    drawn_scenes,
    read_images,
    synthetic_images,
)
from model_export.verification.onnx_vs_torch import onnx_runner
from model_package import InputSpec, ModelManifest, ModelPackage, References
from model_package.directory import load_package, sha256_of
from model_package.editing import edit_package
from model_package.onnxruntime import load_onnxruntime

MAX_IMAGES = 4
"""Every start of a service runs them."""


def reference_images(
    spec: InputSpec, image_dir: Path | None, left_out: Sequence[ImageArray] = ()
) -> list[ImageArray]:
    """Return the first images of ``image_dir``, resized, or synthetic ones without a directory.

    None of them is equal to one of ``left_out``, in which the network depends on rounding. Raises
    :class:`~model_export.errors.ImagesError`, also if no image remains.
    """
    if image_dir is not None:
        images = read_images(image_dir, spec.height_px, spec.width_px)
    else:
        # Not the noise, in which the detections of some networks depend on rounding.
        _, *blobs, _ = synthetic_images(spec.height_px, spec.width_px)
        images = drawn_scenes(spec.height_px, spec.width_px) + blobs
    images = [
        image for image in images if not any(np.array_equal(image, other) for other in left_out)
    ]
    if not images:
        raise ImagesError(
            "the detections of the network depend on rounding in all images that engines could be "
            "compared in. Verify with images of the objects that it detects (--verify-images)."
        )
    return images[:MAX_IMAGES]


def record_references(
    onnx_file: Path, output_names: Sequence[str], images: Sequence[ImageArray], content: Path
) -> References:
    """Run ``onnx_file`` in ONNX Runtime on the CPU, write ``content`` and return its description.

    The file's name in the package contains a digest, so that it never replaces another content.
    """
    run = onnx_runner(onnx_file, output_names)
    rows = [run(image[np.newaxis])[0] for image in images]
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in output_names}
    with content.open("wb") as file:
        np.savez_compressed(file, images=np.stack(images), **arrays)
    digest = sha256_of(content)
    return References(
        file=f"references.{digest[:8]}.npz",
        sha256=digest,
        size_bytes=content.stat().st_size,
        engine=f"ONNX Runtime {load_onnxruntime().__version__}, fp32, CPU",
    )


def add_references(directory: Path, image_dir: Path | None) -> ModelPackage:
    """Record references for the package in ``directory``; they replace those that it has.

    Raises :class:`~model_export.errors.ImagesError` and :class:`~model_package.PackageError`.
    """
    with edit_package(directory) as edit:
        manifest = edit.manifest
        content = edit.new_file()
        references = record_references(
            directory / _fp32_file(manifest),
            [output.name for output in manifest.decoder.outputs()],
            reference_images(manifest.input, image_dir),
            content,
        )
        edit.set_references(references, content)
    return load_package(directory)


def recorded_images(directory: Path, manifest: ModelManifest) -> list[ImageArray]:
    """Return the images of the references of a package.

    Raises :class:`~model_export.errors.ImagesError` if there are none or the file is damaged.
    """
    if manifest.references is None:
        raise ImagesError(
            f"{directory} has no references. Record them first: centernet-export references "
            f"{directory} --images DIR"
        )
    path, spec = directory / manifest.references.file, manifest.input
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


def _fp32_file(manifest: ModelManifest) -> str:
    return next(
        artifact.file
        for artifact in manifest.artifacts
        if artifact.backend == "onnxruntime" and artifact.precision == "fp32" and not artifact.flip
    )
