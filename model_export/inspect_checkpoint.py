"""Description of a checkpoint for ``centernet-export inspect``."""

from pathlib import Path

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import CheckpointInfo, examine
from model_export.checkpoints.safe_load import read_state
from model_export.tasks import TASKS


def inspect_checkpoint(path: Path) -> tuple[str, bool]:
    """Return a description of the checkpoint at ``path``, and whether it can be exported.

    Raises :class:`~model_export.errors.CheckpointError` if it cannot be read.
    """
    state = read_state(path)
    info = examine(state)
    fits = info.differences.count() == 0
    values = sum(weight.numel() for weight in state.values())
    lines = [
        f"{path}: {'' if fits else 'closest to '}{info.architecture} for {info.task}, "
        f"{len(state)} tensors, {values / 1e6:.2f} M values",
        f"detects: {_counts(info)}",
        f"heads: {', '.join(f'{name} {count}' for name, count in info.head_channels.items())}; "
        f"{info.head_hidden_channels} hidden channels",
        f"default input: {_default_input(info)}",
    ]
    if info.unused:
        lines.append(f"not needed: {len(info.unused)} tensors that inference does not use")
    lines += info.differences.lines() or ["no missing and no unexpected tensors"]
    return "\n".join(lines), fits


def _counts(info: CheckpointInfo) -> str:
    classes = f"{info.num_classes} class{'es' if info.num_classes > 1 else ''}"
    return f"{classes}, {info.num_keypoints} keypoints" if info.num_keypoints else classes


def _default_input(info: CheckpointInfo) -> str:
    task = TASKS[info.task]
    width_px, height_px = task.size_px
    return (
        f"{width_px}x{height_px}, sides multiples of "
        f"{ARCHITECTURES[info.architecture].input_multiple}, normalization {task.normalization}"
    )
