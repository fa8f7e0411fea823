"""Checkpoints of MMDetection: what they record, what is refused, and that nothing in them runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model_export.checkpoints.mmdetection import (
    RecordedSettings,
    complete_config,
    parse_config,
    read_settings,
)
from model_export.checkpoints.safe_load import read_checkpoint
from model_export.config import ExportConfig
from model_export.errors import CheckpointMismatchError, CheckpointUnsafeError
from model_export.graph.normalization import NORMALIZATIONS

CONFIG = """
model = dict(
    type='CenterNet',
    bbox_head=dict(type='CenterNetHead', num_classes=2),
    data_preprocessor=dict(
        bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    test_cfg=dict(local_maximum_kernel=3, max_per_img=100, topk=100))
test_dataloader = dict(
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile', to_float32=True),
        dict(type='RandomCenterCropPad', mean=[0, 0, 0], test_mode=True,
             test_pad_mode=['logical_or', 31], test_pad_add_pix=1),
        dict(type='PackDetInputs')]))
"""
CORNER_CONFIG = """
data_preprocessor = dict(
    bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(
    type='CornerNet',
    test_cfg=dict(
        corner_topk=100, distance_threshold=0.5, local_maximum_kernel=3, score_thr=0.05,
        nms=dict(iou_threshold=0.5, method='gaussian', type='soft_nms')))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCenterCropPad', mean=[123.675, 116.28, 103.53],
         test_pad_mode=['logical_or', 127])]
"""
OLD_CONFIG = """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
data = dict(test=dict(pipeline=[
    dict(type='MultiScaleFlipAug', scale_factor=1.0, flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomCenterCropPad', mean=[0, 0, 0],
             test_pad_mode=['logical_or', 31], test_pad_add_pix=1),
        dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0],
             to_rgb=False)])]))
"""


def complete(source: str, task: str = "boxes", **options: Any) -> ExportConfig:
    recorded = RecordedSettings(config=parse_config(source))
    return complete_config(ExportConfig(name="model", version="1", **options), recorded, task)


def test_classes_and_versions_are_read() -> None:
    new = {
        "dataset_meta": {"classes": ("cat", "dog")},
        "mmengine_version": "0.10.4f5756",
        "cfg": CONFIG,
    }
    recorded = read_settings({"meta": new})
    assert recorded.classes == ("cat", "dog")
    assert recorded.version == "MMEngine 0.10.4"
    assert recorded.detector == "CenterNet, CenterNetHead"
    old = read_settings({"meta": {"CLASSES": ["cat"], "mmdet_version": "2.28.0"}})
    assert (old.classes, old.version) == (("cat",), "MMDetection 2.28.0")
    assert read_settings({"meta": {"dataset_meta": {"classes": [1]}}}).classes is None
    assert read_settings({"state_dict": {}}) == RecordedSettings()


def test_the_pixel_scaling_of_the_configuration_is_used() -> None:
    assert complete(CONFIG).normalization == NORMALIZATIONS["mmdetection"]
    assert (
        complete(CORNER_CONFIG, "corner_pairs").normalization
        == (NORMALIZATIONS["mmdetection-mean"])
    )
    old = complete(OLD_CONFIG).normalization
    assert old == parse_scaling("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    assert complete(CONFIG, normalization="coco").normalization == "coco"


def parse_scaling(order: str, mean: tuple[float, ...], std: tuple[float, ...]) -> object:
    return type(NORMALIZATIONS["coco"])(mean, std, order, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "task", "before", "after", "message"),
    [
        (CONFIG, "boxes", "kernel=3", "kernel=5", "local_maximum_kernel = 5; only 3"),
        (CORNER_CONFIG, "corner_pairs", "threshold=0.5, l", "threshold=1, l", "distance_threshold"),
        (CORNER_CONFIG, "corner_pairs", "'soft_nms'", "'nms'", "type = 'nms'; only 'soft_nms'"),
        (CONFIG, "boxes", "31]", "63]", r"pads images with \('logical_or', 63, 1\)"),
        (CONFIG, "boxes", "RandomCenterCropPad", "Pad", "has no RandomCenterCropPad"),
        (
            CONFIG,
            "boxes",
            "dict(type='PackDetInputs')",
            "dict(type='Resize', scale=(800, 800))",
            r"resizes images by \[800, 800\]",
        ),
    ],
)
def test_settings_that_the_graph_does_not_have_are_refused(
    source: str, task: str, before: str, after: str, message: str
) -> None:
    assert before in source
    with pytest.raises(CheckpointMismatchError, match=message):
        complete(source.replace(before, after), task)


def test_a_chosen_resize_replaces_that_of_the_configuration() -> None:
    resized = CONFIG.replace("dict(type='PackDetInputs')", "dict(type='Resize', scale=(8, 8))")
    assert complete(resized, resize="letterbox").resize == "letterbox"


@pytest.mark.parametrize(
    "source",
    ["model = dict(", "-" * 300_000 + "1", "(" * 1000, "x = 1\n" * 200_000, "\0"],
    ids=["incomplete", "deep", "nested", "long", "null"],
)
def test_a_text_that_is_no_configuration_is_ignored(source: str) -> None:
    assert parse_config(source) is None


def test_a_configuration_is_not_executed(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    source = f"model = open({str(planted)!r}, 'w')\nclasses = ('a', -1.5, {{'b': 2}})\n"
    assert parse_config(source) == {"model": None, "classes": ["a", -1.5, {"b": 2}]}
    assert not planted.exists()


class _Getattr:
    """Pickled as a call of getattr, as the methods of MMEngine's HistoryBuffer are."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return getattr, self._arguments


def test_getattr_in_a_checkpoint_is_not_called(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    state = {"a": torch.ones(2)}
    torch.save({"state_dict": state, "message_hub": _Getattr("text", "upper")}, path)
    assert read_checkpoint(path).state["a"].tolist() == [1, 1]
    # What getattr would have returned is no object that can be called.
    inner = _Getattr(_Getattr("text", "upper"), "__call__")
    torch.save({"state_dict": state, "message_hub": inner}, path)
    assert read_checkpoint(path).state["a"].tolist() == [1, 1]


class _Harmful:
    def __init__(self, planted: Path) -> None:
        self._planted = planted

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self._planted), "w")


def test_a_harmful_message_hub_is_refused_and_not_run(tmp_path: Path) -> None:
    path, planted = tmp_path / "model.pth", tmp_path / "planted"
    content = {"meta": {"cfg": CONFIG}, "state_dict": {"a": torch.ones(2)}}
    torch.save({**content, "message_hub": {"log_scalars": _Harmful(planted)}}, path)
    with pytest.raises(CheckpointUnsafeError, match=r"refers to '_?io\.open'.*not run"):
        read_checkpoint(path)
    assert not planted.exists()
