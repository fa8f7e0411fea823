"""Every table by task or decoder kind is complete; a failure names the file to edit.

The decoder kinds are those of ``model_package.Decoder``; CONTRIBUTING.md describes how to add one.
"""

import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

import model_package
from evaluation.model_under_test import TASKS as EVALUATION_TASKS
from labels.output_agreement import AGREEMENT_LIMITS
from labels.outputs import measure, split_kinds
from model_export.architectures import ARCHITECTURES, OBJECTS_AS_POINTS_TASKS
from model_export.config import ExportConfig, NetworkInfo, resolve_export
from model_export.key_mappings.objects_as_points import HEADS
from model_export.tasks import TASKS
from model_export.verification.comparison import TOLERANCES
from model_package import Decoder
from service.decoders import DECODERS
from service.decoders.types import Detections, ExtremePointDetections
from service.http.responses import RESPONSE_FIELDS
from service.option_rules import TASK_RULES
from training.dataset import ENCODERS
from training.defaults import ARCHITECTURE_OF_TASK
from training.objectives import OBJECTIVES

# No label format has keypoints and 3D boxes.
TRAINED_TASKS = TASKS.keys() - {"poses_and_boxes_3d"}
DECODER_TYPES = get_args(get_args(Decoder)[0])
KINDS = tuple(decoder.model_fields["kind"].default for decoder in DECODER_TYPES)


def check(registered: Iterable[str], expected: Iterable[str], place: str) -> None:
    missing, unknown = set(expected) - set(registered), set(registered) - set(expected)
    assert not missing, f"add {sorted(missing)} to {place}"
    assert not unknown, f"{place} has {sorted(unknown)}, which model_package/manifest.py lacks"


def test_every_kind_has_a_decoder() -> None:
    check(DECODERS, KINDS, "DECODERS in service/decoders/__init__.py")


def test_every_kind_has_rules_for_request_options() -> None:
    check(TASK_RULES, KINDS, "TASK_RULES in service/option_rules.py")


@pytest.mark.parametrize("kind", KINDS)
def test_the_detections_of_every_kind_have_response_fields(kind: str) -> None:
    detections = get_type_hints(DECODERS[kind].decode)["return"]
    assert detections in RESPONSE_FIELDS, (
        f"add {detections.__name__}, which {kind} returns, to RESPONSE_FIELDS in "
        "service/http/responses.py and its fields to service/http/schemas.py"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_finds_more_than_boxes_is_evaluated_as_such(kind: str) -> None:
    detections = get_type_hints(DECODERS[kind].decode)["return"]
    has_metrics = detections not in (Detections, ExtremePointDetections)  # of which COCO has none
    assert has_metrics == (kind in EVALUATION_TASKS), (
        f"{kind} returns {detections.__name__}: correct TASKS in evaluation/model_under_test.py "
        "and give it metrics in evaluation/evaluate.py"
    )


def test_every_kind_is_exported_by_a_task() -> None:
    exported = {task.decoder.model_fields["kind"].default for task in TASKS.values()}
    check(exported, KINDS, "TASKS in model_export/tasks.py")


def test_every_decoder_class_is_exported_by_model_package() -> None:
    names = {decoder.__name__ for decoder in DECODER_TYPES}
    check(names & set(model_package.__all__), names, "model_package/__init__.py")


def test_every_task_is_supported_by_an_architecture() -> None:
    supported = {task for item in ARCHITECTURES.values() for task in item.tasks}
    check(supported, TASKS, "the tasks of an architecture in model_export/architectures.py")


def test_every_trained_task_has_a_default_network() -> None:
    check(ARCHITECTURE_OF_TASK, TRAINED_TASKS, "ARCHITECTURE_OF_TASK in training/defaults.py")


def test_every_task_of_objects_as_points_can_be_imported() -> None:
    heads = set(HEADS.values())
    tasks = {name for name, task in TASKS.items() if task.heads.keys() <= heads}
    check(
        OBJECTS_AS_POINTS_TASKS,
        tasks,
        "OBJECTS_AS_POINTS_TASKS in model_export/architectures.py",
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_export_sets_every_field_of_the_decoder(task: str) -> None:
    fields = TASKS[task].decoder.model_fields.keys() - {"kind"}
    try:
        decoder = resolve(task)
    except KeyError as error:
        pytest.fail(f"add {error} to ResolvedExport.decoder() in model_export/config.py")
    assert decoder.model_fields_set == fields


@pytest.mark.parametrize("task", TASKS)
def test_every_output_has_tolerances(task: str) -> None:
    outputs = {
        tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in resolve(task).outputs()
    }
    kinds = split_kinds(outputs)
    none = np.zeros(0, np.int64)
    measured = {name for kind in kinds for name in measure(kind, none, kind, none)}
    place = "TOLERANCES in model_export/verification/comparison.py"
    check(measured & TOLERANCES.keys(), measured, place)
    in_agreement = {*AGREEMENT_LIMITS["fp16"].tolerances(), "boxes", "sizes"}
    place = "AgreementLimits.tolerances in labels/output_agreement.py"
    check(measured & in_agreement, measured, place)  # "overlap" covers boxes and sizes


def resolve(task: str) -> model_package.Decoder:
    defaults = TASKS[task]
    config = ExportConfig(name="model", version="1")
    counts = len(defaults.classes), len(defaults.keypoints)
    network = NetworkInfo("unknown", task, *counts, input_multiple=128)
    return resolve_export(config, network).decoder()


def test_every_trained_task_has_an_objective() -> None:
    check(OBJECTIVES, TRAINED_TASKS, "OBJECTIVES in training/objectives.py")


def test_every_trained_task_has_targets() -> None:
    check(ENCODERS, TRAINED_TASKS, "ENCODERS in training/dataset.py")


def test_every_kind_is_in_the_decoding_benchmark(project: Path) -> None:
    cases = runpy.run_path(str(project / "benchmarks" / "decoders.py"))["CASES"]
    decoders = [value for case in cases for value in vars(case).values()]
    benchmarked = {value.kind for value in decoders if isinstance(value, DECODER_TYPES)}
    check(benchmarked, KINDS, "CASES in benchmarks/decoders.py")


def test_every_kind_is_documented(project: Path) -> None:
    text = (project / "docs" / "architecture.md").read_text()
    check([kind for kind in KINDS if f"`{kind}`" in text], KINDS, "docs/architecture.md")
