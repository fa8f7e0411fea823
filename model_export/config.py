"""What to export and what to call it."""

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import ValidationError

from model_export.architectures import ARCHITECTURES, OUTPUT_STRIDE
from model_export.class_names import COCO_KEYPOINTS, COCO_SKELETON
from model_export.errors import CheckpointMismatchError, ConfigError
from model_export.graph.boxes_3d import KITTI_PROJECTION
from model_export.graph.corner_pairs import PAIRS
from model_export.graph.normalization import NORMALIZATIONS
from model_export.tasks import TASKS, Task
from model_package import (
    Artifact,
    Decoder,
    FreeSize,
    InputSpec,
    ModelManifest,
    OnnxArtifact,
    Precision,
    Provenance,
    Verification,
)

Resize = Literal["letterbox", "fit_width", "keep_resolution"]


@dataclass(frozen=True)
class ExportConfig:
    """The facts that a checkpoint does not hold; None is what is usual for what it holds."""

    name: str
    version: str
    architecture: str | None = None
    """A key of :data:`model_export.architectures.ARCHITECTURES`."""
    task: str | None = None
    """A key of :data:`model_export.tasks.TASKS`."""
    classes: tuple[str, ...] | None = None
    """Names in the order that the network was trained with."""
    keypoints: tuple[str, ...] | None = None
    """Names in the order that the network was trained with; poses only."""
    projection: tuple[float, ...] = KITTI_PROJECTION
    """Camera matrix (3, 4), row by row, for images that come without one; 3D boxes only."""
    width_px: int | None = None
    height_px: int | None = None
    resize: Resize | None = None
    max_side_px: int | None = None
    """Longest side of inputs of other sizes; None: there are none, unless they are usual."""
    flip: bool = False
    """Whether to export a second graph that averages over the image and its flipped image."""
    precision: Precision = "fp32"
    """``fp16``: a file in half precision stands beside each one in float32."""
    normalization: str | None = None
    """A key of :data:`model_export.graph.normalization.NORMALIZATIONS`."""
    top_k: int = 100
    score_threshold: float = 0.3
    source: str = "unknown"
    """Where the checkpoint came from."""
    license: str = "unknown"
    description: str = ""


@dataclass(frozen=True)
class Plan:
    """A configuration whose every fact is settled."""

    config: ExportConfig
    architecture: str
    task: Task
    classes: tuple[str, ...]
    keypoints: tuple[str, ...]
    input: InputSpec
    normalization: str

    def decoder(self) -> Decoder:
        """How the graph's outputs are to be read."""
        facts = {
            "output_stride": OUTPUT_STRIDE,
            "top_k": self.config.top_k,
            "score_threshold": self.config.score_threshold,
            "keypoints": self.keypoints,
            "skeleton": COCO_SKELETON if self.keypoints == COCO_KEYPOINTS else (),
            "projection": self.config.projection,
            "pairs": PAIRS,
            "centers": self.task.keypoint_peaks,
        }
        kind = self.task.decoder
        return kind.model_validate(
            {name: facts[name] for name in kind.model_fields if name in facts}
        )

    def output_names(self) -> list[str]:
        """The graph's outputs, in their order."""
        return [tensor.name for tensor in self.decoder().outputs()]

    def manifest(
        self,
        artifacts: tuple[Artifact, ...],
        checkpoint_sha256: str,
        tools: dict[str, str],
        verification: Verification,
    ) -> ModelManifest:
        """Put the configuration and what came out of it together."""
        return ModelManifest(
            name=self.config.name,
            version=self.config.version,
            description=self.config.description,
            classes=self.classes,
            input=self.input,
            decoder=self.decoder(),
            artifacts=artifacts,
            provenance=Provenance(
                architecture=self.architecture,
                checkpoint_sha256=checkpoint_sha256,
                source=self.config.source,
                license=self.config.license,
                normalization=self.normalization,
                tools=tools,
            ),
            verification=verification,
        )


def check_config(config: ExportConfig) -> None:
    """Raise :class:`ConfigError` for what can be known to fail before the checkpoint is read."""
    for what, name, known in (
        ("architecture", config.architecture, ARCHITECTURES),
        ("task", config.task, TASKS),
        ("normalization", config.normalization, NORMALIZATIONS),
        ("precision", config.precision, get_args(Precision)),
    ):
        if name is not None and name not in known:
            raise ConfigError(f"there is no {what} {name!r}. Accepted: {', '.join(known)}.")
    task = config.task
    multiple: Literal[32, 128] = 32
    if config.architecture is not None:
        architecture = ARCHITECTURES[config.architecture]
        multiple = architecture.input_multiple
        task = config.task or architecture.tasks[0]
        if task not in architecture.tasks:
            raise ConfigError(
                f"a {config.architecture} is not for {task}. "
                f"Accepted: {', '.join(architecture.tasks)}."
            )
    if task is None:  # only the checkpoint says what it is for, and which sizes suit it
        return
    classes = config.classes if config.classes is not None else TASKS[task].classes
    keypoints = config.keypoints or TASKS[task].keypoints
    make_plan(config, "unknown", multiple, task, len(classes), len(keypoints))


