"""Compare the detections of every available backend with ONNX Runtime on the CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.engines import open_precision, precisions
from benchmarks.gpu_check.notes import Notes
from labels.output_agreement import AGREEMENT_LIMITS, combine_agreements
from model_package import ModelPackage
from service.engines import Engine

BATCH_SIZES = (1, 4, 3, 8, 2, 1, 5)
"""The size changes, which reveals a replay of the CUDA graph of another size."""

Row = dict[str, Any]
Detections = Mapping[str, NDArray[Any]]


def check(package: ModelPackage, backends: Sequence[str], threads: int, notes: Notes) -> list[Row]:
    """Return one row per backend and precision, with the matched fraction and worst errors."""
    from model_export.verification.images import synthetic_images

    spec = package.manifest.input
    images = synthetic_images(spec.height_px, spec.width_px)
    with open_precision(package, "onnxruntime-cpu", "fp32", threads, max(BATCH_SIZES)) as reference:
        expected = [_rows(reference.run(image[np.newaxis]))[0] for image in images]
    rows = []
    for backend in backends:
        for precision in precisions(package, backend):
            check_name = f"{package.manifest.name}: {backend} {precision}"
            with notes.fail_on_error(check_name):
                with open_precision(
                    package, backend, precision, threads, max(BATCH_SIZES)
                ) as engine:
                    detections = _run(engine, images)
                    description = engine.description
                row = _compare(package, precision, expected, detections, check_name, notes)
                rows.append({"package": package.manifest.name, "backend": backend,
                             "precision": precision, "engine": description, **row})  # fmt: skip
    return rows


def _run(engine: Engine, images: Sequence[NDArray[np.uint8]]) -> list[tuple[int, Detections]]:
    """Return the index of each image and its detections, over batches of changing size."""
    detections: list[tuple[int, Detections]] = []
    for start, batch_size in enumerate(BATCH_SIZES):
        size = min(batch_size, engine.max_batch_size or batch_size)
        indices = [(start + offset) % len(images) for offset in range(size)]
        rows = _rows(engine.run([images[index] for index in indices]))
        detections += zip(indices, rows, strict=True)
    return detections


def _rows(outputs: Mapping[str, NDArray[Any]]) -> list[Detections]:
    count = len(next(iter(outputs.values())))
    return [{name: values[row] for name, values in outputs.items()} for row in range(count)]


def _compare(
    package: ModelPackage,
    precision: str,
    expected: Sequence[Detections],
    detections: Sequence[tuple[int, Detections]],
    check_name: str,
    notes: Notes,
) -> Row:
    """Compare with the criteria of the package verification for the precision."""
    from model_export.errors import ExportError

    try:
        row = (_compare_fp32 if precision == "fp32" else _compare_fp16)(
            package, expected, detections
        )
    except ExportError as error:
        notes.fail(check_name, str(error))
        return {"agrees": False, "matched": None, "worst_errors": {}}
    if not row["agrees"]:
        notes.fail(check_name, f"only {row['matched']:.4f} of the detections match")
    return row


def _compare_fp32(
    package: ModelPackage,
    expected: Sequence[Detections],
    detections: Sequence[tuple[int, Detections]],
) -> Row:
    from model_export.verification.comparison import TOLERANCES, compare

    # The export sets wider tolerances for networks that amplify rounding errors.
    tolerances = {**TOLERANCES, **package.manifest.verification.tolerances}
    results = [
        compare(expected[index], actual, f"image {index}", tolerances)
        for index, actual in detections
    ]
    worst: dict[str, float] = {}
    for result in results:
        for name, error in result.worst_errors.items():
            worst[name] = max(error, worst.get(name, 0.0))
    total = sum(result.total for result in results)
    matched = sum(result.matched for result in results) / max(1, total)
    return {"agrees": True, "matched": matched, "worst_errors": worst}


def _compare_fp16(
    package: ModelPackage,  # noqa: ARG001  # same signature as for fp32
    expected: Sequence[Detections],
    detections: Sequence[tuple[int, Detections]],
) -> Row:
    from model_export.verification.detection_agreement import compare_fp16

    agreement = combine_agreements(
        [compare_fp16(expected[index], actual) for index, actual in detections]
    )
    return {
        "agrees": agreement.is_within(AGREEMENT_LIMITS["fp16"]),
        "matched": agreement.matched_fraction,
        "worst_errors": dict(agreement.worst_errors),
    }
