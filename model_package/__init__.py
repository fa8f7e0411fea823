"""The contract between export and serving: a directory with ``model.json`` and its artifacts.

Depends only on pydantic and the standard library, so that export and serving can both import it.
"""

import os

from model_package.directory import (
    MANIFEST_FILE,
    ModelPackage,
    PackageDraft,
    draft_package,
    load_package,
)
from model_package.errors import (
    PackageBusyError,
    PackageError,
    PackageExistsError,
    PackageInvalidError,
    PackageNotFoundError,
)
from model_package.manifest import (
    Artifact,
    AveragePrecision,
    BatchProfile,
    Boxes3DDecoder,
    CenterBoxes3DDecoder,
    CenterBoxesDecoder,
    CenterPosesAndBoxes3DDecoder,
    CenterPosesDecoder,
    CornerPairsDecoder,
    CornerRules,
    CornerTripletsDecoder,
    Decoder,
    EngineArtifact,
    EngineRequirements,
    ExtremePointsDecoder,
    FreeSize,
    InputSpec,
    KeypointsDecoder,
    ModelManifest,
    OnnxArtifact,
    Precision,
    Provenance,
    Quantization,
    References,
    ResizeMode,
    TensorSpec,
    Verification,
)

# ONNX Runtime reads this when it is loaded; its official wheels send telemetry otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "MANIFEST_FILE",
    "Artifact",
    "AveragePrecision",
    "BatchProfile",
    "Boxes3DDecoder",
    "CenterBoxes3DDecoder",
    "CenterBoxesDecoder",
    "CenterPosesAndBoxes3DDecoder",
    "CenterPosesDecoder",
    "CornerPairsDecoder",
    "CornerRules",
    "CornerTripletsDecoder",
    "Decoder",
    "EngineArtifact",
    "EngineRequirements",
    "ExtremePointsDecoder",
    "FreeSize",
    "InputSpec",
    "KeypointsDecoder",
    "ModelManifest",
    "ModelPackage",
    "OnnxArtifact",
    "PackageBusyError",
    "PackageDraft",
    "PackageError",
    "PackageExistsError",
    "PackageInvalidError",
    "PackageNotFoundError",
    "Precision",
    "Provenance",
    "Quantization",
    "References",
    "ResizeMode",
    "TensorSpec",
    "Verification",
    "draft_package",
    "load_package",
]
