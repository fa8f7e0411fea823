"""What MMDetection records beside the weights: class names, and the test settings of its config.

Both are plain data: the config is Python source, which is parsed and not executed.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model_export.config import ExportConfig
from model_export.errors import CheckpointMismatchError
from model_export.graph.normalization import Normalization

_MAX_CONFIG_CHARACTERS = 250_000
"""Twice the longest configurations of MMDetection; parsing takes up to 0.7 kB per character."""
_MAX_CLASSES = 10_000
_VERSION = re.compile(r"\d+(\.\d+)*")  # followed by the digits of a commit
_CLASS_KEYS = ("classes", "CLASSES")
_CROP_PAD = "RandomCenterCropPad"
_PADDING: Mapping[str, tuple[str, int, int]] = {
    "boxes": ("logical_or", 31, 1),
    "corner_pairs": ("logical_or", 127, 0),
}
"""``test_pad_mode`` and ``test_pad_add_pix`` by task."""
_TEST_SETTINGS: Mapping[str, Mapping[str, object]] = {
    "boxes": {"local_maximum_kernel": 3},
    "corner_pairs": {
        "local_maximum_kernel": 3,
        "corner_topk": 100,
        "distance_threshold": 0.5,
    },
}
"""Values of ``test_cfg`` that the exported graph has, by task."""
_SOFT_NMS = {"type": "soft_nms", "method": "gaussian", "sigma": 0.5, "min_score": 0.001}

Section = Mapping[str, Any]


@dataclass(frozen=True)
class RecordedSettings:
    """Description of a checkpoint of MMDetection; empty for others.

    ``version``: of MMDetection or MMEngine, None if the file does not state any; ``classes``: names
    in the order of training; ``config``: top-level values of its configuration.
    """

    version: str | None = None
    classes: tuple[str, ...] | None = None
    config: Section | None = None

    @property
    def detector(self) -> str | None:
        """Class names of the detector and its head, such as ``CenterNet, CenterNetHead``."""
        model = _section(self.config, "model")
        names = [model.get("type"), _section(model, "bbox_head").get("type")]
        return ", ".join(name for name in names if isinstance(name, str)) or None


def read_settings(loaded: object) -> RecordedSettings:
    """Return what the content of a checkpoint, read without its classes, says of the training."""
    meta = _section(loaded, "meta")
    version = next(
        (
            f"{package} {number[0]}"
            for key, package in (("mmdet_version", "MMDetection"), ("mmengine_version", "MMEngine"))
            if isinstance(meta.get(key), str) and (number := _VERSION.match(meta[key]))
        ),
        None,
    )
    source = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), None)
    return RecordedSettings(
        version, _read_classes(meta), None if source is None else parse_config(source)
    )


def _section(values: object, key: str) -> Section:
    """Return the mapping at ``key``, an empty one if there is none."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _read_classes(meta: Section) -> tuple[str, ...] | None:
    for place in (_section(meta, "dataset_meta"), meta):
        for key in _CLASS_KEYS:
            names = place.get(key)
            if isinstance(names, str):
                names = (names,)
            if (
                isinstance(names, list | tuple)
                and 0 < len(names) <= _MAX_CLASSES
                and all(isinstance(name, str) for name in names)
            ):
                return tuple(names)
    return None


