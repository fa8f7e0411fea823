"""Agreement of the outputs of two engines: limits and exceptions."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from labels.output_agreement import (
    AGREEMENT_LIMITS,
    Agreement,
    AgreementLimits,
    combine_agreements,
    compare_outputs,
    squared_errors,
)
from labels.outputs import Outputs

FP16 = AGREEMENT_LIMITS["fp16"]


def measure_agreement(reference: Outputs, candidate: Outputs) -> Agreement:
    return compare_outputs(reference, candidate, FP16, score_threshold=0.0)


def _boxes(count: int = 40, **changes: NDArray) -> dict[str, NDArray]:
    rows = np.arange(count, dtype=np.float32)
    return {
        "scores": 0.9 - 0.02 * rows,
        "class_ids": np.zeros(count, np.int32),
        "centers": np.stack((10 * rows, 5 + 0 * rows), axis=1),
        "sizes": np.full((count, 2), 8, np.float32),
        **changes,
    }


def _counts(reference: Outputs, candidate: Outputs) -> tuple[int, int]:
    agreement = measure_agreement(reference, candidate)
    return agreement.matched, agreement.lost


def test_order_does_not_matter() -> None:
    reference = _boxes()
    assert _counts(reference, {name: rows[::-1] for name, rows in reference.items()}) == (40, 0)


@pytest.mark.parametrize(
    ("name", "change", "same"),
    [
        ("scores", 0.009, True),
        ("scores", 0.011, False),
        ("centers", 0.015, True),
        ("centers", 0.05, False),  # IoU 0.975
        ("sizes", 0.03, True),
        ("sizes", 0.2, False),
        ("class_ids", 1, False),
    ],
)
def test_each_value_has_its_tolerance(name: str, change: float, same: bool) -> None:
    reference = _boxes()
    moved = reference[name].copy()
    moved[3] += np.array(change, moved.dtype)
    assert _counts(reference, {**reference, name: moved}) == ((40, 0) if same else (39, 1))


def test_errors_are_relative_to_the_tolerances() -> None:
    reference = _boxes()

    def errors(score_threshold: float = 0.0, **changes: NDArray) -> NDArray[np.float64]:
        limits = replace(FP16, from_threshold=True)
        return squared_errors(reference, {**reference, **changes}, limits, score_threshold)

    assert errors().tolist() == [0.0] * 40
    scores = reference["scores"].copy()
    scores[3] += 0.005
    # Half of the tolerance of one of two outputs, scores and boxes.
    assert errors(scores=scores)[3] == pytest.approx(0.5**2 / 2, rel=1e-3)
    scores[3] += 1
    assert errors(scores=scores)[3] == pytest.approx(1 / 2), "beyond the tolerance"
    centers = reference["centers"].copy()
    centers[3] += 20
    lost = errors(centers=centers)
    assert (lost[3], lost.sum()) == (1, 1)
    assert len(errors(score_threshold=0.5)) == 21, "scores from 0.9 in steps of 0.02"


def test_small_boxes_may_shift_by_a_twelfth_of_a_pixel() -> None:
    thin_boxes = _boxes(sizes=np.tile(np.float32([0.02, 9]), (40, 1)))
    for shift, matched in ((0.015, 40), (0.03, 0)):
        shifted = {
            **thin_boxes,
            "centers": thin_boxes["centers"] + np.array([shift, 0], np.float32),
        }
        assert measure_agreement(thin_boxes, shifted).matched == matched


def test_detections_at_the_top_k_limit_are_not_lost() -> None:
    reference = _boxes()
    reference["scores"][38] = reference["scores"][39] + np.float32(0.005)
    moved = reference["centers"].copy()
    moved[38] += 100
    agreement = measure_agreement(reference, {**reference, "centers": moved})
    assert (agreement.matched, agreement.lost) == (39, 0)
    assert agreement.unmatched == {"top_k_limit": 1}


def test_a_few_peaks_may_move_to_the_next_cell() -> None:
    reference = _boxes()
    for moved, lost in ((2, 0), (3, 3)):
        centers = reference["centers"].copy()
        centers[:moved, 1] += 1
        agreement = measure_agreement(reference, {**reference, "centers": centers})
        assert (agreement.matched, agreement.lost) == (40 - moved, lost)
        reason = "beyond_tolerance" if lost else "adjacent_cells"
        assert agreement.unmatched == {reason: moved}


def test_keypoints_are_counted_separately() -> None:
    reference = _boxes(
        keypoints=np.tile(np.float32([[1, 1], [3, 4]]), (40, 1, 1)),
        keypoint_scores=np.full((40, 2), 0.5, np.float32),
    )
    moved = reference["keypoints"].copy()
    moved[0, 0, 0] += 0.1  # the box is 8 cells wide: within a fiftieth of its side
    moved[1, 1, 1] += 1
    agreement = measure_agreement(reference, {**reference, "keypoints": moved})
    assert (agreement.matched, agreement.keypoints, agreement.keypoints_matched) == (40, 80, 79)
    assert agreement.matched_fraction == 79 / 80
    assert agreement.worst_errors["keypoints"] == pytest.approx(0.1 / 8, rel=1e-3)


@pytest.mark.parametrize("name", ["depths", "dimensions", "rotations"])
def test_boxes_3d_must_agree_in_every_3d_value(name: str) -> None:
    reference = _boxes(
        depths=np.full(40, 20, np.float32),
        dimensions=np.full((40, 3), 2, np.float32),
        rotations=np.full((40, 8), 0.5, np.float32),
    )
    for factor, matched in ((1.01, 40), (1.05, 0)):
        changed = {**reference, name: reference[name] * np.float32(factor)}
        assert measure_agreement(reference, changed).matched == matched


def test_no_detections_or_nan_do_not_agree() -> None:
    reference = _boxes()
    nothing = {**reference, "scores": np.zeros(40, np.float32)}
    assert _counts(reference, nothing) == (0, 40)
    assert not measure_agreement(reference, nothing).is_within(FP16)
    assert not measure_agreement(nothing, nothing).is_within(FP16)
    for name in ("sizes", "scores"):
        broken = {**reference, name: np.full_like(reference[name], np.nan)}
        assert not measure_agreement(reference, broken).is_within(FP16)


def _from_half(**limits: float) -> AgreementLimits:
    return replace(FP16, from_threshold=True, **limits)


def test_detections_below_the_score_threshold_are_not_compared() -> None:
    reference = _boxes()  # 21 scores from 0.5
    moved = reference["centers"].copy()
    moved[21:] += 4
    candidate = {**reference, "centers": moved}
    assert _counts(reference, candidate) == (21, 18)  # the lowest score is at the limit
    agreement = compare_outputs(reference, candidate, _from_half(), 0.5 - 1e-6)
    assert (agreement.found, agreement.matched, agreement.lost) == (21, 21, 0)
    agreement = compare_outputs(candidate, reference, _from_half(), 0.5 - 1e-6)
    assert (agreement.found, agreement.matched, agreement.lost) == (21, 21, 0)
    moved[20] += 4
    for pair in ((reference, candidate), (candidate, reference)):
        agreement = compare_outputs(*pair, _from_half(), 0.5 - 1e-6)
        assert (agreement.found, agreement.matched, agreement.lost) == (21, 20, 1)


def test_a_compared_detection_may_match_one_below_the_score_threshold() -> None:
    reference = _boxes()
    lower = {**reference, "scores": reference["scores"] - np.float32(0.009)}
    agreement = compare_outputs(reference, lower, _from_half(), 0.5 - 1e-6)
    assert (agreement.found, agreement.matched, agreement.lost) == (21, 21, 0)
    agreement = compare_outputs(lower, reference, _from_half(), 0.5 - 1e-6)
    assert (agreement.found, agreement.matched, agreement.lost) == (20, 20, 0)


def test_a_detection_matches_only_one() -> None:
    reference = _boxes()
    twice = {name: rows.copy() for name, rows in reference.items()}
    for name in ("centers", "scores"):
        twice[name][1] = twice[name][0]  # the second object is lost
    assert _counts(reference, twice) == (39, 1)


def test_share_and_count_decide() -> None:
    limits = replace(FP16, min_share=0.9, min_count=20)
    agreement = measure_agreement(_boxes(), _boxes())
    assert agreement.is_within(limits)
    assert not agreement.is_within(replace(limits, min_count=41))
    for lost, is_within in ((4, True), (5, False)):
        assert replace(agreement, matched=40 - lost, lost=lost).is_within(limits) == is_within
    poses = replace(agreement, keypoints=80)
    assert replace(poses, keypoints_matched=72).is_within(limits)
    assert not replace(poses, keypoints_matched=71).is_within(limits)
    both = combine_agreements([agreement, replace(agreement, lost=3)])
    assert (both.found, both.matched, both.lost, both.compared) == (80, 80, 3, 83)


@pytest.mark.parametrize("precision", AGREEMENT_LIMITS)
def test_lower_precisions_have_wider_tolerances(precision: str) -> None:
    order = ["fp32", "fp16", "bf16", "int8"]
    assert set(order) == set(AGREEMENT_LIMITS)
    wider = order[order.index(precision) :]
    for other in wider:
        narrow, wide = (AGREEMENT_LIMITS[name].tolerances() for name in (precision, other))
        assert all(narrow[name] <= wide[name] for name in narrow)
