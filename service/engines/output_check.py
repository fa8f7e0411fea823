"""The check of an engine's outputs against the manifest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import ModelManifest
from service.engines.engine import Engine
from service.engines.errors import EngineBrokenError, EngineUnavailableError


def check_outputs(engine: Engine, manifest: ModelManifest, batch_size: int) -> None:
    """Run black images with each artifact variant; compare shapes and dtypes with the manifest.

    Raises :class:`EngineUnavailableError` if they differ or the run fails, and
    :class:`EngineBrokenError`.
    """
    spec = manifest.input
    images = np.zeros((batch_size, spec.height_px, spec.width_px, 3), np.uint8)
    for flip in sorted({artifact.flip for artifact in manifest.artifacts}):
        try:
            outputs = engine.run(images, flip)
        except EngineBrokenError:
            raise
        except Exception as error:  # each runtime raises its own exceptions
            raise EngineUnavailableError(
                f"{manifest.name} does not run on {engine.description}: {error}"
            ) from error
        _compare(manifest, batch_size, outputs)


def _compare(manifest: ModelManifest, batch_size: int, outputs: Mapping[str, NDArray[Any]]) -> None:
    for output in manifest.decoder.outputs():
        values = outputs[output.name]
        received = (values.shape, str(values.dtype))
        expected = ((batch_size, *output.shape), output.dtype)
        if received != expected:
            raise EngineUnavailableError(
                f"{manifest.name}: output {output.name} is {received}, the manifest says {expected}"
            )
