"""``model.json``: every fact about a model that serving it needs, and how it was proved."""

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, model_validator

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A bare name: no folder, no leading dot, so that an artifact cannot point outside its package.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]
Precision = Literal["fp32", "fp16"]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FreeSize(_Facts):
    """The graph takes inputs of other sizes than its own, so that images keep their resolution.

    The upstream rule per axis: ``side | (multiple - 1)``, plus 1 where ``extra_px`` is 1; *Objects
    as Points* adds the 1 (multiples of ``multiple``), the corner systems do not (511, 639, 767...).
    """

    multiple_px: Literal[32, 128]
    extra_px: Literal[0, 1]
    max_side_px: int = Field(gt=0, le=8192)


class InputSpec(_Facts):
    """The one input of the graph: ``images``, uint8 RGB, (N, height, width, 3), N free.

    Scaling, mean, deviation and channel order are inside the graph.
    """

    name: Literal["images"] = "images"
    width_px: int = Field(gt=0, le=8192)
    height_px: int = Field(gt=0, le=8192)
    resize: Literal["letterbox", "fit_width", "keep_resolution"] = "letterbox"
    """How an image becomes the input, black outside: scaled so that its longer side
    (``letterbox``) or its width (``fit_width``) fits the input's width, or not at all."""
    free_size: FreeSize | None = None
    """None: only ``width_px`` x ``height_px``."""

    @model_validator(mode="after")
    def _resolution_can_be_kept(self) -> Self:
        if self.resize == "keep_resolution" and self.free_size is None:
            raise ValueError("resize is keep_resolution, so free_size must say which sizes fit")
        return self


class TensorSpec(_Facts):
    """One output of the graph; ``shape`` leaves out the leading batch axis."""

    name: str
    dtype: Literal["float32", "int32"]
    shape: tuple[int, ...]


class _CenterDecoder(_Facts):
    """What every center-point decoder shares (*Objects as Points*, section 4).

    Outputs per image, best score first: ``scores`` float32 (top_k,), ``class_ids`` int32 (top_k,),
    ``centers`` float32 (top_k, 2) and ``sizes`` float32 (top_k, 2), x before y, in cells of the
    output map (``output_stride`` input pixels each).
    """

    output_stride: int = Field(gt=0)
    top_k: int = Field(gt=0, le=1000)
    score_threshold: float = Field(ge=0.0, le=1.0)
    """Detections below this score are left out unless a request says otherwise."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs that this decoder reads."""
        return (
            _floats("scores", self.top_k),
            TensorSpec(name="class_ids", dtype="int32", shape=(self.top_k,)),
            _floats("centers", self.top_k, 2),
            _floats("sizes", self.top_k, 2),
        )


class CenterBoxesDecoder(_CenterDecoder):
    """Boxes from center points."""

    kind: Literal["center_boxes"] = "center_boxes"


class CenterPosesDecoder(_CenterDecoder):
    """Boxes and keypoints from center points (*Objects as Points*, section 4.2).

    Besides the boxes: ``keypoints`` float32 (top_k, keypoints, 2), already joined with the peaks of
    the keypoint heatmaps, in cells; ``keypoint_scores`` float32 (top_k, keypoints), the score of the
    peak that was taken, 0 where the keypoint is the one regressed from the center.
    """

    kind: Literal["center_poses"] = "center_poses"
    keypoints: tuple[ClassName, ...] = Field(
        min_length=1,
        max_length=1000,
        # Packages that were written before version 0.2 say `joints`.
        validation_alias=AliasChoices("keypoints", "joints"),
    )
    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of keypoint indices to draw a line between."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs that this decoder reads."""
        count = len(self.keypoints)
        return (
            *super().outputs(),
            _floats("keypoints", self.top_k, count, 2),
            _floats("keypoint_scores", self.top_k, count),
        )


class CenterBoxes3DDecoder(_CenterDecoder):
    """3D boxes from center points (*Objects as Points*, section 4.1).

    Besides the 2D boxes: ``depths`` float32 (top_k,) in metres, ``dimensions`` float32 (top_k, 3)
    as height, width, length in metres, ``rotations`` float32 (top_k, 8): two bins of
    (negative, positive, sine, cosine), raw.
    """

    kind: Literal["center_boxes_3d"] = "center_boxes_3d"
    projection: tuple[float, ...] = Field(min_length=12, max_length=12)
    """Camera matrix (3, 4), row by row, of the original images when a request has none."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs that this decoder reads."""
        return (
            *super().outputs(),
            _floats("depths", self.top_k),
            _floats("dimensions", self.top_k, 3),
            _floats("rotations", self.top_k, 8),
        )


