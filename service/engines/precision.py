"""Which of a package's files a backend runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from model_package import ModelManifest, OnnxArtifact
from model_package.manifest import EngineArtifact, Precision

_Artifact = TypeVar("_Artifact", OnnxArtifact, EngineArtifact)

ON_GPU: Sequence[Precision] = ("fp16", "fp32")
"""Half precision first: a package has it only if its detections were found to agree."""
ON_CPU: Sequence[Precision] = ("fp32",)
"""CPUs compute in float32 whatever the file says, with conversions on top."""


def choose_precision(
    manifest: ModelManifest, artifacts: Iterable[_Artifact], precisions: Sequence[Precision]
) -> Mapping[bool, _Artifact]:
    """Take the first precision of which all is there, as artifacts by flip.

    Of several artifacts of one kind the first counts. Empty if no precision is complete.
    """
    flips = {artifact.flip for artifact in manifest.artifacts}
    artifacts = list(artifacts)
    for precision in precisions:
        chosen = {
            artifact.flip: artifact
            for artifact in reversed(artifacts)
            if artifact.precision == precision
        }
        if set(chosen) == flips:
            return chosen
    return {}
