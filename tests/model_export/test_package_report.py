"""``report.html`` of a package: the numbers of the manifest, drawings, and latencies."""

import io
import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.report import (
    BATCH_SIZES,
    REPORT_FILE,
    BatchLatency,
    measure_latency,
    render_report,
)
from model_export.verification.onnx_vs_torch import VerifiedImage
from model_package import (
    CenterPosesDecoder,
    CornerPairsDecoder,
    Decoder,
    ModelManifest,
    ModelPackage,
    load_package,
)

LATENCIES = [BatchLatency(1, 0.25, 5), BatchLatency(2, 0.4, 1)]


def drawings(page: str) -> list[Image.Image]:
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(b64decode(one))) for one in encoded]


def test_an_export_ends_with_a_report_of_its_verification(slim_package: ModelPackage) -> None:
    page = (slim_package.directory / REPORT_FILE).read_text("utf-8")
    verification = slim_package.manifest.verification
    assert f"{verification.matched} of {verification.detections} detections matched" in page
    for name, error in verification.worst_errors.items():
        row = f'<th scope="row">{name}</th><td>{error:.2g}</td>'
        assert f"{row}<td>{verification.tolerances[name]:.2g}</td>" in page
    for artifact in slim_package.manifest.artifacts:
        assert artifact.sha256 in page
    sizes = re.findall(r'<th scope="row">(\d+)</th>', page)
    assert sizes == [str(size) for size in BATCH_SIZES]
    sheets = drawings(page)
    assert len(sheets) == 4
    assert {sheet.size for sheet in sheets} == {(2 * 160 + 8, 96)}
    assert "<script" not in page


def test_a_package_without_its_report_is_complete(
    slim_package: ModelPackage, tmp_path: Path
) -> None:
    for path in slim_package.directory.iterdir():
        if path.name != REPORT_FILE:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load_package(tmp_path).manifest == slim_package.manifest


def with_decoder(package: ModelPackage, decoder: Decoder) -> ModelManifest:
    return package.manifest.model_copy(update={"decoder": decoder})


def verified(outputs: dict[str, np.ndarray], size_px: int, error: float = 0.5) -> VerifiedImage:
    image = np.zeros((size_px, size_px, 3), np.uint8)
    empty = {name: np.zeros_like(values) for name, values in outputs.items()}
    return VerifiedImage(image, empty, outputs, error)


def bounds_of_drawing(page: str) -> tuple[int, int, int, int]:
    """Return the box around what is drawn on the right side, without the label above it."""
    (sheet,) = drawings(page)
    right = sheet.crop((sheet.width - sheet.height, 0, sheet.width, sheet.height)).convert("L")
    bounds = right.point(lambda value: 255 * (value > 60)).getbbox()
    assert bounds is not None
    return bounds


def test_corner_pairs_are_drawn_in_pixels_of_the_input(slim_package: ModelPackage) -> None:
    outputs = {
        "scores": np.float32([0.9, 0.8, -1]),
        "class_ids": np.int32([0, 0, 0]),
        "boxes": np.float32([[32, 64, 96, 120], [60, 70, 64, 72], [0, 0, 128, 128]]),
        "corner_scores": np.zeros((3, 2), np.float32),
    }
    decoder = CornerPairsDecoder(pairs=3, top_k=3, score_threshold=0.85)
    manifest = with_decoder(slim_package, decoder)
    page = render_report(manifest, [verified(outputs, 511)], LATENCIES)
    left, _, right, bottom = bounds_of_drawing(page)
    # 511 pixels are 128 cells; lines have a width.
    cell_px = 511 / 128
    assert (left, right, bottom) == pytest.approx(
        (32 * cell_px, 96 * cell_px, 120 * cell_px), abs=5
    )


def test_poses_are_drawn_in_pixels_of_the_input(slim_package: ModelPackage) -> None:
    outputs = {
        "scores": np.float32([0.9]),
        "class_ids": np.int32([0]),
        "centers": np.float32([[32, 40]]),
        "sizes": np.float32([[16, 24]]),
        "keypoints": np.float32([[[32, 30], [60, 40]]]),
        "keypoint_scores": np.float32([[1, 1]]),
    }
    decoder = CenterPosesDecoder(
        output_stride=4,
        top_k=1,
        score_threshold=0.3,
        keypoints=("nose", "tail"),
        skeleton=((0, 1),),
    )
    manifest = with_decoder(slim_package, decoder)
    page = render_report(manifest, [verified(outputs, 256)], LATENCIES)
    left, _, right, bottom = bounds_of_drawing(page)
    assert (left, right, bottom) == pytest.approx((96, 240, 208), abs=5)


def test_images_with_the_largest_errors_come_first(slim_package: ModelPackage) -> None:
    outputs = {
        "scores": np.zeros(1, np.float32),
        "class_ids": np.zeros(1, np.int32),
        "centers": np.zeros((1, 2), np.float32),
        "sizes": np.zeros((1, 2), np.float32),
    }
    errors = (0.1, 0.9, 0.3, 0.2, 0.8, 0.05)
    images = [verified(outputs, 32, error) for error in errors]
    page = render_report(slim_package.manifest, images, LATENCIES)
    captions = re.findall(r"<figcaption>image (\d): largest error ([0-9.]+)%", page)
    assert captions == [("1", "90.0"), ("4", "80.0"), ("2", "30.0"), ("3", "20.0")]
    assert '<th scope="row">2</th><td>400.0</td><td>200.0</td><td>5.0</td><td>1</td>' in page


def test_names_are_escaped_and_shortened(slim_package: ModelPackage) -> None:
    hostile = "<script>alert(1)</script>"
    provenance = slim_package.manifest.provenance.model_copy(
        update={"source": hostile, "license": "x" * 4000}
    )
    changes = {"classes": (hostile, "b", "c"), "provenance": provenance}
    manifest = slim_package.manifest.model_copy(update=changes)
    page = render_report(manifest, [], LATENCIES)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2
    assert "x" * 301 not in page


def test_slow_networks_are_measured_once() -> None:
    batches: list[int] = []

    def run(images: np.ndarray) -> list[dict[str, np.ndarray]]:
        batches.append(len(images))
        return []

    image = np.zeros((2, 2, 3), np.uint8)
    (latency,) = measure_latency(run, image, budget_s=0)
    assert (latency.batch_size, latency.runs) == (1, 1)
    assert batches == [1, 1]
    assert [one.runs for one in measure_latency(run, image, budget_s=60)] == [5] * len(BATCH_SIZES)
    assert batches[2:] == [size for size in BATCH_SIZES for _ in range(6)]
