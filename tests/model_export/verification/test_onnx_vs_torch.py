"""Comparison of detections between runtimes: matching, tolerances and exceptions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.damage import DAMAGES, damage
from torch import Tensor, nn

from labels.outputs import Outputs, measure
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.detection_graph import DetectionGraph
from model_export.errors import ImagesError, VerificationError
from model_export.graph.normalization import NORMALIZATIONS
from model_export.verification import onnx_vs_torch
from model_export.verification.comparison import TOLERANCES, Comparison, compare
from model_export.verification.images import MAX_IMAGES, read_images, synthetic_images
from model_export.verification.onnx_vs_torch import (
    merge_verifications,
    summarise,
    verify,
    verify_images,
)
from model_package import ModelPackage

COUNT = 40


@pytest.fixture
def found() -> Outputs:
    random = np.random.default_rng(11)
    cells = random.choice(64 * 64, COUNT, replace=False)
    centers = np.stack((cells % 64, cells // 64), axis=1) + random.random((COUNT, 2))
    return {
        "scores": np.linspace(0.9, 0.1, COUNT, dtype=np.float32),
        "class_ids": random.integers(0, 3, COUNT, dtype=np.int32),
        "centers": centers.astype(np.float32),
        "sizes": random.uniform(1, 40, (COUNT, 2)).astype(np.float32),
    }


def _with(detections: Outputs, name: str, row: int, value: object) -> Outputs:
    values = detections[name].copy()
    values[row] = value
    return {**detections, name: values}


def test_identical_detections_match_exactly(found: Outputs) -> None:
    comparison = compare(found, found, "image 0")
    assert comparison.matched == comparison.total == COUNT
    assert set(comparison.worst_errors.values()) == {0.0}


def test_ranks_do_not_matter(found: Outputs) -> None:
    order = np.random.default_rng(5).permutation(COUNT)
    shuffled = {name: values[order] for name, values in found.items()}
    assert compare(found, shuffled, "image 0").matched == COUNT


def test_errors_are_measured(found: Outputs) -> None:
    other = _with(found, "scores", 3, found["scores"][3] + 5e-5)
    other = _with(other, "sizes", 4, found["sizes"][4] * (1 + 5e-4))
    worst = compare(found, other, "image 0").worst_errors
    assert worst["scores"] == pytest.approx(5e-5, rel=0.01)
    assert worst["sizes"] == pytest.approx(5e-4, rel=0.01)
    assert worst["centers"] == 0.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scores", 0.95, "scores differ by"),
        ("sizes", 99.0, "sizes differ by"),
        ("class_ids", 7, "does not find 1 detections"),
        ("centers", 63.5, "does not find 1 detections"),
        ("scores", np.nan, "NaN or infinity"),
        ("sizes", np.inf, "NaN or infinity"),
    ],
)
def test_one_wrong_value_is_an_error(found: Outputs, name: str, value: float, message: str) -> None:
    with pytest.raises(VerificationError, match=message) as caught:
        compare(found, _with(found, name, 3, value), "image 0")
    assert caught.value.code == "verification_failed"
    assert str(caught.value).startswith("image 0: ")


def test_an_additional_detection_is_an_error(found: Outputs) -> None:
    # Two detections at one position, of which only one can be matched.
    other = _with(found, "centers", -1, found["centers"][0])
    other = _with(other, "class_ids", -1, found["class_ids"][0])
    other = _with(other, "scores", -1, 0.5)
    with pytest.raises(VerificationError, match=r"only ONNX Runtime finds 1 detections"):
        compare(found, other, "image 0")


def test_ties_at_the_top_k_limit_are_accepted(found: Outputs) -> None:
    tied = _with(found, "scores", [-2, -1], 0.1)
    other = _with(tied, "centers", -1, 100.5)
    comparison = compare(tied, other, "image 0")
    assert comparison.matched == COUNT - 1
    assert comparison.exceptions == {"top_k_limit": 1}


def heatmap_of(found: Outputs) -> NDArray[np.float32]:
    """Return a heatmap (3, 64, 64) in which every detection is an isolated peak."""
    heatmap = np.zeros((3, 64, 64), np.float32)
    columns, rows = np.floor(found["centers"]).astype(int).T
    heatmap[found["class_ids"], rows, columns] = found["scores"]
    return heatmap


@pytest.mark.parametrize("other_side", [False, True])
@pytest.mark.parametrize("step", [(1, 0), (0, 1), (1, 1)])
def test_a_missing_peak_is_accepted_if_a_neighbour_has_the_same_score(
    found: Outputs, step: tuple[int, int], other_side: bool
) -> None:
    left, right = found, _with(found, "scores", 0, 0.0)
    if other_side:
        left, right = right, left
    heatmap = heatmap_of(found)
    with pytest.raises(VerificationError, match=r"finds? 1 detections"):
        compare(left, right, "image 0", heatmap=heatmap)
    column, row = np.floor(found["centers"][0]).astype(int)
    heatmap[found["class_ids"][0], row - step[0], column - step[1]] = found["scores"][0] + 5e-5
    comparison = compare(left, right, "image 0", heatmap=heatmap)
    assert comparison.matched == COUNT - 1
    # Outputs of the reference are counted; the other side has one more in the second case.
    assert comparison.exceptions == ({} if other_side else {"adjacent_cells": 1})
    assert comparison.total == COUNT - other_side
    heatmap[found["class_ids"][0], row - step[0], column - step[1]] = found["scores"][0] - 2e-4
    with pytest.raises(VerificationError, match=r"finds? 1 detections"):
        compare(left, right, "image 0", heatmap=heatmap)


def test_many_missing_peaks_are_an_error(found: Outputs) -> None:
    # Every cell has the same score as its left neighbour.
    heatmap = heatmap_of(found)
    heatmap = np.maximum(heatmap, np.roll(heatmap, -1, axis=2))
    other = {**found, "centers": found["centers"] + np.float32(0.01)}
    with pytest.raises(VerificationError, match=f"does not find {COUNT - 1} detections"):
        compare(found, other, "image 0", heatmap=heatmap)


def test_rows_with_score_0_are_not_compared(found: Outputs) -> None:
    empty = slice(COUNT // 2, None)
    left = _with(found, "scores", empty, 0.0)
    right = _with(left, "centers", empty, 1.0)
    assert compare(left, right, "image 0").total == COUNT // 2


@pytest.mark.parametrize(("normalization", "passes"), [("coco", True), ("imagenet", False)])
def test_verify_accepts_only_the_file_of_its_graph(
    slim_state: dict[str, Tensor], slim_package: ModelPackage, normalization: str, passes: bool
) -> None:
    manifest = slim_package.manifest
    state = {key: value for key, value in slim_state.items() if "num_batches" not in key}
    network = load_network(identify(state), state)
    graph = DetectionGraph(network, NORMALIZATIONS[normalization], manifest.decoder.top_k)
    onnx_file = slim_package.path_of(manifest.artifacts[0])
    names = [spec.name for spec in manifest.decoder.outputs()]
    images = synthetic_images(manifest.input.height_px, manifest.input.width_px)
    if passes:
        verification = verify(graph, onnx_file, names, images)
        assert verification.inputs == len(images)
        assert verification.matched_fraction > 0.99
        assert max(verification.worst_errors.values()) < 1e-4
    else:
        with pytest.raises(VerificationError):
            verify(graph, onnx_file, names, images)


class _RoundingGraph(DetectionGraph):
    """Ten detections whose sizes are ``error`` larger in float32 than in float64."""

    def __init__(self, error: float) -> None:
        super().__init__(nn.Conv2d(3, 1, 1), NORMALIZATIONS["coco"], 10)
        self.error = error

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        weight = next(self.parameters())
        return {"heatmap": weight.new_zeros(len(images), 1, *images.shape[1:3])}

    def decode(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        batch, dtype = len(maps["heatmap"]), maps["heatmap"].dtype
        sizes = torch.ones(batch, 10, 2, dtype=dtype)
        return (
            torch.linspace(0.9, 0.1, 10, dtype=dtype).expand(batch, -1),
            torch.zeros(batch, 10, dtype=torch.int32),
            torch.arange(20, dtype=dtype).reshape(1, 10, 2).expand(batch, -1, -1),
            sizes + self.error if dtype == torch.float32 else sizes,
        )


@pytest.mark.parametrize(
    ("rounding", "difference", "message"),
    [
        (0.0, 0.004, "sizes differ by 0.004, accepted is 0.001"),
        (0.002, 0.004, None),
        (0.002, 0.02, "sizes differ by 0.02, accepted is 0.01"),
        (0.02, 0.004, "too sensitive to rounding"),
    ],
)
def test_tolerances_are_widened_to_the_rounding_error(
    monkeypatch: pytest.MonkeyPatch, rounding: float, difference: float, message: str | None
) -> None:
    names = ("scores", "class_ids", "centers", "sizes")
    graph = _RoundingGraph(rounding)

    def run(images: NDArray[np.uint8]) -> list[Outputs]:
        rows = onnx_vs_torch.torch_runner(graph, names)(images)
        return [{**row, "sizes": row["sizes"] * np.float32(1 + difference)} for row in rows]

    monkeypatch.setattr(onnx_vs_torch, "onnx_runner", lambda *_: run)
    images = synthetic_images(8, 8)
    if message is None:
        tolerances = verify(graph, Path("unused"), names, images).tolerances
        assert tolerances["sizes"] == pytest.approx(5 * rounding, rel=0.01)
        assert tolerances["scores"] == TOLERANCES["scores"]
    else:
        with pytest.raises(VerificationError, match=message):
            verify(graph, Path("unused"), names, images)


class _NoiseGraph(_RoundingGraph):
    """Like :class:`_RoundingGraph`; in noise, float32 moves the detections by ``step_cells``."""

    def __init__(self, error: float, step_cells: float) -> None:
        super().__init__(error)
        self.step_cells = step_cells

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        is_noise = images.float().diff(dim=1).abs().mean(dim=(1, 2, 3)) > 50
        return {**super().maps(images), "noise": is_noise}

    def decode(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        scores, class_ids, centers, sizes = super().decode(maps)
        steps = self.step_cells * maps["noise"] * (centers.dtype == torch.float32)
        return scores, class_ids, centers + steps.reshape(-1, 1, 1), sizes


def _run_file(
    monkeypatch: pytest.MonkeyPatch, graph: DetectionGraph, difference: float, noise_cells: float
) -> None:
    """Let the file find what the graph finds, but sizes that differ, and other places in noise."""

    def run(images: NDArray[np.uint8]) -> list[Outputs]:
        is_noise = graph.maps(torch.from_numpy(images))["noise"].tolist()
        rows = onnx_vs_torch.torch_runner(graph, NAMES)(images)
        return [
            {
                **row,
                "sizes": row["sizes"] * np.float32(1 + difference),
                "centers": row["centers"] + np.float32(noise_cells * noise),
            }
            for row, noise in zip(rows, is_noise, strict=True)
        ]

    monkeypatch.setattr(onnx_vs_torch, "onnx_runner", lambda *_: run)


NAMES = ("scores", "class_ids", "centers", "sizes")


@pytest.mark.parametrize(
    ("step_cells", "expected"),
    [
        (
            0.09,
            "image 0: the network finds 10 of 10 detections in both float32 and float64, whose ",
        ),
        (0.7, "image 0: the network finds 0 of 10 detections in both float32 and float64"),
    ],
)
def test_images_in_which_float32_and_float64_differ_are_left_out(
    monkeypatch: pytest.MonkeyPatch, step_cells: float, expected: str
) -> None:
    graph, images = _NoiseGraph(0.0, step_cells), synthetic_images(16, 16)
    _run_file(monkeypatch, graph, difference=0.0, noise_cells=0.3)
    verification, verified = verify_images(graph, Path("unused"), NAMES, images)
    (left_out,) = verification.left_out
    assert left_out.startswith("image 0: ")
    assert expected in left_out
    assert verification.inputs == len(images) - 1
    assert verification.tolerances == {name: TOLERANCES[name] for name in verification.tolerances}
    assert [one.index for one in verified] == [1, 2, 3]


def test_images_in_which_only_the_file_differs_are_not_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, images = _NoiseGraph(0.0, 0.0), synthetic_images(16, 16)
    _run_file(monkeypatch, graph, difference=0.0, noise_cells=0.3)
    with pytest.raises(VerificationError, match="image 0: ONNX Runtime does not find 9"):
        verify(graph, Path("unused"), NAMES, images)


def test_a_wrong_file_is_refused_whatever_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, images = _NoiseGraph(0.0, 0.7), synthetic_images(16, 16)
    _run_file(monkeypatch, graph, difference=0.004, noise_cells=0.3)
    with pytest.raises(VerificationError, match=r"image 1: sizes differ by 0\.004"):
        verify(graph, Path("unused"), NAMES, images)


def test_each_image_has_tolerances_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounding widens the tolerance of the sizes in noise, but not in the other images.
    class OnlyInNoise(_NoiseGraph):
        def decode(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            *others, sizes = super().decode(maps)
            is_rounded = maps["noise"] & (sizes.dtype == torch.float32)
            return *others, sizes + 0.002 * is_rounded.reshape(-1, 1, 1)

    graph, images = OnlyInNoise(0.0, 0.0), synthetic_images(16, 16)
    _run_file(monkeypatch, graph, difference=0.004, noise_cells=0.0)
    with pytest.raises(VerificationError, match=r"image 1: sizes differ by 0\.004"):
        verify(graph, Path("unused"), NAMES, images)


def test_two_images_must_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _NoiseGraph(0.0, 0.7)
    noise, blobs, *_ = synthetic_images(16, 16)
    _run_file(monkeypatch, graph, difference=0.0, noise_cells=0.3)
    assert verify(graph, Path("unused"), NAMES, [noise, blobs, blobs]).inputs == 2
    with pytest.raises(VerificationError, match=r"too sensitive .* 3 images.*--verify-images"):
        verify(graph, Path("unused"), NAMES, [noise, noise, blobs])


@pytest.mark.parametrize("kind", DAMAGES)
def test_small_mistakes_are_found(
    slim_state: dict[str, Tensor], slim_package: ModelPackage, kind: str
) -> None:
    manifest = slim_package.manifest
    state = {key: value for key, value in slim_state.items() if "num_batches" not in key}
    network = load_network(identify(state), state)
    graph = DetectionGraph(network, NORMALIZATIONS["coco"], manifest.decoder.top_k)
    damage(graph, kind)
    onnx_file = slim_package.path_of(manifest.artifacts[0])
    names = [spec.name for spec in manifest.decoder.outputs()]
    images = synthetic_images(manifest.input.height_px, manifest.input.width_px)
    with pytest.raises(VerificationError, match="does not reproduce the network"):
        verify(graph, onnx_file, names, images)


@pytest.mark.parametrize(("matched", "total"), [(0, 0), (4, 10)])
def test_too_few_matches_are_an_error(matched: int, total: int) -> None:
    comparison = Comparison(dict.fromkeys(TOLERANCES, 0.0), matched, total, {})
    with pytest.raises(VerificationError, match=f"only {matched} of {total} detections"):
        summarise([comparison], inputs=1)


def test_the_summary_keeps_the_worst_errors(found: Outputs) -> None:
    fine = compare(found, found, "image 0")
    worse = compare(found, _with(found, "scores", 3, found["scores"][3] + 5e-5), "image 1")
    verification = summarise([fine, worse, fine], inputs=3)
    assert verification.worst_errors["scores"] == worse.worst_errors["scores"] > 0
    assert verification.matched_fraction == 1.0
    assert verification.inputs == 3


def test_the_summary_counts_what_was_not_matched(found: Outputs) -> None:
    fine = compare(found, found, "image 0")
    tied = _with(found, "scores", slice(-4, None), 0.1)
    other = _with(tied, "centers", slice(-3, None), 100.5)
    verification = summarise([fine, compare(tied, other, "image 1")], inputs=2)
    assert (verification.detections, verification.matched) == (2 * COUNT, 2 * COUNT - 3)
    assert verification.exceptions == {"top_k_limit": 3}
    other_file = summarise([fine], inputs=1, left_out=["image 0: noise"])
    merged = merge_verifications({"a.onnx": verification, "b.onnx": other_file})
    assert (merged.detections, merged.matched) == (3 * COUNT, 3 * COUNT - 3)
    assert merged.exceptions == {"top_k_limit": 3}
    assert (merged.inputs, merged.left_out) == (1, ("b.onnx, image 0: noise",))


def test_corner_pairs_at_a_threshold_are_counted() -> None:
    boxes = np.arange(4 * COUNT, dtype=np.float32).reshape(COUNT, 4)
    pairs = {
        "scores": np.linspace(0.9, 0.1, COUNT, dtype=np.float32),
        "class_ids": np.zeros(COUNT, np.int32),
        "boxes": boxes,
        "corner_scores": np.full((COUNT, 2), 0.5, np.float32),
    }
    comparison = compare(pairs, _with(pairs, "boxes", [0, 1], 1000.0), "image 0")
    assert (comparison.matched, comparison.total) == (COUNT - 2, COUNT)
    assert comparison.exceptions == {"corner_threshold": 2}


def test_keypoints_of_another_peak_are_counted(found: Outputs) -> None:
    poses = {
        **found,
        "keypoints": np.repeat(found["centers"][:, np.newaxis], 5, axis=1),
        "keypoint_scores": np.full((COUNT, 5), 0.5, np.float32),
    }
    comparison = compare(poses, _with(poses, "keypoint_scores", (3, 4), 0.0), "image 0")
    assert comparison.exceptions == {"keypoint_assignment": 1}
    assert comparison.matched == COUNT


def test_synthetic_images_are_deterministic() -> None:
    first, second = synthetic_images(64, 96), synthetic_images(64, 96)
    assert {image.shape for image in first} == {(64, 96, 3)}
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_are_read_by_name_up_to_a_limit(tmp_path: Path) -> None:
    for index in range(MAX_IMAGES + 2):
        Image.new("L", (30, 20), index).save(tmp_path / f"{index:02}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    images = read_images(tmp_path, 64, 96)
    assert [int(image.max()) for image in images] == list(range(MAX_IMAGES))
    assert {image.shape for image in images} == {(64, 96, 3)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "is not a directory"),
        ("notes.txt", b"words", "holds no image"),
        ("broken.jpg", b"words", "cannot be read as an image"),
    ],
)
def test_unreadable_images_are_rejected(
    tmp_path: Path, name: str | None, content: bytes, message: str
) -> None:
    directory = tmp_path / "images"
    if name is not None:
        directory.mkdir()
        (directory / name).write_bytes(content)
    with pytest.raises(ImagesError, match=message):
        read_images(directory, 64, 64)


def test_an_output_without_a_tolerance_is_an_error() -> None:
    rows = np.zeros(0, np.int64)
    outputs = {"scores": np.zeros(1, np.float32), "velocities": np.zeros(1, np.float32)}
    with pytest.raises(ValueError, match="velocities"):
        measure(outputs, rows, outputs, rows)
