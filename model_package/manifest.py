"""``model.json``: every fact about a model that serving it needs, and how it was proved."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A bare name: no folder, no leading dot, so that an artifact cannot point outside its package.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Facts):
    """The one input of the graph: ``images``, uint8 RGB, (N, height, width, 3), N free.

    Scaling, mean, deviation and channel order are inside the graph.
    """

    name: Literal["images"] = "images"
    width_px: int = Field(gt=0, le=8192)
    height_px: int = Field(gt=0, le=8192)
    resize: Literal["affine_letterbox"] = "affine_letterbox"
    """How a picture becomes the input: scaled so that its longer side fits the input's width,
    centered, black outside (the authors' fixed-resolution test)."""


class TensorSpec(_Facts):
    """One output of the graph; ``shape`` leaves out the leading batch axis."""

    name: str
    dtype: Literal["float32", "int32"]
    shape: tuple[int, ...]


class CenterBoxesDecoder(_Facts):
    """Boxes from center points (*Objects as Points*, section 4).

    Outputs per image, best score first: ``scores`` float32 (top_k,), ``class_ids`` int32 (top_k,),
    ``centers`` float32 (top_k, 2) and ``sizes`` float32 (top_k, 2), x before y, in cells of the
    output map (``output_stride`` input pixels each).
    """

    kind: Literal["center_boxes"] = "center_boxes"
    output_stride: int = Field(gt=0)
    top_k: int = Field(gt=0, le=1000)
    score_threshold: float = Field(ge=0.0, le=1.0)
    """Detections below this score are left out unless a request says otherwise."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs that this decoder reads."""
        return (
            TensorSpec(name="scores", dtype="float32", shape=(self.top_k,)),
            TensorSpec(name="class_ids", dtype="int32", shape=(self.top_k,)),
            TensorSpec(name="centers", dtype="float32", shape=(self.top_k, 2)),
            TensorSpec(name="sizes", dtype="float32", shape=(self.top_k, 2)),
        )


class Artifact(_Facts):
    """One file that a backend can run."""

    file: FileName
    backend: Literal["onnxruntime"]
    precision: Literal["fp32"]
    sha256: Sha256
    size_bytes: int = Field(gt=0)


class Provenance(_Facts):
    """Where the weights came from and what made the package."""

    architecture: str
    checkpoint_sha256: Sha256
    source: str
    license: str
    normalization: str
    tools: dict[str, str]
    """Name and version of each program that had a part in the export."""


class Verification(_Facts):
    """The comparison of the artifact with the network it was made from."""

    reference: str
    inputs: int = Field(gt=0)
    tolerances: dict[str, float]
    worst_errors: dict[str, float]
    matched_fraction: float = Field(ge=0.0, le=1.0)


class ModelManifest(_Facts):
    """The whole of ``model.json``."""

    format_version: Literal[1] = 1
    name: ModelName
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
    description: str
    classes: tuple[ClassName, ...] = Field(min_length=1, max_length=10_000)
    input: InputSpec
    decoder: CenterBoxesDecoder
    artifacts: tuple[Artifact, ...] = Field(min_length=1)
    provenance: Provenance
    verification: Verification

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(f"class names must be unique, these are repeated: {repeated}")
        files = [artifact.file for artifact in self.artifacts]
        if len(set(files)) != len(files):
            raise ValueError(f"two artifacts share a file: {files}")
        return self
