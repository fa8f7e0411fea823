"""Schema of ``model.json``: what serving needs to know about a model, and its verification."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, model_validator

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# No directory and no leading dot, so that an artifact cannot point outside of its package.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]
Precision = Literal["fp32", "fp16", "int8"]
ResizeMode = Literal["letterbox", "fit_width", "keep_resolution"]
"""Scaling of images to the network input; the rest is padding.

``letterbox``: the longer side of the image to the *width* of the input, so an image with a taller
aspect ratio than the input is cropped at top and bottom. ``fit_width``: the width of the image to
the width of the input; the height is cropped or padded. ``keep_resolution``: no scaling.
"""
CornerRules = Literal["cornernet", "cornernet_lite", "mmdetection"]
"""How the corner pairs of an image become detections.

``cornernet``: the image and its horizontal flip are run, boxes are clipped to the image, and the
sides of boxes include both end pixels in soft-NMS. ``cornernet_lite``: likewise, but the flip is
run only on request. ``mmdetection``: the image alone is run, boxes are clipped at its left and top
edge only, and sides do not include the end pixel.
"""
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]

_Text = Annotated[str, StringConstraints(max_length=4000)]
_Byte = Annotated[int, Field(ge=0, le=255)]


class _StrictModel(BaseModel):
    """Base class: immutable, unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FreeSize(_StrictModel):
    """Dynamic height and width of the graph input, so that images can keep their resolution.

    Upstream rule per axis: ``side | (multiple - 1)``, plus 1 if ``extra_px`` is 1; *Objects as
    Points* adds 1 (multiples of ``multiple``), corner models do not (511, 639, 767...).
    """

    multiple_px: Literal[32, 128]
    extra_px: Literal[0, 1]
    max_side_px: int = Field(gt=0, le=8192)

    @property
    def reduction_px(self) -> int:
        """Pixels by which input sides are below a multiple of ``multiple_px``."""
        return 1 - self.extra_px


class InputSpec(_StrictModel):
    """The only input of the graph: ``images``, uint8 RGB, (N, height, width, 3), N dynamic.

    Pixel scaling, mean, standard deviation and channel order are part of the graph.
    """

    name: Literal["images"] = "images"
    width_px: int = Field(gt=0, le=8192)
    height_px: int = Field(gt=0, le=8192)
    resize: ResizeMode = "letterbox"
    free_size: FreeSize | None = None
    """None: the only input size is ``width_px`` x ``height_px``."""
    padding_rgb: tuple[_Byte, _Byte, _Byte] = (0, 0, 0)
    """Colour around the image."""

    @model_validator(mode="after")
    def _resolution_can_be_kept(self) -> Self:
        if self.resize == "keep_resolution" and self.free_size is None:
            raise ValueError("resize keep_resolution requires free_size")
        return self


class TensorSpec(_StrictModel):
    """One output of the graph; ``shape`` excludes the leading batch axis."""

    name: str
    dtype: Literal["float32", "int32"]
    shape: tuple[int, ...]


class _Decoder(_StrictModel):
    """Common fields of all decoders."""

    output_stride: int = Field(gt=0, le=8192)
    """Input pixels per cell of the output map."""
    top_k: int = Field(gt=0, le=1000)
    """Maximum detections per image."""
    score_threshold: float = Field(ge=0.0, le=1.0)
    """Default score threshold of requests."""


class _CenterDecoder(_Decoder):
    """Common fields of the center-point decoders (*Objects as Points*, section 4).

    Outputs per image, by descending score: ``scores`` float32 (top_k,), ``class_ids`` int32
    (top_k,), ``centers`` float32 (top_k, 2) and ``sizes`` float32 (top_k, 2), x before y, in cells
    of the output map.
    """

    @property
    def flipped_input(self) -> tuple[bool, ...]:
        """Whether the horizontal flip of an image is run too, as an input of its own.

        The supported values, the default first; empty if the graph can average the maps of both.
        """
        return ()

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the graph outputs that this decoder reads."""
        return (
            _floats("scores", self.top_k),
            TensorSpec(name="class_ids", dtype="int32", shape=(self.top_k,)),
            _floats("centers", self.top_k, 2),
            _floats("sizes", self.top_k, 2),
        )


class CenterBoxesDecoder(_CenterDecoder):
    """Boxes from center points."""

    kind: Literal["center_boxes"] = "center_boxes"


_KeypointIndex = Annotated[int, Field(ge=0, lt=1000)]
_ClassId = Annotated[int, Field(ge=0, lt=10_000)]


class KeypointsDecoder(_CenterDecoder):
    """Common fields of the decoders with keypoints (*Objects as Points*, section 4.2).

    In addition to the boxes: ``keypoints`` float32 (top_k, keypoints, 2) in cells, already moved to
    peaks of the keypoint heatmaps; ``keypoint_scores`` float32 (top_k, keypoints), the score of
    that peak, 0 if the keypoint is the one regressed from the center.
    """

    keypoints: tuple[ClassName, ...] = Field(
        min_length=1,
        max_length=1000,
        # Packages written before version 0.2 have `joints`.
        validation_alias=AliasChoices("keypoints", "joints"),
    )
    skeleton: Annotated[
        tuple[tuple[_KeypointIndex, _KeypointIndex], ...], Field(max_length=1000)
    ] = ()
    """Limbs: pairs of keypoint indices."""
    keypoint_class_ids: Annotated[tuple[_ClassId, ...], Field(max_length=10_000)] = ()
    """Classes whose objects have keypoints; empty: all. The outputs have values for all classes,
    but only those of these classes were trained."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the graph outputs that this decoder reads."""
        count = len(self.keypoints)
        return (
            *super().outputs(),
            _floats("keypoints", self.top_k, count, 2),
            _floats("keypoint_scores", self.top_k, count),
        )


