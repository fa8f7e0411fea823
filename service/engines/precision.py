"""Choice of the artifacts that a backend runs, by precision."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from model_package import ModelManifest, OnnxArtifact
from model_package.manifest import EngineArtifact, Precision

_Artifact = TypeVar("_Artifact", OnnxArtifact, EngineArtifact)

GPU_PRECISIONS: Sequence[Precision] = ("fp16", "fp32")
"""In order of preference. A package has fp16 files only if their detections agree with fp32."""
CPU_PRECISIONS: Sequence[Precision] = ("fp32",)
"""CPUs compute in float32 in any case; an fp16 file would only add conversions."""


def select_artifacts(
    manifest: ModelManifest, candidates: Iterable[_Artifact], precisions: Sequence[Precision]
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
