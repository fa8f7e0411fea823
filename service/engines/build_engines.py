"""Building engines before the service is ready.

A process of its own does it, so that a crash or a cancelled build costs no more than the start.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable

from model_package import ModelPackage, load_package
from service.engines import EngineUnavailableError

_log = logging.getLogger(__name__)

BUILD_COMMAND = (sys.executable, "-m", "model_export", "build")
"""The builder, which this package does not import."""
_LAST_WORDS = 2000


def build_engines(
    package: ModelPackage,
    backend: str,
    max_batch_size: int,
    progress: Callable[[float, str], None],
) -> ModelPackage:
    """Build the package's engines for this machine, where they are not built yet; read it again.

    Raises :class:`EngineUnavailableError` with the builder's own reason.
    """
    size = str(max_batch_size)
    arguments = [
        *(*BUILD_COMMAND, str(package.directory), "--backend", backend, "--progress", "json"),
        *("--optimal-batch-size", size, "--max-batch-size", size),
    ]
    _log.info("%s: building engines for %s", package.manifest.name, backend)
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                told = json.loads(line)
                progress(float(told["progress"]), str(told["step"]))
            reason = process.stderr.read()[-_LAST_WORDS:].strip()
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise EngineUnavailableError(
            f"the engines of {package.manifest.name} could not be built: "
            f"{reason or f'the builder ended with status {process.returncode}'}"
        )
    return load_package(package.directory)