class Boxes3DDecoder(_CenterDecoder):
    """Common fields of the decoders with 3D boxes (*Objects as Points*, section 4.1).

    In addition to the 2D boxes: ``depths`` float32 (top_k,) in metres, ``dimensions`` float32
    (top_k, 3) as height, width, length in metres, ``rotations`` float32 (top_k, 8): two bins of
    (negative, positive, sine, cosine), raw.
    """

    projection: tuple[float, ...] = Field(min_length=12, max_length=12)
    """Default camera matrix (3, 4) of the original images, row-major, for requests without one."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the graph outputs that this decoder reads."""
        return (
            *super().outputs(),
            _floats("depths", self.top_k),
            _floats("dimensions", self.top_k, 3),
            _floats("rotations", self.top_k, 8),
        )


class CenterPosesDecoder(KeypointsDecoder):
    """Boxes and keypoints from center points."""

    kind: Literal["center_poses"] = "center_poses"


class CenterBoxes3DDecoder(Boxes3DDecoder):
    """2D and 3D boxes from center points."""

    kind: Literal["center_boxes_3d"] = "center_boxes_3d"


class CenterPosesAndBoxes3DDecoder(Boxes3DDecoder, KeypointsDecoder):
    """Boxes, keypoints and 3D boxes from the same center points."""

    kind: Literal["center_poses_and_boxes_3d"] = "center_poses_and_boxes_3d"


class _CornerDecoder(_Decoder):
    """Common fields of the corner decoders (*CornerNet*, Law and Deng 2018, section 3).

    Outputs per image, by descending score:
    ``scores`` float32 (pairs,), -1 for impossible pairs, ``class_ids`` int32 (pairs,), ``boxes``
    float32 (pairs, 4) as x1, y1, x2, y2 in cells, ``corner_scores`` float32 (pairs, 2), top-left
    and bottom-right. The size of the output map in cells is rounded up.
    """

    pairs: int = Field(gt=0, le=10_000)

    @property
    def flipped_input(self) -> tuple[bool, ...]:
        """Whether the horizontal flip of an image is run too, as an input of its own."""
        return (True,)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the graph outputs that this decoder reads."""
        return (
            _floats("scores", self.pairs),
            TensorSpec(name="class_ids", dtype="int32", shape=(self.pairs,)),
            _floats("boxes", self.pairs, 4),
            _floats("corner_scores", self.pairs, 2),
        )


class CornerPairsDecoder(_CornerDecoder):
    """Boxes from pairs of corners."""

    kind: Literal["corner_pairs"] = "corner_pairs"
    rules: CornerRules = "cornernet"

    @property
    def flipped_input(self) -> tuple[bool, ...]:
        """Whether the horizontal flip of an image is run too, as an input of its own."""
        flips: Mapping[CornerRules, tuple[bool, ...]] = {
            "cornernet": (True,),
            "cornernet_lite": (False, True),
            "mmdetection": (False,),
        }
        return flips[self.rules]


class CornerTripletsDecoder(_CornerDecoder):
    """Boxes from corners and a center inside (*CenterNet: Keypoint Triplets*, Duan et al. 2019).

    In addition to the pairs: ``centers`` float32 (centers, 2) in cells, ``center_scores`` float32
    (centers,), ``center_class_ids`` int32 (centers,).
    """

    kind: Literal["corner_triplets"] = "corner_triplets"
    centers: int = Field(gt=0, le=1000)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the graph outputs that this decoder reads."""
        return (
            *super().outputs(),
            _floats("centers", self.centers, 2),
            _floats("center_scores", self.centers),
            TensorSpec(name="center_class_ids", dtype="int32", shape=(self.centers,)),
        )


