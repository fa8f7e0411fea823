"""``report.html`` of a package: the numbers of the manifest, drawings, and latencies."""

import io
import json
import re
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.cli import main
from model_export.report import (
    BATCH_SIZES,
    NETWORK,
    REPORT_FILE,
    BatchLatency,
    ComparedImage,
    measure_latency,
    render_report,
    worst_images,
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
    encoded = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(b64decode(one))) for one in encoded]


def test_an_export_ends_with_a_report_of_its_verification(slim_package: ModelPackage) -> None:
    page = (slim_package.directory / REPORT_FILE).read_text("utf-8")
    verification = slim_package.manifest.verification
    assert f"Detections matched: {verification.matched} of {verification.detections}, in " in page
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


def compared(outputs: dict[str, np.ndarray], size_px: int) -> list[ComparedImage]:
    image = np.zeros((size_px, size_px, 3), np.uint8)
    empty = {name: np.zeros_like(values) for name, values in outputs.items()}
    return [ComparedImage(image, {NETWORK: empty, "fp32": outputs}, [])]


def bounds_of_drawing(page: str) -> tuple[int, int, int, int]:
    """Return the box around what is drawn on the right side, without the label above it."""
    (sheet,) = drawings(page)
    right = sheet.crop((sheet.width - sheet.height, 0, sheet.width, sheet.height)).convert("L")
    bounds = right.point(lambda value: 255 * (value > 60)).getbbox()
    assert bounds is not None
    return bounds


@pytest.mark.parametrize("output_stride", [4, 8])
def test_corner_pairs_are_drawn_in_pixels_of_the_input(
    slim_package: ModelPackage, output_stride: int
) -> None:
    boxes = np.float32([[32, 64, 96, 120], [60, 70, 64, 72], [0, 0, 128, 128]])
    outputs = {
        "scores": np.float32([0.9, 0.8, -1]),
        "class_ids": np.int32([0, 0, 0]),
        "boxes": boxes * np.float32(4 / output_stride),
        "corner_scores": np.zeros((3, 2), np.float32),
    }
    decoder = CornerPairsDecoder(
        output_stride=output_stride, pairs=3, top_k=3, score_threshold=0.85
    )
    manifest = with_decoder(slim_package, decoder)
    page = render_report(manifest, compared(outputs, 511), LATENCIES)
    left, _, right, bottom = bounds_of_drawing(page)
    # 511 pixels are 128 cells of 4 pixels; lines have a width.
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
    page = render_report(manifest, compared(outputs, 256), LATENCIES)
    left, _, right, bottom = bounds_of_drawing(page)
    assert (left, right, bottom) == pytest.approx((96, 240, 208), abs=5)
    without = decoder.model_copy(update={"keypoint_class_ids": (1,)})
    page = render_report(with_decoder(slim_package, without), compared(outputs, 256), LATENCIES)
    assert bounds_of_drawing(page)[2] < 240 - 50


def test_images_with_the_largest_errors_come_first() -> None:
    image, outputs = np.zeros((32, 32, 3), np.uint8), {"scores": np.zeros(1, np.float32)}
    errors = {0: 0.1, 1: 0.9, 3: 0.3, 4: 0.2, 5: 0.8, 6: 0.05}  # image 2 was left out
    ranked = worst_images(
        [VerifiedImage(index, image, outputs, outputs, error) for index, error in errors.items()]
    )
    assert [one.differences for one in ranked] == [
        [f"image {index}: largest error {errors[index]:.1%} of its tolerance"]
        for index in (1, 5, 3, 4)
    ]


def test_images_that_were_left_out_are_named(slim_package: ModelPackage) -> None:
    verification = slim_package.manifest.verification
    left_out = verification.model_copy(update={"left_out": ("image 2: it is noise",)})
    manifest = slim_package.manifest.model_copy(update={"verification": left_out})
    assert "Left out: image 2: it is noise." in render_report(manifest, [], LATENCIES)


def test_the_latency_is_that_of_the_batch_and_of_an_image(slim_package: ModelPackage) -> None:
    page = render_report(slim_package.manifest, [], LATENCIES)
    assert '<th scope="row">2</th><td>400.0</td><td>200.0</td><td>5.0</td><td>1</td>' in page


def captions(page: str) -> list[str]:
    return re.findall(r"<figcaption>([^<]*)</figcaption>", page)


def test_the_files_of_a_package_are_compared_in_its_references(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "package"
    shutil.copytree(project / "models/blood_cells", directory)
    (directory / REPORT_FILE).write_text("an earlier report")
    assert main(["report", str(directory)]) == 0
    assert capsys.readouterr().out == f"The report is {directory / REPORT_FILE}.\n"
    page = (directory / REPORT_FILE).read_text("utf-8")
    assert "Detections from left to right: fp32, fp16, int8;" in page
    sheets = drawings(page)
    spec = load_package(directory).manifest.input
    gap_px = 8
    starts = [index * (spec.width_px + gap_px) for index in range(3)]
    assert [sheet.size for sheet in sheets] == [(starts[2] + spec.width_px, spec.height_px)] * 2
    errors = np.array(
        [re.findall(r"differ by ([0-9.e-]+) or less", caption) for caption in captions(page)], float
    )
    assert errors.shape == (2, 2)
    assert (errors > 0).all()
    assert (errors[:, 0] < errors[:, 1]).all(), "fp16 is closer to fp32 than int8"
    assert 0.1 > errors[0, 1] >= errors[1, 1], "the image that differs most comes first"
    left, _, right = (
        np.asarray(sheets[0].convert("L"), float)[:, x : x + spec.width_px] for x in starts
    )
    assert 0 < np.abs(left - right).mean() < 20, "the same image with nearly the same boxes"
    assert {path.name for path in directory.iterdir()} == {
        path.name for path in (project / "models/blood_cells").iterdir()
    } | {REPORT_FILE}


def test_a_package_without_references_has_no_images_to_compare(
    slim_package: ModelPackage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "package"
    shutil.copytree(slim_package.directory, directory)
    document = json.loads((directory / "model.json").read_text())
    document["references"] = None
    (directory / "model.json").write_text(json.dumps(document))
    assert main(["report", str(directory)]) == 2
    assert f"centernet-export references {directory}" in capsys.readouterr().err


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


def test_packages_of_earlier_versions_have_a_share_of_matched_detections(
    slim_package: ModelPackage,
) -> None:
    counts = {"detections": None, "matched": None, "matched_fraction": 0.975}
    verification = slim_package.manifest.verification.model_copy(update=counts)
    manifest = slim_package.manifest.model_copy(update={"verification": verification})
    assert "Detections matched: 97.5%, in " in render_report(manifest, [], LATENCIES)


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
