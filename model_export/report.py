"""The report of a package: what was verified, the detections of each file, the latency."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from client.results import Detection, Keypoint
from labels.extreme_points import group_extreme_points, octagons
from labels.outputs import Outputs, boxes_in_cells
from model_export.references import recorded_images
from model_export.verification.ap_limits import (
    MAX_AP_LOSS,
    MAX_CLASS_AP_LOSS,
    MIN_CLASS_OBJECTS,
    classes_without_limit,
)
from model_export.verification.comparison import EXCEPTIONS
from model_export.verification.images import ImageArray
from model_export.verification.onnx_vs_torch import Run, VerifiedImage, onnx_runner
from model_package import AveragePrecision, ModelManifest, OnnxArtifact, Verification
from model_package.editing import edit_package
from model_package.onnxruntime import load_onnxruntime
from reports.drawings import draw_side_by_side
from reports.page import Cell, Drawing, Section, Table, render_page

REPORT_FILE = "report.html"
BATCH_SIZES = (1, 2, 4)
_RUNS = 5
_BUDGET_S = 15.0
"""Networks take milliseconds to seconds for an image."""
NETWORK = "the network"
_MAX_DRAWN_IMAGES, _MAX_DRAWN_REFERENCES, _MAX_DRAWN_DETECTIONS = 4, 2, 50
_MAX_TEXT = 300


@dataclass(frozen=True)
class ComparedImage:
    """An image and the detections in it that are drawn beside each other.

    ``image``: uint8 RGB (height, width, 3); ``sides``: outputs by the name of what computed them,
    the reference first; ``differences``: parts of the caption; ``score_difference``: the largest
    one of a sorted score between fp32 and the files of other precisions.
    """

    image: ImageArray
    sides: Mapping[str, Outputs]
    differences: Sequence[str]
    score_difference: float = 0.0


@dataclass(frozen=True)
class BatchLatency:
    """The median duration of ``runs`` runs of a batch in seconds."""

    batch_size: int
    seconds: float
    runs: int


def measure_latency(run: Run, image: ImageArray, budget_s: float = _BUDGET_S) -> list[BatchLatency]:
    """Measure batches of copies of ``image``, after one run of each to warm up.

    Larger batches are omitted, and runs are not repeated, after ``budget_s`` seconds.
    """
    started_s = time.perf_counter()
    latencies: list[BatchLatency] = []
    for size in BATCH_SIZES:
        if latencies and time.perf_counter() - started_s > budget_s:
            break
        batch = np.repeat(image[np.newaxis], size, axis=0)
        run(batch)
        durations = [_duration(run, batch)]
        while len(durations) < _RUNS and time.perf_counter() - started_s < budget_s:
            durations.append(_duration(run, batch))
        latencies.append(BatchLatency(size, median(durations), len(durations)))
    return latencies


def _duration(run: Run, batch: ImageArray) -> float:
    started_s = time.perf_counter()
    run(batch)
    return time.perf_counter() - started_s


def write_package_report(
    directory: Path, manifest: ModelManifest, verified: Sequence[VerifiedImage] = ()
) -> None:
    """Measure the latency of the fp32 file and write ``report.html`` to the package.

    The detections of all files are drawn in the images of the verification, ``verified``, which had
    the largest errors; without them, in those of the references in which the files differ most.
    """
    names = [one.name for one in manifest.decoder.outputs()]
    files = [
        artifact
        for artifact in manifest.artifacts
        if isinstance(artifact, OnnxArtifact) and not artifact.flip
    ]
    files.sort(key=lambda artifact: artifact.precision != "fp32")
    images = worst_images(verified) or [
        ComparedImage(image, {}, [f"image {index}"])
        for index, image in enumerate(recorded_images(directory, manifest))
    ]
    latencies: list[BatchLatency] = []
    for artifact in files:
        run = onnx_runner(directory / artifact.file, names)
        latencies = latencies or measure_latency(run, images[0].image)
        images = [_with_side(one, artifact.precision, run) for one in images]
    if not verified:
        images = sorted(images, key=lambda one: -one.score_difference)[:_MAX_DRAWN_REFERENCES]
    page = render_report(manifest, images, latencies)
    partial = directory / f".{REPORT_FILE}.partial"
    partial.write_text(page, "utf-8")
    partial.replace(directory / REPORT_FILE)


def rewrite_package_report(directory: Path) -> None:
    """Write the report of an existing package again.

    Raises :class:`~model_export.errors.ImagesError` and :class:`~model_package.PackageError`.
    """
    with edit_package(directory) as edit:
        write_package_report(directory, edit.manifest)


def worst_images(verified: Sequence[VerifiedImage]) -> list[ComparedImage]:
    """Return the images with the largest errors, with the detections of the network."""
    ranked = sorted(verified, key=lambda one: -one.worst_error)
    return [
        ComparedImage(
            one.image,
            {NETWORK: one.reference, "fp32": one.found},
            [f"image {one.index}: largest error {one.worst_error:.1%} of its tolerance"],
        )
        for one in ranked[:_MAX_DRAWN_IMAGES]
    ]


def _with_side(one: ComparedImage, name: str, run: Run) -> ComparedImage:
    """Add the detections of a file, and how far its sorted scores differ from those of fp32."""
    if name in one.sides:
        return one
    (outputs,) = run(one.image[np.newaxis])
    sides = {**one.sides, name: outputs}
    if "fp32" not in one.sides:
        return replace(one, sides=sides)
    before, after = (np.sort(side["scores"]) for side in (one.sides["fp32"], outputs))
    difference = float(np.abs(after - before).max())
    text = f"scores in {name} differ by {difference:.2g} or less"
    worst = max(one.score_difference, difference)
    return replace(one, sides=sides, differences=[*one.differences, text], score_difference=worst)


def render_report(
    manifest: ModelManifest, images: Sequence[ComparedImage], latencies: Sequence[BatchLatency]
) -> str:
    """Return the report as an HTML document; it shows the same numbers as the manifest."""
    verification, provenance = manifest.verification, manifest.provenance
    size = sum(artifact.size_bytes for artifact in manifest.artifacts)
    worst = max(
        error / verification.tolerances[name] for name, error in verification.worst_errors.items()
    )
    return render_page(
        f"{manifest.name} {manifest.version}",
        [
            f"{provenance.architecture}, {manifest.decoder.kind}, classes: {len(manifest.classes)}",
            f"source: {_shortened(provenance.source)}; license: {_shortened(provenance.license)}",
        ],
        [
            ("detections matched", _matched(verification)),
            ("largest error / tolerance", worst),
            ("ms per image, batch of 1", f"{latencies[0].seconds * 1000:.1f}"),
            ("MB of ONNX files", f"{size / 1e6:.1f}"),
        ],
        [
            _verification_section(manifest),
            _image_section(manifest, images),
            _latency_section(manifest, latencies),
            _package_section(manifest),
        ],
    )


def _verification_section(manifest: ModelManifest) -> Section:
    tables = [
        _verification_table("fp32", manifest.verification),
        *(
            _verification_table(artifact.file, artifact.agreement)
            for artifact in manifest.artifacts
            if isinstance(artifact, OnnxArtifact) and artifact.agreement is not None
        ),
        *(
            _ap_table(artifact.file, one)
            for artifact in manifest.artifacts
            if isinstance(artifact, OnnxArtifact) and artifact.quantization is not None
            for one in artifact.quantization.average_precisions
        ),
    ]
    note = (
        "Every image ran alone, and some in a batch. A detection of the reference is matched if "
        "the file finds it with all outputs within the tolerances."
    )
    return Section("Verification", tables, note)


def _verification_table(caption: str, verification: Verification) -> Table:
    shares = [
        error / verification.tolerances[name] for name, error in verification.worst_errors.items()
    ]
    rows: list[Sequence[Cell]] = [
        [name, f"{error:.2g}", f"{verification.tolerances[name]:.2g}", f"{share:.1%}"]
        for (name, error), share in zip(verification.worst_errors.items(), shares, strict=True)
    ]
    exceptions = "".join(
        f" Accepted without a match: {count} {EXCEPTIONS.get(reason, reason)}."
        for reason, count in verification.exceptions.items()
    )
    left_out = "".join(f" Left out: {text}." for text in verification.left_out)
    return Table(
        ["output", "worst error", "tolerance", "of the tolerance"],
        rows,
        caption,
        f"Reference: {verification.reference}. Detections matched: {_matched(verification)}, in "
        f"{verification.inputs} images.{exceptions}{left_out}",
        {3: shares},
    )


def _ap_table(file: str, one: AveragePrecision) -> Table:
    rows: list[Sequence[Cell]] = [
        [
            name,
            one.objects.get(name, ""),
            f"{ap:.4f}",
            f"{one.int8[name]:.4f}",
            f"{one.int8[name] - ap:+.4f}",
        ]
        for name, ap in one.fp32.items()
    ]
    note = f"Accepted with a loss of {MAX_AP_LOSS} for all and {MAX_CLASS_AP_LOSS} for a class."
    if unlimited := classes_without_limit(one):
        note += (
            f" Not limited, with fewer than {MIN_CLASS_OBJECTS} objects: {len(unlimited)} classes."
        )
    return Table(
        ["class", "objects", "fp32", "int8", "difference"],
        rows,
        f"{file}: AP of {one.metric}, {one.images} images",
        note,
    )


def _matched(verification: Verification) -> str:
    if verification.detections is None:  # in packages of earlier versions
        return f"{verification.matched_fraction:.1%}"
    return f"{verification.matched} of {verification.detections}"


def _image_section(manifest: ModelManifest, images: Sequence[ComparedImage]) -> Section:
    sides = list(images[0].sides) if images else []
    source = (
        "The images of the verification with the largest errors, which are synthetic unless the "
        "export was given images (--verify-images)."
        if NETWORK in sides
        else "The images of the references in which the scores of the files differ most."
    )
    note = (
        f"{source} Detections from left to right: {', '.join(sides)}; at the score threshold "
        f"{manifest.decoder.score_threshold:g}, before any suppression, in pixels of the network "
        "input. bf16 is no file: centernet-eval --compare shows where it differs."
    )
    drawings = [_draw(manifest, one) for one in images]
    return Section("Detections of each file", drawings, note)


def _draw(manifest: ModelManifest, compared: ComparedImage) -> Drawing:
    image = Image.fromarray(compared.image)
    return draw_side_by_side(
        "; ".join(compared.differences),
        image,
        [_to_client(side, manifest, image.size) for side in compared.sides.values()],
        skeleton=getattr(manifest.decoder, "skeleton", ()),
        keypoint_names=getattr(manifest.decoder, "keypoints", ()),
    )


def _to_client(
    outputs: Outputs, manifest: ModelManifest, input_size: tuple[int, int]
) -> list[Detection]:
    """Convert the outputs for one image to detections in pixels of the network input."""
    if "cells" in outputs:
        outputs = group_extreme_points(outputs)
    size = np.array(input_size)
    map_size = (size + 1) // manifest.decoder.output_stride
    cell_px = size / map_size  # 511 pixels are 128 cells with a stride of 4
    rows = np.flatnonzero(outputs["scores"] >= max(manifest.decoder.score_threshold, 1e-6))
    rows = rows[:_MAX_DRAWN_DETECTIONS]
    boxes = boxes_in_cells(outputs)
    assert boxes is not None  # every decoder has boxes
    boxes = boxes[rows] * np.tile(cell_px, 2)
    keypoints = np.empty((len(rows), 0, 3))
    keypoint_class_ids = getattr(manifest.decoder, "keypoint_class_ids", ())
    if "keypoints" in outputs:
        scores = outputs["keypoint_scores"][rows, :, np.newaxis]
        keypoints = np.concatenate([outputs["keypoints"][rows] * cell_px, scores], axis=2)
    extreme_points = masks = np.empty((len(rows), 0, 2))
    if "points" in outputs:
        extreme_points = outputs["points"][rows] * cell_px
        masks = octagons(extreme_points)
    return [
        Detection(
            int(class_id),
            manifest.classes[class_id],
            float(score),
            (box[0], box[1], box[2], box[3]),
            tuple(Keypoint(*point) for point in points)
            if not keypoint_class_ids or class_id in keypoint_class_ids
            else (),
            extreme_points=tuple((x, y) for x, y in sides),
            octagon=tuple((x, y) for x, y in octagon),
        )
        for class_id, score, box, points, sides, octagon in zip(
            outputs["class_ids"][rows],
            outputs["scores"][rows],
            boxes.tolist(),
            keypoints.tolist(),
            extreme_points.tolist(),
            masks.tolist(),
            strict=True,
        )
    ]


def _latency_section(manifest: ModelManifest, latencies: Sequence[BatchLatency]) -> Section:
    rows: list[Sequence[Cell]] = [
        [
            str(one.batch_size),
            f"{one.seconds * 1000:.1f}",
            f"{one.seconds * 1000 / one.batch_size:.1f}",
            f"{one.batch_size / one.seconds:.1f}",
            one.runs,
        ]
        for one in latencies
    ]
    columns = ["batch", "ms", "ms per image", "images/s", "runs"]
    note = (
        f"Median of the network alone, {manifest.input.width_px} × {manifest.input.height_px} "  # noqa: RUF001
        f"pixels, fp32, ONNX Runtime {load_onnxruntime().__version__} on {_cores()} CPU cores of "
        "the machine that exported it, which may have been busy. The service may run another "
        "engine and precision."
    )
    return Section("Latency by batch size", [Table(columns, rows)], note)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _package_section(manifest: ModelManifest) -> Section:
    provenance = manifest.provenance
    facts: Mapping[str, str] = {
        "classes": ", ".join(manifest.classes),
        "input": f"{manifest.input.width_px} x {manifest.input.height_px}, {manifest.input.resize}",
        "score threshold": f"{manifest.decoder.score_threshold:g}",
        "normalization": provenance.normalization,
        "checkpoint SHA-256": provenance.checkpoint_sha256,
        "made with": ", ".join(f"{name} {version}" for name, version in provenance.tools.items()),
    }
    files: list[Sequence[Cell]] = [
        [one.file, one.precision, f"{one.size_bytes / 1e6:.1f}", one.sha256]
        for one in manifest.artifacts
    ]
    return Section(
        "Package",
        [
            Table(["file", "precision", "MB", "SHA-256"], files, text_columns=(1, 3)),
            Table(
                ["", ""],
                [[name, _shortened(text)] for name, text in facts.items()],
                text_columns=(1,),
            ),
        ],
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ..."
