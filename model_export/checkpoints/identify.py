"""What a checkpoint is: architecture and task, found from names and shapes alone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_export.architectures import ARCHITECTURES, Architecture
from model_export.errors import CheckpointMismatchError
from model_export.tasks import TASKS

_COUNTER = ".num_batches_tracked"
_SHOWN = 3
_SHOWN_CHARACTERS = 100

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Differences:
    """What separates a checkpoint from a network, in the upstream names."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    """Name, shape in the checkpoint and shape in the network, ready to be read."""
    agreeing: int

    def count(self) -> int:
        """How many tensors do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def lines(self) -> list[str]:
        """What does not fit, one line per kind."""
        return [
            f"{len(keys)} {kind} ({_first(keys)})"
            for kind, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.reshaped),
            )
            if keys
        ]


@dataclass(frozen=True)
class CheckpointInfo:
    """The network that a checkpoint holds, or comes closest to."""

    architecture: str
    """A key of :data:`model_export.architectures.ARCHITECTURES`."""
    task: str
    """A key of :data:`model_export.tasks.TASKS`."""
    head_channels: Mapping[str, int]
    head_hidden_channels: int
    unused: tuple[str, ...] = ()
    """Stored tensors that inference does not need."""
    differences: Differences = Differences((), (), (), 0)

    @property
    def num_classes(self) -> int:
        """How many classes are detected."""
        return self.head_channels[TASKS[self.task].classes_head]

    @property
    def num_keypoints(self) -> int:
        """How many keypoints a pose has; 0 for other tasks."""
        return self.head_channels.get("keypoint_offsets", 0) // 2


def identify(
    state: Mapping[str, Tensor], architecture: str | None = None, task: str | None = None
) -> CheckpointInfo:
    """Find the network that ``state`` (the upstream names) fits exactly.

    ``architecture`` and ``task`` are what the user says it is, if anything. Raises
    :class:`CheckpointMismatchError`, once, with everything that does not fit.
    """
    contents = examine(state, architecture, task)
    if contents.differences.count() == 0:
        return contents
    closest = examine(state)
    raise CheckpointMismatchError(_describe(contents, closest, architecture, len(state)))


def recognise(state: Mapping[str, Tensor]) -> CheckpointInfo | None:
    """Find the network that ``state`` (the upstream names) fits exactly, if there is one."""
    contents = examine(state)
    return contents if contents.differences.count() == 0 else None


def examine(
    state: Mapping[str, Tensor], architecture: str | None = None, task: str | None = None
) -> CheckpointInfo:
    """Find the network that ``state`` comes closest to, among those that are not ruled out."""
    candidates = [
        _examine_as(state, name, task)
        for name in ([architecture] if architecture else ARCHITECTURES)
        if task is None or task in ARCHITECTURES[name].tasks
    ]
    return max(candidates, key=lambda found: _closeness(found.differences))


def _closeness(differences: Differences) -> tuple[bool, int, int]:
    return differences.count() == 0, differences.agreeing, -differences.count()


def _examine_as(state: Mapping[str, Tensor], name: str, task_name: str | None) -> CheckpointInfo:
    architecture = ARCHITECTURES[name]
    heads = architecture.layout.find_heads(state)
    task_name = task_name or closest_task(heads.channels, architecture.tasks)
    task = TASKS[task_name]
    channels = task.head_channels(
        heads.channels,
        classes=heads.channels.get(task.classes_head, 1),
        keypoints=max(1, heads.channels.get("keypoint_offsets", 2) // 2),
    )
    hidden_channels = heads.hidden_channels or architecture.head_hidden_channels
    unused = tuple(key for key in state if architecture.layout.is_unused(key))
    needed = {key: weight for key, weight in state.items() if key not in unused}
    expected = expected_shapes(architecture, channels, hidden_channels)
    return CheckpointInfo(
        name, task_name, channels, hidden_channels, unused, compare(expected, needed)
    )


def closest_task(found: Collection[str], among: Sequence[str]) -> str:
    """Name the task whose heads are most like those found."""

    def closeness(name: str) -> int:
        heads = TASKS[name].heads.keys()
        return len(heads & set(found)) - len(heads ^ set(found))

    return max(among, key=closeness)


def expected_shapes(
    architecture: Architecture, head_channels: Mapping[str, int], hidden_channels: int
) -> Shapes:
    """Name and shape of every weight that inference needs from a checkpoint."""
    with torch.device("meta"):
        network = architecture.build(head_channels, hidden_channels)
    return {
        architecture.layout.to_checkpoint_key(key): tuple(weight.shape)
        for key, weight in network.state_dict().items()
        if not key.endswith(_COUNTER)
    }


def compare(expected: Shapes, state: Mapping[str, Tensor]) -> Differences:
    """Find the names and shapes in which ``state`` differs from ``expected``."""
    shapes = {key: tuple(weight.shape) for key, weight in state.items()}
    shared = [key for key in expected if key in shapes]
    reshaped = [key for key in shared if shapes[key] != expected[key]]
    return Differences(
        missing=tuple(key for key in expected if key not in shapes),
        unexpected=tuple(key for key in shapes if key not in expected),
        reshaped=tuple(f"{key} {shapes[key]} instead of {expected[key]}" for key in reshaped),
        agreeing=len(shared) - len(reshaped),
    )


def _describe(
    contents: CheckpointInfo, closest: CheckpointInfo, architecture: str | None, tensors: int
) -> str:
    problems = ", ".join(contents.differences.lines())
    if architecture is None:
        found = f"the checkpoint is no network that is known here: {problems}."
    else:
        found = f"the checkpoint is not a {architecture} for {contents.task}: {problems}."
    if closest.differences.count() == 0:
        return (
            f"{found} It is a {closest.architecture} for {closest.task}: export it with "
            f"--arch {closest.architecture} --task {closest.task}, or without either."
        )
    return (
        f"{found} None of {', '.join(ARCHITECTURES)} fits; the closest is "
        f"{closest.architecture}, which shares {closest.differences.agreeing} of the "
        f"checkpoint's {tensors} tensors."
    )


def _first(keys: Iterable[str]) -> str:
    listed = list(keys)
    # A stranger's names: shortened and escaped, so that they cannot play with the terminal.
    shown = [key[:_SHOWN_CHARACTERS].encode("unicode_escape").decode() for key in listed[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(listed) > _SHOWN else "")