class ExtremePointsDecoder(_Decoder):
    """Boxes from extreme points and centers (*ExtremeNet*, Zhou, Zhuo and Kraehenbuehl 2019).

    The graph returns the ``peaks`` best peaks of the four heatmaps of extreme points, in the order
    top, left, bottom, right and by descending score, and the scores of the centers that they can
    have. Outputs per image: ``scores`` float32 (4, peaks); ``class_ids`` int32
    (4, peaks), 0 in class-agnostic models; ``cells`` int32 (4, peaks, 2), x before y;
    ``points`` float32 (4, peaks, 2), cells with the offsets inside them; ``center_scores``
    float32 (peaks, peaks, columns): for each top peak and each bottom peak, the row of the heatmap
    of centers halfway between them, in the class of the top peak; 0 for pairs of other classes or
    in the wrong order. ``center_class_ids`` int32 (peaks, peaks, columns), only in class-agnostic
    models: the class with that score, the highest of all classes.
    """

    kind: Literal["extreme_points"] = "extreme_points"
    peaks: int = Field(gt=0, le=100)
    columns: int = Field(gt=0, le=8192)
    """Length of the rows of centers: the longest side of the largest output map, in cells."""
    agnostic: bool
    """The heatmaps of extreme points have no classes; that of the centers has."""

    @property
    def flipped_input(self) -> tuple[bool, ...]:
        """Whether the horizontal flip of an image is run too, as an input of its own."""
        return (False, True)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the graph outputs that this decoder reads."""
        of_centers = (self.peaks, self.peaks, self.columns)
        class_ids = TensorSpec(name="center_class_ids", dtype="int32", shape=of_centers)
        return (
            _floats("scores", 4, self.peaks),
            TensorSpec(name="class_ids", dtype="int32", shape=(4, self.peaks)),
            TensorSpec(name="cells", dtype="int32", shape=(4, self.peaks, 2)),
            _floats("points", 4, self.peaks, 2),
            _floats("center_scores", *of_centers),
            *((class_ids,) if self.agnostic else ()),
        )


def _floats(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


Decoder = Annotated[
    CenterBoxesDecoder
    | CenterPosesDecoder
    | CenterBoxes3DDecoder
    | CenterPosesAndBoxes3DDecoder
    | CornerPairsDecoder
    | CornerTripletsDecoder
    | ExtremePointsDecoder,
    Field(discriminator="kind"),
]
"""Decoding of the outputs; its ``kind`` determines the task."""


class Verification(_StrictModel):
    """Result of the comparison of an artifact with its reference."""

    reference: _Text
    inputs: int = Field(gt=0)
    tolerances: dict[_Text, float]
    worst_errors: dict[_Text, float]
    matched_fraction: float = Field(ge=0.0, le=1.0)
    detections: Annotated[int, Field(ge=0)] | None = None
    """Detections of the reference in all runs; None in packages written before version 0.2."""
    matched: Annotated[int, Field(ge=0)] | None = None
    """Of these, those that the artifact finds within the tolerances."""
    exceptions: dict[_Text, int] = {}
    """The others, and keypoints, by the reason for which they were accepted."""
    left_out: tuple[_Text, ...] = ()
    """Images that were not compared, because the reference itself depends on rounding in them."""


class _ArtifactFile(_StrictModel):
    file: FileName
    precision: Precision
    """``fp16``: the network computes in fp16, ``int8``: convolutions multiply int8 values; pre- and
    post-processing stay float32."""
    flip: bool = False
    """The graph averages its maps over the image and its horizontal flip."""
    sha256: Sha256
    size_bytes: int = Field(gt=0)


class AveragePrecision(_StrictModel):
    """AP of both files on the same labelled images.

    ``boxes``: COCO's AP of 2D boxes; ``poses``: COCO's AP by object keypoint similarity;
    ``boxes_3d``: KITTI's AP in 3D for moderate objects at the official IoU, 0.7 for cars, else 0.5;
    ``boxes_3d_low_iou``: at 0.5 for cars, else 0.25. The key ``all`` is the mean over the classes,
    the others are class names.
    """

    metric: Literal["boxes", "poses", "boxes_3d", "boxes_3d_low_iou"]
    images: int = Field(gt=0)
    objects: dict[_Text, Annotated[int, Field(gt=0)]] = {}
    """Labelled objects by class; empty in files made before they were counted."""
    fp32: dict[_Text, float]
    int8: dict[_Text, float]


class Quantization(_StrictModel):
    """How an int8 file was made from the fp32 file, and its average precision.

    Weights are int8 with one scale per output channel, activations int8 with one scale; all zero
    points are 0. A product with a constant before the rounding can divide the channels by factors.
    """

    tool: _Text
    calibration_images: int = Field(gt=0)
    quantized_layers: int = Field(gt=0)
    float_layers: tuple[_Text, ...]
    """Names of the convolutions that stay float32, because int8 changes the maps most there."""
    average_precisions: tuple[AveragePrecision, ...] = ()
    """By metric of the task; empty without labelled images."""


class OnnxArtifact(_ArtifactFile):
    """A portable ONNX file for any ONNX Runtime."""

    backend: Literal["onnxruntime"] = "onnxruntime"
    agreement: Verification | None = None
    """Comparison of the detections with those of the fp32 file; None for fp32 files, whose
    comparison with the network is the package's ``verification``."""
    quantization: Quantization | None = None
    """Of int8 files."""

    @model_validator(mode="after")
    def _is_verified(self) -> Self:
        if (self.precision != "fp32") != (self.agreement is not None):
            raise ValueError("fp16 and int8 files, and only those, must have an agreement")
        if (self.precision == "int8") != (self.quantization is not None):
            raise ValueError("int8 files, and only those, must have a quantization")
        return self


