"""Labeling configurations of Label Studio, matched with the classes of a model."""

from typing import Any

import pytest
from support.serving import make_manifest
from support.tasks import EXTREME_POINTS, POSES

from service.errors import LabelingConfigError
from service.http.label_studio.labeling_config import (
    MAX_CONFIG_CHARACTERS,
    RegionTargets,
    Target,
    match_labels,
)

MODEL = make_manifest()
THRESHOLD = 0.3


def config(*controls: str, image: str = '<Image name="image" value="$photo"/>') -> str:
    return f"<View><Header value='Cars'/>{image}{''.join(controls)}</View>"


def rectangles(*labels: str, name: str = "box", attributes: str = "") -> str:
    tags = "".join(f"<Label {label}/>" for label in labels)
    return f'<RectangleLabels name="{name}" toName="image" {attributes}>{tags}</RectangleLabels>'


def points(*labels: str, name: str = "point") -> str:
    tags = "".join(f"<Label {label}/>" for label in labels)
    return f'<KeyPointLabels name="{name}" toName="image">{tags}</KeyPointLabels>'


def boxes_of(text: str) -> dict[int, str]:
    return {number: target.label for number, target in match_labels(text, MODEL).boxes.items()}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (['value="red"', 'value="blue"'], {0: "red", 2: "blue"}),
        (['value="RED"', 'value="Green"'], {0: "RED", 1: "Green"}),
        (['value="Warm" predicted_values="red, Green"'], {0: "Warm", 1: "Warm"}),
        (['value="blue" predicted_values="red"'], {0: "blue"}),
        (['value="Blue sky" alias="blue"'], {2: "blue"}),
        (['value="red"', 'value="other" predicted_values="red"'], {0: "red"}),
        (['value="red"', 'value="violet"', "color='red'"], {0: "red"}),
    ],
)
def test_labels_stand_for_classes(labels: list[str], expected: dict[int, str]) -> None:
    assert boxes_of(config(rectangles(*labels))) == expected


def test_targets_name_the_tags_and_the_field() -> None:
    found = match_labels(config(rectangles('value="red"')), MODEL)
    assert found == RegionTargets("image", "photo", {0: Target("box", "red", THRESHOLD)}, {}, {})
    assert (found.class_ids, found.min_score) == ({0}, THRESHOLD)


def test_the_threshold_is_an_attribute_of_the_control() -> None:
    low = rectangles('value="red"', name="low", attributes='model_score_threshold="0.05"')
    found = match_labels(config(low, rectangles('value="blue"')), MODEL)
    assert found.boxes == {0: Target("low", "red", 0.05), 2: Target("box", "blue", THRESHOLD)}
    assert found.min_score == 0.05
    for text in ("high", "1.5", "nan", ""):
        attributes = f'model_score_threshold="{text}"'
        with pytest.raises(LabelingConfigError, match="a score from 0 to 1"):
            match_labels(config(rectangles('value="red"', attributes=attributes)), MODEL)


def test_the_first_image_with_labels_of_the_model_is_used() -> None:
    images = '<Image name="other" value="$a"/><Image name="image" value="$b"/>'
    other = rectangles('value="violet"').replace('toName="image"', 'toName="other"')
    found = match_labels(config(other, rectangles('value="red"'), image=images), MODEL)
    assert (found.image_name, found.data_field) == ("image", "b")
    both = rectangles('value="red"').replace('toName="image"', 'toName="text,image"')
    assert match_labels(config(both), MODEL).image_name == "image"


def test_keypoints_are_found_by_name_or_by_class_and_index() -> None:
    manifest = make_manifest(POSES)
    named = points('value="Nose"', 'value="End" predicted_values="tail"', 'value="ear"')
    found = match_labels(config(named), manifest).keypoints
    assert {key: target.label for key, target in found.items()} == {
        (class_id, index): label
        for class_id in range(3)
        for index, label in enumerate(("Nose", "End"))
    }
    indexed = points(
        'value="a" predicted_values="red" model_index="1"',
        'value="b" predicted_values="blue" model_index="0"',
        'value="c" predicted_values="blue" model_index="2"',
    )
    both = match_labels(config(indexed, rectangles('value="green"')), manifest)
    assert {key: target.label for key, target in both.keypoints.items()} == {
        (0, 1): "a",
        (2, 0): "b",
    }
    assert both.class_ids == {0, 1, 2}
    assert match_labels(config(named, rectangles('value="red"')), MODEL).keypoints == {}


def test_polygons_are_labels_of_models_with_octagons() -> None:
    manifest = make_manifest(EXTREME_POINTS)
    polygons = rectangles('value="Red"', name="outline").replace("Rectangle", "Polygon")
    target = Target("outline", "Red", 0.1)
    found = match_labels(config(polygons), manifest)
    assert found == RegionTargets("image", "photo", {}, {}, {0: target})
    assert (found.class_ids, found.min_score) == ({0}, 0.1)
    both = match_labels(config(polygons, rectangles('value="blue"')), manifest)
    assert (set(both.boxes), both.octagons) == ({2}, {0: target})
    assert match_labels(config(polygons, rectangles('value="red"')), MODEL).octagons == {}
    with pytest.raises(LabelingConfigError, match="no labels for boxes"):
        match_labels(config(polygons), MODEL)


_DECLARED = '<!DOCTYPE a [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
_ENTITIES = _DECLARED + '<View><Header value="&b;"/></View>'
_EXTERNAL = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/hostname">]><View>&a;</View>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "of type NoneType"),
        ("", "not valid XML"),
        ("<View>", "not valid XML"),
        ("<View/>\0", "not valid XML"),
        ("<View>" * 20_000, "not valid XML"),
        (_ENTITIES, "entities"),
        (_EXTERNAL, "entities"),
        (config() + " " * MAX_CONFIG_CHARACTERS, "at most"),
        ("<View/>", "no Image tag"),
        (config(), "no labels for boxes"),
        (config(points('value="red"')), "None of the labels red"),
        ("<View>" + "".join(f'<Image name="{n}"/>' for n in range(11)) + "</View>", "at most 10"),
        (config(rectangles('value="violet"')), "None of the labels violet"),
        (config(rectangles(*(f'value="v{n}"' for n in range(30)))), "(30 in all)"),
        (
            config(rectangles('value="red"'), image='<Image name="image" valueList="$a"/>'),
            "several images",
        ),
    ],
)
def test_other_configurations_are_refused(text: Any, expected: str) -> None:
    with pytest.raises(LabelingConfigError) as caught:
        match_labels(text, MODEL)
    assert expected in caught.value.detail
    assert len(caught.value.detail) < 4000


def test_deep_configurations_are_read() -> None:
    depth = 8000
    text = "<View>" * depth + config(rectangles('value="red"')) + "</View>" * depth
    assert boxes_of(text) == {0: "red"}
