"""What a checkpoint is, in words."""

from pathlib import Path

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import CheckpointInfo, examine
from model_export.checkpoints.safe_load import read_state
from model_export.tasks import TASKS


def inspect_checkpoint(path: Path) -> tuple[str, bool]:
    """Describe the checkpoint at ``path``; also whether it can be exported as it is.

    Raises :class:`~model_export.errors.CheckpointError` when it cannot be read.
    """
    state = read_state(path)
    contents = examine(state)
    fits = contents.differences.count() == 0
    values = sum(weight.numel() for weight in state.values())
    lines = [
        f"{path}: {'' if fits else 'closest to '}{contents.architecture} for {contents.task}, "
        f"{len(state)} tensors, {values / 1e6:.2f} M values",
        f"detects: {_counts(contents)}",
        f"heads: {', '.join(f'{name} {count}' for name, count in contents.head_channels.items())}; "
        f"{contents.head_hidden_channels} channels inside",
        f"usual input: {_default_input(contents)}",
    ]
    if contents.unused:
        lines.append(f"not needed: {len(contents.unused)} tensors that inference does not use")
    lines += contents.differences.lines() or ["nothing is missing or left over"]
    return "\n".join(lines), fits


def _counts(contents: CheckpointInfo) -> str:
    classes = f"{contents.num_classes} class{'es' if contents.num_classes > 1 else ''}"
    return f"{classes}, {contents.num_keypoints} keypoints" if contents.num_keypoints else classes


def _default_input(contents: CheckpointInfo) -> str:
    task = TASKS[contents.task]
    width_px, height_px = task.size_px
    return (
        f"{width_px}x{height_px}, sides multiples of "
        f"{ARCHITECTURES[contents.architecture].input_multiple}, normalization {task.normalization}"
    )
