"""Precisions, and the artifacts that a backend runs in each of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from model_package import ModelManifest, OnnxArtifact
from model_package.manifest import EngineArtifact
from service.engines.errors import EngineUnavailableError

ComputePrecision = Literal["fp32", "fp16", "bf16", "int8"]
"""Precision of the layers of the network.

``fp16`` and ``int8`` run files of their own, which the package has only if their detections agree
with fp32; ``bf16`` runs the fp32 files.
"""

_Artifact = TypeVar("_Artifact", OnnxArtifact, EngineArtifact)


def select_artifacts(
    manifest: ModelManifest, candidates: Iterable[_Artifact], precisions: Sequence[ComputePrecision]
) -> Mapping[bool, _Artifact]:
    """Return the candidates in the first precision that is complete, by flip.

    A precision is complete if it has a candidate for every value of ``flip`` in the manifest. The
    first of several candidates with equal precision and flip is used. Returns an empty mapping if
    no precision is complete.
    """
    flips = {artifact.flip for artifact in manifest.artifacts}
    candidates = list(candidates)
    for precision in precisions:
        selected = {
            artifact.flip: artifact
            for artifact in reversed(candidates)
            if artifact.precision == precision
        }
        if set(selected) == flips:
            return selected
    return {}


def select_onnx_files(
    manifest: ModelManifest, precisions: Sequence[ComputePrecision]
) -> Mapping[bool, OnnxArtifact]:
    """Return the ONNX files in the first complete precision, by flip.

    Raises :class:`EngineUnavailableError` if no precision is complete.
    """
    files = [artifact for artifact in manifest.artifacts if isinstance(artifact, OnnxArtifact)]
    artifacts = select_artifacts(manifest, files, precisions)
    if not artifacts:
        names = ", ".join(file.file for file in files)
        raise EngineUnavailableError(
            f"the package has no int8 file, only {names}; centernet-export quantize adds one."
            if list(precisions) == ["int8"]
            else f"the package has no ONNX files in {' or '.join(precisions)} for every variant of "
            f"the graph, only {names}. Export it again."
        )
    return artifacts