def parse_config(source: str) -> dict[str, Any] | None:
    """Return the top-level values of the text of a configuration; None if it cannot be parsed.

    Understands literals and calls of ``dict`` with keywords; any other expression becomes None.
    Nothing is executed.
    """
    if len(source) > _MAX_CONFIG_CHARACTERS:
        return None
    try:
        return {
            statement.targets[0].id: _value(statement.value)
            for statement in ast.parse(source).body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {word.arg: _value(word.value) for word in keywords if word.arg is not None}
        case ast.Dict(keys=keys, values=values):
            return {
                key.value: _value(value)
                for key, value in zip(keys, values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    return None


def complete_config(config: ExportConfig, recorded: RecordedSettings, task: str) -> ExportConfig:
    """Return ``config`` with the recorded values in place of those that the user left out.

    Raises :class:`CheckpointMismatchError` if the configuration of the checkpoint tests in a way
    that neither the exported graph nor the service knows.
    """
    if config.classes is None and recorded.classes is not None:
        config = replace(config, classes=recorded.classes)
    if recorded.config is None:
        return config
    model = _section(recorded.config, "model")
    _check_test_settings(_section(model, "test_cfg"), task)
    steps = list(_test_steps(recorded.config))
    if not steps:
        return config
    crop_pad = next((step for step in steps if step.get("type") == _CROP_PAD), {})
    if config.resize is None:
        _check_image_preparation(steps, crop_pad, task)
    if config.normalization is None:
        normalization = _normalization(recorded.config, model, steps)
        if normalization is not None:
            config = replace(config, normalization=_with_padding(normalization, crop_pad))
    return config


def _check_test_settings(test_cfg: Section, task: str) -> None:
    expected = dict(_TEST_SETTINGS[task])
    found = {name: test_cfg.get(name, value) for name, value in expected.items()}
    if task == "corner_pairs":
        nms = _section(test_cfg, "nms") or _section(test_cfg, "nms_cfg")
        expected |= _SOFT_NMS
        found |= {name: nms.get(name, value) for name, value in _SOFT_NMS.items()}
    for name, value in expected.items():
        if found[name] != value:
            raise CheckpointMismatchError(
                f"the configuration in the checkpoint tests with {name} = {found[name]!r}; "
                f"only {value!r} is supported for this network. Its weights do not depend on it: "
                "set it in the configuration, and save the checkpoint again."
            )


def _test_steps(config: Section) -> Iterator[Section]:
    """Yield the transforms of the test pipeline, those of test-time augmentation included."""
    dataset = _section(_section(config, "test_dataloader"), "dataset")
    old_dataset = _section(_section(config, "data"), "test")
    pipeline = dataset.get("pipeline") or old_dataset.get("pipeline") or config.get("test_pipeline")
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, Mapping):
            yield step
            inner = step.get("transforms")
            yield from (one for one in inner or [] if isinstance(one, Mapping))


def _check_image_preparation(steps: list[Section], crop_pad: Section, task: str) -> None:
    """Raise unless images keep their resolution and are padded as the service pads them."""
    mode, add_px = crop_pad.get("test_pad_mode"), crop_pad.get("test_pad_add_pix", 0)
    found = (*mode, add_px) if isinstance(mode, list) else None
    resizing = next((size for step in steps if (size := _resized(step)) is not None), None)
    if found == _PADDING[task] and resizing is None:
        return
    received = f"pads images with {found}" if found else f"has no {_CROP_PAD}"
    if resizing is not None:
        received = f"resizes images by {resizing}"
    raise CheckpointMismatchError(
        f"the test pipeline in the checkpoint {received}; reproduced exactly are only images that "
        f"keep their resolution, padded with {_PADDING[task]}. Choose how images are prepared with "
        "--resize, such as --resize letterbox with --input-size."
    )


def _resized(step: Section) -> object:
    """Return the size or factor that a transform resizes to; None if it does not resize."""
    sizes = (step.get(key) for key in ("scale", "img_scale", "scale_factor"))
    return next((size for size in sizes if size not in (None, 1)), None)


def _normalization(config: Section, model: Section, steps: list[Section]) -> Normalization | None:
    """Return the pixel scaling of the data preprocessor (version 3) or the pipeline (2)."""
    normalize = next((step for step in steps if step.get("type") == "Normalize"), {})
    preprocessor = (
        _section(model, "data_preprocessor") or _section(config, "data_preprocessor") or normalize
    )
    mean, std = (_three_numbers(preprocessor.get(name)) for name in ("mean", "std"))
    if mean is None or std is None or 0 in std:
        return None
    to_rgb = preprocessor.get("bgr_to_rgb", preprocessor.get("to_rgb", False))
    return Normalization(mean, std, "rgb" if to_rgb else "bgr", scale=1.0)


def _with_padding(normalization: Normalization, crop_pad: Section) -> Normalization:
    """Add the colour of padding with the mean."""
    if _three_numbers(crop_pad.get("mean")) != normalization.mean:
        return normalization
    red, green, blue = (
        min(255, max(0, round(value)))
        for value in normalization.mean[:: 1 if normalization.channel_order == "rgb" else -1]
    )
    return replace(normalization, mean_rgb=(red, green, blue))


def _three_numbers(values: object) -> tuple[float, float, float] | None:
    if (
        isinstance(values, list)
        and len(values) == 3
        and all(isinstance(value, int | float) for value in values)
    ):
        first, second, third = (float(value) for value in values)
        return first, second, third
    return None
