"""Identification of a checkpoint's architecture and task from tensor names and shapes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model_export.architectures import ARCHITECTURES, Architecture, find_architecture
from model_export.config import NetworkInfo
from model_export.errors import CheckpointMismatchError, ConfigError
from model_export.key_mappings.corner_nets import describe_saccade
from model_export.key_mappings.mmdetection import describe_mmdetection
from model_export.key_mappings.objects_as_points import (
    NEEDED_HEADS,
    OTHER_HEADS,
    describe_tracker,
)
from model_export.tasks import TASKS

_COUNTER = ".num_batches_tracked"
_SHOWN = 3
_SHOWN_CHARACTERS = 100
_MAX_OTHER_HEADS = 20

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Differences:
    """Differences between the tensors of a checkpoint and of a network, by upstream key."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    """Key, shape in the checkpoint and shape in the network, formatted for messages."""
    agreeing: int

    def count(self) -> int:
        """Return the number of tensors that do not match."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def lines(self) -> list[str]:
        """Describe the differences, one line per kind."""
        return [
            f"{len(keys)} {kind} ({_first_keys(keys)})"
            for kind, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.reshaped),
            )
            if keys
        ]


@dataclass(frozen=True)
class CheckpointInfo:
    """The network that a checkpoint holds, or the closest known one."""

    architecture: str
    """A name that :func:`model_export.architectures.find_architecture` accepts."""
    variant: Architecture
    """The architecture with the numbers of layers and channels of the checkpoint."""
    task: str
    """A key of :data:`model_export.tasks.TASKS`."""
    head_channels: Mapping[str, int]
    head_hidden_channels: Mapping[str, int]
    """Channels between the two convolutions of each head; 0 for heads of one convolution."""
    unused: tuple[str, ...] = ()
    """Keys of stored tensors that inference does not need."""
    differences: Differences = Differences((), (), (), 0)
    other_heads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Keys of heads that the network does not have, by their name in the checkpoint."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.head_channels[TASKS[self.task].classes_head]

    @property
    def network(self) -> NetworkInfo:
        """What an export needs to know of the network."""
        return NetworkInfo(
            self.architecture,
            self.task,
            self.num_classes,
            self.num_keypoints,
            self.variant.input_multiple,
            self.variant.output_stride,
            self.variant.key_mapping.framework,
        )

    @property
    def has_only_other_heads(self) -> bool:
        """Whether the only differences are further heads."""
        keys = {key for keys in self.other_heads.values() for key in keys}
        differences = self.differences
        return 0 < differences.count() == len(keys.intersection(differences.unexpected))

    @property
    def can_ignore_heads(self) -> bool:
        """Whether the checkpoint fits if its further heads are left out."""
        return (
            self.has_only_other_heads
            and len(self.other_heads) <= _MAX_OTHER_HEADS
            and self.other_heads.keys().isdisjoint(NEEDED_HEADS)
        )

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints per pose; 0 for other tasks."""
        return self.head_channels.get("keypoint_offsets", 0) // 2


def identify(
    state: Mapping[str, Tensor],
    architecture: str | None = None,
    task: str | None = None,
    ignored_heads: Sequence[str] = (),
) -> CheckpointInfo:
    """Return the network that ``state`` (upstream keys) matches exactly.

    ``architecture`` and ``task`` restrict the candidates. ``ignored_heads``: names in ``state`` of
    heads that the network does not have. Raises :class:`CheckpointMismatchError`, which lists all
    differences.
    """
    checkpoint_info = examine(state, architecture, task)
    if ignored_heads:
        ignored = _keys_of_heads(checkpoint_info.other_heads, ignored_heads)
        state = {key: weight for key, weight in state.items() if key not in ignored}
        checkpoint_info = examine(state, architecture, task)
        checkpoint_info = replace(checkpoint_info, unused=(*checkpoint_info.unused, *ignored))
    if checkpoint_info.differences.count() == 0:
        return checkpoint_info
    if (other := describe_unsupported(state)) is not None:
        raise CheckpointMismatchError(other)
    if checkpoint_info.has_only_other_heads:
        raise CheckpointMismatchError(_describe_other_heads(checkpoint_info))
    closest = examine(state)
    raise CheckpointMismatchError(_describe(checkpoint_info, closest, architecture, len(state)))


def _keys_of_heads(found: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    """Return the keys of the heads ``names``; raises :class:`CheckpointMismatchError`."""
    for name in names:
        if name in NEEDED_HEADS:
            raise CheckpointMismatchError(
                f"the head {name} cannot be ignored: it predicts {OTHER_HEADS[name]}, without "
                "which those of the supported heads are wrong."
            )
        if name not in found:
            raise CheckpointMismatchError(
                f"there is no head {name!r} that could be ignored; heads beside those of the "
                f"network: {', '.join(map(shown, found)) or 'none'}."
            )
    return [key for name in names for key in found[name]]


def describe_unsupported(state: Mapping[str, Tensor]) -> str | None:
    """Return what network of another kind ``state`` is; None if that is unknown."""
    return describe_saccade(state) or describe_mmdetection(state) or describe_tracker(state)


def _describe_other_heads(info: CheckpointInfo) -> str:
    found = (
        f"the checkpoint is a {info.architecture} for {info.task} with further heads, which are "
        f"not supported: {describe_heads(info.other_heads)}."
    )
    if info.can_ignore_heads:
        names = " ".join(map(shown, info.other_heads))
        return f"{found} Leave them out with --ignore-heads {names}."
    return f"{found} Not all of them can be left out."


def describe_heads(heads: Iterable[str]) -> str:
    """Return the names of heads, with what they predict if it is known."""
    listed = list(heads)
    described = [
        f"{name} ({OTHER_HEADS[name]})" if name in OTHER_HEADS else shown(name)
        for name in listed[:_MAX_OTHER_HEADS]
    ]
    return ", ".join(described) + (", ..." if len(listed) > _MAX_OTHER_HEADS else "")


def examine(
    state: Mapping[str, Tensor], architecture: str | None = None, task: str | None = None
) -> CheckpointInfo:
    """Return the candidate that is closest to ``state``, with the remaining differences.

    Raises :class:`ConfigError` for an unknown architecture or task, and for an architecture that
    does not support the task.
    """
    names = _candidates(architecture, task)
    # Building a network takes up to 0.2 s.
    alike = [name for name in names if find_architecture(name).key_mapping.shares_layers(state)]
    candidates = [_examine_as(state, name, task) for name in alike or names[:1]]
    return max(candidates, key=lambda found: _closeness(found.differences))


def _candidates(architecture: str | None, task: str | None) -> list[str]:
    """Return the names of the architectures that ``architecture`` and ``task`` leave."""
    if task is not None and task not in TASKS:
        raise ConfigError(
            f"there is no task {task[:_SHOWN_CHARACTERS]!r}. Accepted: {', '.join(TASKS)}."
        )
    if architecture is None:
        return [name for name, one in ARCHITECTURES.items() if task in (None, *one.tasks)]
    tasks = find_architecture(architecture).tasks
    if task is not None and task not in tasks:
        raise ConfigError(
            f"the architecture {architecture} does not support the task {task}. "
            f"Accepted: {', '.join(tasks)}."
        )
    return [architecture]


def _closeness(differences: Differences) -> tuple[bool, int, int]:
    return differences.count() == 0, differences.agreeing, -differences.count()


def _examine_as(state: Mapping[str, Tensor], name: str, task_name: str | None) -> CheckpointInfo:
    architecture = find_architecture(name).variant(state)
    heads = architecture.key_mapping.find_heads(state)
    task_name = task_name or closest_task(heads.channels, architecture.tasks)
    task = TASKS[task_name]
    channels = task.head_channels(
        heads.channels,
        classes=heads.channels.get(task.classes_head, 1),
        keypoints=max(1, heads.channels.get("keypoint_offsets", 2) // 2),
    )
    hidden_channels = {
        head: heads.hidden_channels.get(head, architecture.head_hidden_channels)
        for head in channels
    }
    unused = tuple(key for key in state if architecture.key_mapping.is_unused(key))
    needed = {key: weight for key, weight in state.items() if key not in unused}
    expected = expected_shapes(architecture, channels, hidden_channels)
    return CheckpointInfo(
        name,
        architecture,
        task_name,
        channels,
        hidden_channels,
        unused,
        compare(expected, needed),
        architecture.key_mapping.find_other_heads(needed),
    )


def closest_task(found: Mapping[str, int], among: Sequence[str]) -> str:
    """Return the task in ``among`` whose heads are closest to ``found``, channels by head."""

    def closeness(name: str) -> tuple[int, int]:
        task = TASKS[name]
        shared = task.heads.keys() & found.keys()
        expected = task.head_channels(found, found.get(task.classes_head, 0), 0)
        same_channels = sum(expected.get(head) == found[head] for head in shared)
        return len(shared) - len(task.heads.keys() ^ found.keys()), same_channels

    return max(among, key=closeness)


def expected_shapes(
    architecture: Architecture,
    head_channels: Mapping[str, int],
    hidden_channels: Mapping[str, int],
) -> Shapes:
    """Return key and shape of every checkpoint tensor that inference needs."""
    with torch.device("meta"):
        network = architecture.build(head_channels, hidden_channels)
    return {
        architecture.key_mapping.to_checkpoint_key(key): tuple(weight.shape)
        for key, weight in network.state_dict().items()
        if not key.endswith(_COUNTER)
    }


def compare(expected: Shapes, state: Mapping[str, Tensor]) -> Differences:
    """Compare the keys and shapes of ``state`` with ``expected``."""
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
    checkpoint_info: CheckpointInfo, closest: CheckpointInfo, architecture: str | None, tensors: int
) -> str:
    problems = ", ".join(checkpoint_info.differences.lines())
    if architecture is None:
        found = f"the checkpoint matches no known architecture: {problems}."
    else:
        found = f"the checkpoint is not a {architecture} for {checkpoint_info.task}: {problems}."
    if closest.differences.count() == 0:
        return (
            f"{found} It is a {closest.architecture} for {closest.task}: export it with "
            f"--arch {closest.architecture} --task {closest.task}, or without these options."
        )
    return (
        f"{found} None of {', '.join(ARCHITECTURES)} matches; the closest is "
        f"{closest.architecture}, which shares {closest.differences.agreeing} of the "
        f"checkpoint's {tensors} tensors."
    )


def _first_keys(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(shown(key) for key in listed[:_SHOWN]) + (
        ", ..." if len(listed) > _SHOWN else ""
    )


def shown(name: str) -> str:
    """Shorten a name from an untrusted file, and escape it against control sequences."""
    return name[:_SHOWN_CHARACTERS].encode("unicode_escape").decode()
