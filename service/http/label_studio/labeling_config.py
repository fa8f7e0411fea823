"""Labeling configurations: which regions of which image a Label Studio project wants from a model.

A configuration is XML. An ``Image`` tag names the field of the task with the image;
``RectangleLabels``, ``KeyPointLabels`` and ``PolygonLabels`` tags with its name in ``toName`` have
a ``Label`` for each class or keypoint::

    <View>
      <Image name="image" value="$image"/>
      <RectangleLabels name="box" toName="image" model_score_threshold="0.4">
        <Label value="Car" predicted_values="car, van"/>
      </RectangleLabels>
    </View>

The attributes ``predicted_values``, ``model_index`` and ``model_score_threshold`` have the meaning
that they have in the YOLO example of label-studio-ml.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from model_package import ExtremePointsDecoder, KeypointsDecoder, ModelManifest
from service.errors import LabelingConfigError

MAX_CONFIG_CHARACTERS = 128 * 1024
"""Enough for thousands of labels."""
_MAX_IMAGES = 10
_LISTED = 20
"""Names that an error text lists."""


@dataclass(frozen=True)
class Target:
    """What a class or a keypoint becomes: a label of a control tag.

    ``min_score``: lowest score of the detection.
    """

    from_name: str
    label: str
    min_score: float


@dataclass(frozen=True)
class RegionTargets:
    """The regions that a project wants from a model.

    ``image_name``: name of the Image tag; ``data_field``: field of the task's data with the image;
    ``boxes`` and ``octagons``: by class id; ``keypoints``: by class id and index of the keypoint.
    """

    image_name: str
    data_field: str
    boxes: Mapping[int, Target]
    keypoints: Mapping[tuple[int, int], Target]
    octagons: Mapping[int, Target]

    @property
    def class_ids(self) -> frozenset[int]:
        """The classes of which something is wanted."""
        of_keypoints = {class_id for class_id, _ in self.keypoints}
        return frozenset(self.boxes) | frozenset(self.octagons) | of_keypoints

    @property
    def min_score(self) -> float:
        """The lowest score of all targets."""
        kinds = (self.boxes, self.keypoints, self.octagons)
        return min(target.min_score for targets in kinds for target in targets.values())


@dataclass(frozen=True)
class _Label:
    """A label, the names that it stands for in lower case, and its ``model_index``."""

    text: str
    predicted: frozenset[str]
    index: str | None


@dataclass(frozen=True)
class _Control:
    kind: str
    name: str
    min_score: float
    labels: Sequence[_Label]


def match_labels(config: object, manifest: ModelManifest) -> RegionTargets:
    """Find the labels of the classes and keypoints of a model in a labeling configuration.

    A label stands for the classes, or keypoints, in its ``predicted_values``, or else for that of
    its own name; upper and lower case are the same. A label of a keypoint may instead name its
    class in ``predicted_values`` and the index of the keypoint in ``model_index``. Of several
    images, the first with such a label is used.

    Raises :class:`LabelingConfigError`.
    """
    tags = list(_parse(config).iter())
    kinds = ["rectanglelabels", "keypointlabels"]
    if isinstance(manifest.decoder, ExtremePointsDecoder):
        kinds.append("polygonlabels")
    images: dict[str, Element] = {}
    controls: dict[str, list[_Control]] = {}
    for tag in tags:
        if _kind(tag) == "image" and tag.get("name"):
            images.setdefault(tag.get("name", ""), tag)
        elif _kind(tag) in kinds:
            control = _read_control(tag, manifest)
            for name in set(tag.get("toName", "").split(",")):
                controls.setdefault(name, []).append(control)
    if not images:
        raise LabelingConfigError(
            "The labeling configuration has no Image tag with a name. Add one, such as "
            '<Image name="image" value="$image"/>.'
        )
    if len(images) > _MAX_IMAGES:
        raise LabelingConfigError(
            f"The labeling configuration has {len(images)} images; at most {_MAX_IMAGES} are "
            "accepted. Remove those that are not annotated."
        )
    labels: list[str] = []
    for name, image in images.items():
        value = image.get("value", "")
        of_image = controls.get(name, [])
        targets = RegionTargets(
            name,
            value[1:],
            _class_targets("rectanglelabels", of_image, manifest),
            _point_targets(of_image, manifest),
            _class_targets("polygonlabels", of_image, manifest),
        )
        if targets.class_ids:
            if not value.startswith("$"):
                raise LabelingConfigError(
                    f"Image {name[:100]!r}: received value={value[:100]!r}. Name the field of the "
                    'task that has the image, such as value="$image"; several images of a task '
                    "are not supported."
                )
            return targets
        labels += [label.text for control in of_image for label in control.labels]
    raise LabelingConfigError(_no_match(labels, manifest))


def _parse(config: object) -> Element:
    if not isinstance(config, str):
        raise LabelingConfigError(
            f"The labeling configuration is of type {type(config).__name__}. Send its XML as a "
            "string."
        )
    if len(config) > MAX_CONFIG_CHARACTERS:
        raise LabelingConfigError(
            f"The labeling configuration has {len(config)} characters; at most "
            f"{MAX_CONFIG_CHARACTERS} are accepted. Use fewer labels."
        )
    try:
        root: Element = fromstring(config, forbid_dtd=True)
    except DefusedXmlException:
        raise LabelingConfigError(
            "The labeling configuration declares a document type or entities. Remove them."
        ) from None
    except (ParseError, ValueError) as error:
        raise LabelingConfigError(
            f"The labeling configuration is not valid XML: {str(error)[:200]}."
        ) from None
    return root


def _kind(tag: Element) -> str:
    return str(tag.tag).lower()


def _read_control(control: Element, manifest: ModelManifest) -> _Control:
    labels = []
    for tag in control.iter():
        text = tag.get("alias") or tag.get("value")
        if _kind(tag) == "label" and text:
            names = map(str.strip, tag.get("predicted_values", "").casefold().split(","))
            predicted = frozenset(filter(None, names)) or frozenset({text.casefold()})
            labels.append(_Label(text, predicted, tag.get("model_index")))
    min_score = _min_score(control, manifest)
    return _Control(_kind(control), control.get("name", ""), min_score, labels)


def _min_score(control: Element, manifest: ModelManifest) -> float:
    text = control.get("model_score_threshold")
    if text is None:
        return manifest.decoder.score_threshold
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise LabelingConfigError(
            f"model_score_threshold: received {text[:100]!r}. It is a score from 0 to 1."
        )
    return score


def _class_targets(
    kind: str, controls: Sequence[_Control], manifest: ModelManifest
) -> dict[int, Target]:
    class_ids = _numbers_by_name(manifest.classes)
    targets: dict[int, Target] = {}
    for control in controls:
        if control.kind != kind:
            continue
        for label in control.labels:
            for name in label.predicted & class_ids.keys():
                for class_id in class_ids[name]:
                    target = Target(control.name, label.text, control.min_score)
                    targets.setdefault(class_id, target)
    return targets


def _point_targets(
    controls: Sequence[_Control], manifest: ModelManifest
) -> dict[tuple[int, int], Target]:
    targets: dict[tuple[int, int], Target] = {}
    if not isinstance(manifest.decoder, KeypointsDecoder):
        return targets
    class_ids = _numbers_by_name(manifest.classes)
    keypoints = _numbers_by_name(manifest.decoder.keypoints)
    every_class = range(len(manifest.classes))
    indices = {str(number): number for number in range(len(manifest.decoder.keypoints))}
    for control in controls:
        if control.kind != "keypointlabels":
            continue
        for label in control.labels:
            pairs: list[tuple[int, int]] = []
            if label.index is None:
                for name in label.predicted & keypoints.keys():
                    numbers = keypoints.pop(name)  # of several labels, the first is used
                    pairs += [(class_id, number) for class_id in every_class for number in numbers]
            elif label.index in indices:
                for name in label.predicted & class_ids.keys():
                    pairs += [(class_id, indices[label.index]) for class_id in class_ids[name]]
            for pair in pairs:
                targets.setdefault(pair, Target(control.name, label.text, control.min_score))
    return targets


def _numbers_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions of each name, in lower case."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers.setdefault(name.casefold(), []).append(number)
    return numbers


def _no_match(labels: Sequence[str], manifest: ModelManifest) -> str:
    classes = _listed(manifest.classes)
    if not labels:
        return (
            "The labeling configuration has no labels for boxes of its images. Add a "
            f"RectangleLabels tag with labels for the classes of model {manifest.name}: {classes}."
        )
    return (
        f"None of the labels {_listed(labels)} is a class of model {manifest.name}, which has "
        f'{classes}. Name its classes in the labels: <Label value="..." '
        f'predicted_values="{manifest.classes[0][:100]}"/>.'
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown}, ... ({len(names)} in all)"
