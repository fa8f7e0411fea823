"""Parameters of inference requests."""

import math
from typing import Any

import pytest

from service.detection_requests import RequestHead
from service.errors import InvalidInferenceRequestError, InvalidOptionError
from service.open_inference.models import ImageForm, TensorForm
from service.open_inference.parameters import read_head
from service.options import DetectParameters

HEAD = RequestHead(DetectParameters())


def test_options_have_the_names_and_types_of_detect() -> None:
    parameters = {"score_threshold": 0.25, "top_k": 7, "flip": True, "scales": "0.5,1"}
    head = read_head(parameters, ImageForm.options, HEAD)
    assert head.parameters == DetectParameters(
        score_threshold=0.25, top_k=7, flip=True, scales=[0.5, 1]
    )
    assert (head.allowed_s, head.priority) == (math.inf, "normal")


@pytest.mark.parametrize("classes", ["red,light blue", ["red", "light blue"]])
def test_classes_are_a_list_or_separated_by_commas(classes: Any) -> None:
    head = read_head({"classes": classes}, ImageForm.options, HEAD)
    assert head.parameters.classes == ["red", "light blue"]


@pytest.mark.parametrize(
    ("timeout", "before_s", "allowed_s"),
    [
        (0, math.inf, math.inf),
        (0, 2.0, 2.0),
        (1_500_000, math.inf, 1.5),
        (1_500_000, 1.0, 1.0),
        (1_500_000, 2.0, 1.5),
    ],
)
def test_timeout_is_in_microseconds(timeout: int, before_s: float, allowed_s: float) -> None:
    before = RequestHead(DetectParameters(), before_s)
    assert read_head({"timeout": timeout}, TensorForm.options, before).allowed_s == allowed_s


@pytest.mark.parametrize(
    ("level", "priority"), [(0, "high"), (1, "high"), (2, "normal"), (3, "low")]
)
def test_priority_1_is_the_highest(level: int, priority: str) -> None:
    before = RequestHead(DetectParameters(), priority="high")
    assert read_head({"priority": level}, TensorForm.options, before).priority == priority


@pytest.mark.parametrize("name", ["threshold", "sequence_id", "", "x" * 10_000])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInferenceRequestError, match=r"priority, .*timeout") as caught:
        read_head({name: 1}, ImageForm.options, HEAD)
    assert "score_threshold" in caught.value.detail
    assert len(caught.value.detail) < 500


def test_options_of_images_are_not_those_of_tensors() -> None:
    assert read_head({"flip": True}, TensorForm.options, HEAD).parameters.flip
    with pytest.raises(InvalidInferenceRequestError, match="flip, priority, timeout"):
        read_head({"score_threshold": 0.5}, TensorForm.options, HEAD)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", -1),
        ("timeout", 10**12),
        ("timeout", "soon"),
        ("priority", 4),
        ("priority", None),
        ("score_threshold", 2),
        ("score_threshold", [0.5]),
        ("top_k", 0),
        ("flip", "perhaps"),
        ("scales", "0.5,one"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidOptionError, match=name):
        read_head({name: value}, ImageForm.options, HEAD)
