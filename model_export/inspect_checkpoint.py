"""Description of a checkpoint for ``centernet-export inspect``."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from model_export.architectures import find_architecture
from model_export.checkpoints.identify import (
    CheckpointInfo,
    describe_heads,
    describe_unsupported,
    examine,
    shown,
)
from model_export.checkpoints.mmdetection import RecordedSettings
from model_export.checkpoints.safe_load import Checkpoint, read_checkpoint
from model_export.tasks import TASKS, task_of_framework

_SHOWN_CLASSES = 10


def inspect_checkpoint(path: Path, entry: str | None = None) -> tuple[str, bool]:
    """Return a description of the checkpoint at ``path``, and whether it can be exported.

    ``entry``: key of the weights in the file.
    Raises :class:`~model_export.errors.CheckpointError` if it cannot be read.
    """
    checkpoint = read_checkpoint(path, entry)
    state, record = checkpoint.state, checkpoint.record
    info = examine(state) if record is None else examine(state, record.architecture, record.task)
    fits = info.differences.count() == 0 or info.can_ignore_heads
    values = sum(weight.numel() for weight in state.values())
    lines = [
        f"{path}: {'' if fits else 'closest to '}{info.architecture} for {info.task}, "
        f"{len(state)} tensors, {values / 1e6:.2f} M values",
        f"framework: {_framework(info, checkpoint.mmdetection)}",
        f"detects: {_counts(info)}{_class_names(checkpoint.mmdetection)}",
        f"heads: {_join(info.head_channels)}; {_hidden_channels(info)}",
        f"default input: {_default_input(info)}",
    ]
    lines += _variant(info) + _source(checkpoint)
    if record is not None:
        lines.append(
            f"trained with: classes {', '.join(map(shown, record.classes))}; "
            f"input {record.input_width}x{record.input_height}, {record.normalization}"
        )
    elif info.num_keypoints and info.num_classes > 1:
        lines.append(
            "keypoints of all classes; if only some were trained with keypoints, name them with "
            "--keypoint-classes"
        )
    if info.unused:
        lines.append(f"not needed: {len(info.unused)} tensors that inference does not use")
    if info.other_heads:
        lines.append(f"further heads, not supported: {describe_heads(info.other_heads)}")
    lines += info.differences.lines() or ["no missing and no unexpected tensors"]
    if not fits and (other := describe_unsupported(state)) is not None:
        lines.append(other)
    if fits:
        name = shlex.quote(f"models/{info.architecture}")
        weights = [] if entry is None else ["--weights", entry]
        heads = ["--ignore-heads", *map(shown, info.other_heads)] if info.other_heads else []
        options = shlex.join(["--checkpoint", str(path), *weights, *heads])
        unnamed = _unnamed(info, checkpoint)
        names = "".join(f" --{kind} NAMES" for kind in unnamed)
        lines.append(f"command: centernet-export package {options} --output {name}{names}")
        lines += [
            f"{kind}: neither the file nor the task has {count} names; NAMES are those of the "
            "training, in its order: a text file with one name per line, or separated by commas"
            for kind, count in unnamed.items()
        ]
    return "\n".join(lines), fits


def _counts(info: CheckpointInfo) -> str:
    classes = f"{info.num_classes} class{'es' if info.num_classes > 1 else ''}"
    return f"{classes}, {info.num_keypoints} keypoints" if info.num_keypoints else classes


def _unnamed(info: CheckpointInfo, checkpoint: Checkpoint) -> dict[str, int]:
    """Return the kinds of names that an export needs, with their number."""
    if checkpoint.record is not None:
        return {}
    task = TASKS[info.task]
    is_named = checkpoint.mmdetection.classes is not None
    counts = {
        "classes": (info.num_classes, is_named or len(task.classes) == info.num_classes),
        "keypoints": (info.num_keypoints, len(task.keypoints) == info.num_keypoints),
    }
    return {kind: count for kind, (count, has_names) in counts.items() if not has_names}


def _framework(info: CheckpointInfo, recorded: RecordedSettings) -> str:
    match find_architecture(info.architecture).key_mapping.framework:
        case "authors":
            return "the code of the paper's authors, or this project"
        case "cornernet_lite":
            return "CornerNet-Lite, or this project"
    details = [shown(text) for text in (recorded.detector, recorded.version) if text]
    return f"MMDetection ({'; '.join(details)})" if details else "MMDetection"


def _hidden_channels(info: CheckpointInfo) -> str:
    counts = set(info.head_hidden_channels.values())
    if counts == {0}:
        return "no hidden channels"
    if len(counts) == 1:
        return f"{counts.pop()} hidden channels"
    return f"hidden channels: {_join(info.head_hidden_channels)}"


def _join(channels: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in channels.items())


def _variant(info: CheckpointInfo) -> list[str]:
    """Describe what differs from the architecture of this name."""
    default, variant = find_architecture(info.architecture), info.variant
    if variant == default:
        return []
    differences = [
        f"{name.replace('_', ' ')} {value} instead of {vars(default)[name]}"
        for name, value in vars(variant).items()
        if value != vars(default)[name]
    ]
    return [f"variant: {'; '.join(differences)}; output stride {variant.output_stride}"]


def _class_names(recorded: RecordedSettings) -> str:
    """Return the first names that the file records."""
    if recorded.classes is None:
        return ""
    names = ", ".join(shown(name) for name in recorded.classes[:_SHOWN_CLASSES])
    return f": {names}{', ...' if len(recorded.classes) > _SHOWN_CLASSES else ''}"


def _default_input(info: CheckpointInfo) -> str:
    architecture = find_architecture(info.architecture)
    task = task_of_framework(info.task, architecture.key_mapping.framework)
    width_px, height_px = task.size_px
    return (
        f"{width_px}x{height_px}, sides multiples of "
        f"{architecture.input_multiple}, normalization {task.normalization}, {task.resize}"
    )


def _source(checkpoint: Checkpoint) -> list[str]:
    """Describe where the weights are in the file, if there was a choice or a prefix."""
    lines = []
    if checkpoint.other_entries:
        others = ", ".join(shown(key) for key in checkpoint.other_entries[:5])
        lines.append(f"weights: {shown(str(checkpoint.entry))}; --weights also accepts {others}")
    if checkpoint.prefix:
        lines.append(f"prefix of all names, removed: {shown(checkpoint.prefix)}")
    return lines