def make_plan(
    config: ExportConfig,
    architecture: str,
    multiple_px: Literal[32, 128],
    task_name: str,
    num_classes: int,
    num_keypoints: int,
) -> Plan:
    """Settle what ``config`` leaves open, for a network that was found to be so.

    ``multiple_px`` is what sides of the input must be multiples of. Raises :class:`ConfigError`,
    and :class:`CheckpointMismatchError` where the names given are not as many as it has.
    """
    task = TASKS[task_name]
    _check_size(config, task, multiple_px)
    _check_names("classes", config.classes, num_classes)
    _check_names("keypoints", config.keypoints, num_keypoints)
    if config.flip and not task.can_flip:
        raise ConfigError(f"a network for {task_name} cannot be averaged over flipped images.")
    try:
        plan = Plan(
            config=config,
            architecture=architecture,
            task=task,
            classes=_names("classes", config.classes, task.classes, num_classes),
            keypoints=_names("keypoints", config.keypoints, task.keypoints, num_keypoints),
            input=_input(config, task, multiple_px),
            normalization=config.normalization or task.normalization,
        )
        plan.manifest(*_made_up_results())
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        problems = "; ".join(_explain(item["loc"], item["msg"], item["input"]) for item in details)
        raise ConfigError(f"the package cannot be described like this: {problems}.") from error
    return plan


def _input(config: ExportConfig, task: Task, multiple_px: Literal[32, 128]) -> InputSpec:
    free_size = None
    max_side_px = _max_side_px(config, task)
    if max_side_px is not None:
        free_size = FreeSize(
            multiple_px=multiple_px, extra_px=task.extra_px, max_side_px=max_side_px
        )
    width_px, height_px = _size(config, task)
    return InputSpec(
        width_px=width_px,
        height_px=height_px,
        resize=config.resize or task.resize,
        free_size=free_size,
    )


def _max_side_px(config: ExportConfig, task: Task) -> int | None:
    return task.max_side_px if config.max_side_px is None else config.max_side_px


def _size(config: ExportConfig, task: Task) -> tuple[int, int]:
    width_px, height_px = task.size_px
    return (
        width_px if config.width_px is None else config.width_px,
        height_px if config.height_px is None else config.height_px,
    )


def _check_size(config: ExportConfig, task: Task, multiple_px: int) -> None:
    width_px, height_px = _size(config, task)
    size = f"{width_px}x{height_px}"
    less_px = 1 - task.extra_px
    if (width_px + less_px) % multiple_px or (height_px + less_px) % multiple_px:
        raise ConfigError(
            f"the input size {size} does not suit the network: width and height must be "
            f"{'one less than ' * less_px}multiples of {multiple_px}, for instance "
            f"{_nearest(width_px, multiple_px) - less_px}x"
            f"{_nearest(height_px, multiple_px) - less_px}."
        )
    max_side_px = _max_side_px(config, task)
    if max_side_px is not None and max_side_px < max(width_px, height_px):
        raise ConfigError(
            f"inputs of up to {max_side_px} px a side are to be free, but the usual one "
            f"has {size}. Allow longer sides, or choose a smaller size."
        )
    cells = width_px * height_px // OUTPUT_STRIDE**2
    if config.top_k > cells > 0:
        raise ConfigError(
            f"top-K is {config.top_k}, but an input of {size} has only {cells} cells in its "
            "output map. Ask for fewer detections or a larger input."
        )


def _check_names(what: str, names: tuple[str, ...] | None, count: int) -> None:
    if names is not None and names and len(names) != count:
        raise CheckpointMismatchError(
            f"the checkpoint detects {count} {what}, but {len(names)} names of {what} were given. "
            "Name those that it was trained on, in their order."
        )


def _names(
    what: str, given: tuple[str, ...] | None, usual: tuple[str, ...], count: int
) -> tuple[str, ...]:
    if given is not None:
        return given
    if len(usual) != count:
        raise ConfigError(
            f"the checkpoint detects {count} {what}, whose names nobody can guess. "
            f"Give them with --{what}."
        )
    return usual


def _explain(place: tuple[int | str, ...], problem: str, received: object) -> str:
    if not place:  # about several facts together: the problem names them
        return problem
    return f"{'.'.join(str(part) for part in place)}: {problem}, not {str(received)[:80]!r}"


def _nearest(size_px: int, multiple_px: int) -> int:
    return max(multiple_px, round(size_px / multiple_px) * multiple_px)


def _made_up_results() -> tuple[tuple[Artifact, ...], str, dict[str, str], Verification]:
    """Results of an export that has not run, to have the manifest check everything else."""
    digest = "0" * 64
    artifact = OnnxArtifact(file="model.onnx", precision="fp32", sha256=digest, size_bytes=1)
    verification = Verification(
        reference="none", inputs=1, tolerances={}, worst_errors={}, matched_fraction=0.0
    )
    return (artifact,), digest, {}, verification