class _CornerDecoder(_Facts):
    """What both corner systems share (*CornerNet*, Law and Deng 2018, section 3).

    Every image is run with its flipped image. Outputs per image, best score first: ``scores``
    float32 (pairs,), -1 where a pair is impossible, ``class_ids`` int32 (pairs,), ``boxes``
    float32 (pairs, 4) as x1, y1, x2, y2 in cells, ``corner_scores`` float32 (pairs, 2), top-left
    and bottom-right.
    """

    pairs: int = Field(gt=0, le=10_000)
    top_k: int = Field(gt=0, le=1000)
    """Detections per image at most, after suppression."""
    score_threshold: float = Field(ge=0.0, le=1.0)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs that this decoder reads."""
        return (
            _floats("scores", self.pairs),
            TensorSpec(name="class_ids", dtype="int32", shape=(self.pairs,)),
            _floats("boxes", self.pairs, 4),
            _floats("corner_scores", self.pairs, 2),
        )


class CornerPairsDecoder(_CornerDecoder):
    """Boxes from pairs of corners."""

    kind: Literal["corner_pairs"] = "corner_pairs"


class CornerTripletsDecoder(_CornerDecoder):
    """Boxes from corners and a center inside (*CenterNet: Keypoint Triplets*, Duan et al. 2019).

    Besides the pairs: ``centers`` float32 (centers, 2) in cells, ``center_scores`` float32
    (centers,), ``center_class_ids`` int32 (centers,).
    """

    kind: Literal["corner_triplets"] = "corner_triplets"
    centers: int = Field(gt=0, le=1000)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs that this decoder reads."""
        return (
            *super().outputs(),
            _floats("centers", self.centers, 2),
            _floats("center_scores", self.centers),
            TensorSpec(name="center_class_ids", dtype="int32", shape=(self.centers,)),
        )


def _floats(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


Decoder = Annotated[
    CenterBoxesDecoder
    | CenterPosesDecoder
    | CenterBoxes3DDecoder
    | CornerPairsDecoder
    | CornerTripletsDecoder,
    Field(discriminator="kind"),
]
"""How the outputs are read; decides the task."""


class Verification(_Facts):
    """The comparison of an artifact with what it must agree with."""

    reference: str
    inputs: int = Field(gt=0)
    tolerances: dict[str, float]
    worst_errors: dict[str, float]
    matched_fraction: float = Field(ge=0.0, le=1.0)


class _File(_Facts):
    file: FileName
    precision: Precision
    """``fp16``: the network's body is in half precision, everything before and after it is not."""
    flip: bool = False
    """Whether the graph averages its maps over the image and its flipped image."""
    sha256: Sha256
    size_bytes: int = Field(gt=0)


class OnnxArtifact(_File):
    """A portable ONNX file, which every ONNX Runtime can run."""

    backend: Literal["onnxruntime"] = "onnxruntime"
    agreement: Verification | None = None
    """How the detections of an fp16 file agree with those of the fp32 file; None for fp32, whose
    comparison with the network is the package's verification."""

    @model_validator(mode="after")
    def _half_precision_is_verified(self) -> Self:
        if (self.precision == "fp16") != (self.agreement is not None):
            raise ValueError("fp16 files, and only those, state their agreement with fp32")
        return self


class EngineRequirements(_Facts):
    """What a machine must be to run an engine that was built ahead of time."""

    version: str
    """Of the library, exactly."""
    compute_capability: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]$")]
    gpu: str | None
    """Model of the GPU that it was tuned on; None: any of the compute capability."""


class BatchProfile(_Facts):
    """Batch sizes of an engine: the smallest, the one it is tuned for, and the largest."""

    min: int = Field(1, ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1, le=1024)

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"batch sizes must ascend: smallest {self.min}, best {self.opt}, largest {self.max}"
            )
        return self


class EngineArtifact(_File):
    """An engine built from one of the package's ONNX files for one kind of machine: a cache."""

    backend: Literal["tensorrt", "tensorrt_rtx"]
    built_from: Sha256
    """Digest of the ONNX file."""
    requires: EngineRequirements
    batch: BatchProfile
    tf32: bool
    """Whether float32 products may be rounded to TensorFloat-32."""


Artifact = Annotated[OnnxArtifact | EngineArtifact, Field(discriminator="backend")]
"""One file that a backend can run."""


class Provenance(_Facts):
    """Where the weights came from and what made the package."""

    architecture: str
    checkpoint_sha256: Sha256
    source: str
    license: str
    normalization: str
    tools: dict[str, str]
    """Name and version of each program that had a part in the export."""


class ModelManifest(_Facts):
    """The whole of ``model.json``."""

    format_version: Literal[1] = 1
    name: ModelName
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
    description: str
    classes: tuple[ClassName, ...] = Field(min_length=1, max_length=10_000)
    input: InputSpec
    decoder: Decoder
    artifacts: tuple[Artifact, ...] = Field(min_length=1)
    provenance: Provenance
    verification: Verification
    """How the fp32 ONNX files agree with the network that they were made from."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(f"class names must be unique, these are repeated: {repeated}")
        files = [artifact.file for artifact in self.artifacts]
        if len(set(files)) != len(files):
            raise ValueError(f"two artifacts share a file: {files}")
        kinds = [_kind(artifact) for artifact in self.artifacts]
        if len(set(kinds)) != len(kinds):
            raise ValueError("two artifacts have the same backend, precision, flip and machine")
        onnx_files = [a for a in self.artifacts if isinstance(a, OnnxArtifact)]
        digests = {artifact.sha256 for artifact in onnx_files}
        for artifact in self.artifacts:
            if isinstance(artifact, EngineArtifact) and artifact.built_from not in digests:
                raise ValueError(f"{artifact.file} was built from a file that is not here")
        if not any(artifact.precision == "fp32" for artifact in onnx_files):
            raise ValueError("there is no ONNX artifact in fp32")
        return self


def _kind(artifact: Artifact) -> tuple[object, ...]:
    requires = artifact.requires if isinstance(artifact, EngineArtifact) else None
    return artifact.backend, artifact.precision, artifact.flip, requires
