"""Build the TensorRT engines of a package before the service is ready.

The build runs in a process of its own, so that a crash or a cancelled build ends only the start of
the service.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable

from model_package import ModelPackage, load_package
from service.engines.errors import EngineUnavailableError

_log = logging.getLogger(__name__)

BUILD_COMMAND = (sys.executable, "-m", "model_export", "build")
"""The exporter runs as a command because the service does not import it."""
_MAX_ERROR_CHARACTERS = 2000


def build_engines(
    package: ModelPackage,
    backend: str,
    max_batch_size: int,
    progress: Callable[[float, str], None],
) -> ModelPackage:
    """Build the missing engines of a package for this machine and load the package again.

    ``backend`` is ``tensorrt`` or ``tensorrt-rtx``; the engines are optimised for
    ``max_batch_size``. ``progress`` receives the completed fraction, 0 to 1, and the current step.
    Raises :class:`~service.engines.errors.EngineUnavailableError` with the message of the build
    command.
    """
    size = str(max_batch_size)
    command = [
        *(*BUILD_COMMAND, str(package.directory), "--backend", backend, "--progress", "json"),
        *("--optimal-batch-size", size, "--max-batch-size", size),
    ]
    _log.info("%s: building engines for %s", package.manifest.name, backend)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                event = json.loads(line)
                progress(float(event["progress"]), str(event["step"]))
            reason = process.stderr.read()[-_MAX_ERROR_CHARACTERS:].strip()
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise EngineUnavailableError(
            f"the engines of {package.manifest.name} could not be built: "
            f"{reason or f'the build command exited with status {process.returncode}'}"
        )
    return load_package(package.directory)