class EngineRequirements(_StrictModel):
    """Requirements on a machine that runs a prebuilt engine."""

    version: _Text
    """Exact version of the engine's library."""
    compute_capability: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]$")]
    gpu: _Text | None
    """GPU model that it was tuned on; None: any GPU of the compute capability."""


class BatchProfile(_StrictModel):
    """Batch sizes of an engine's optimization profile: minimum, optimum and maximum."""

    min: int = Field(1, ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1, le=1024)

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"batch sizes must ascend: min {self.min}, opt {self.opt}, max {self.max}"
            )
        return self


class EngineArtifact(_ArtifactFile):
    """An engine built from one of the package's ONNX files for one kind of machine."""

    backend: Literal["tensorrt", "tensorrt_rtx"]
    built_from: Sha256
    """Digest of the ONNX file."""
    requires: EngineRequirements
    batch: BatchProfile
    tf32: bool
    """Float32 matrix products may use TensorFloat-32."""


class References(_StrictModel):
    """Images and the outputs of the fp32 ONNX file for them, to check engines with.

    A NumPy archive: ``images``, uint8 RGB (n, height, width, 3), and every output by its name.
    """

    file: FileName
    sha256: Sha256
    size_bytes: int = Field(gt=0)
    engine: str
    """Runtime that made the outputs."""


Artifact = Annotated[OnnxArtifact | EngineArtifact, Field(discriminator="backend")]
"""One file that a backend can run."""


class Provenance(_StrictModel):
    """Source of the weights and tools that made the package."""

    architecture: _Text
    checkpoint_sha256: Sha256
    source: _Text
    license: _Text
    normalization: _Text
    tools: dict[_Text, _Text]
    """Version of each tool of the export, by name."""


class ModelManifest(_StrictModel):
    """The content of ``model.json``."""

    format_version: Literal[1] = 1
    name: ModelName
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
    description: _Text
    # Several times the largest vocabularies of detection datasets (LVIS has 1,203).
    classes: tuple[ClassName, ...] = Field(min_length=1, max_length=10_000)
    input: InputSpec
    decoder: Decoder
    artifacts: tuple[Artifact, ...] = Field(min_length=1)
    provenance: Provenance
    verification: Verification
    """Comparison of the fp32 ONNX files with their network."""
    references: References | None = None
    """None in packages of earlier versions."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        if repeated := _repeated(self.classes):
            raise ValueError(f"class names must be unique, these are repeated: {repeated}")
        if repeated := _repeated(artifact.file for artifact in self.artifacts):
            raise ValueError(f"two artifacts have the same file: {repeated}")
        if isinstance(self.decoder, KeypointsDecoder):
            unknown = [i for i in self.decoder.keypoint_class_ids if i >= len(self.classes)]
            if unknown:
                raise ValueError(
                    f"keypoint_class_ids: {unknown[:3]} are not ids of the {len(self.classes)} "
                    "classes"
                )
        kinds = [_kind(artifact) for artifact in self.artifacts]
        if len(set(kinds)) != len(kinds):
            raise ValueError("two artifacts have the same backend, precision, flip and machine")
        onnx_files = [a for a in self.artifacts if isinstance(a, OnnxArtifact)]
        digests = {artifact.sha256 for artifact in onnx_files}
        for artifact in self.artifacts:
            if isinstance(artifact, EngineArtifact) and artifact.built_from not in digests:
                raise ValueError(
                    f"{artifact.file} was built from an ONNX file that the package does not have"
                )
        if not any(artifact.precision == "fp32" for artifact in onnx_files):
            raise ValueError("the package has no fp32 ONNX artifact")
        return self


def _repeated(names: Iterable[str]) -> list[str]:
    """Return names that occur several times, three at most."""
    return [name for name, count in Counter(names).items() if count > 1][:3]


def _kind(artifact: Artifact) -> tuple[object, ...]:
    requires = artifact.requires if isinstance(artifact, EngineArtifact) else None
    return artifact.backend, artifact.precision, artifact.flip, requires
