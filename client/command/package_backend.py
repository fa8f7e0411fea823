"""Detection with a model package in this process; needs the extra ``serve`` or ``gpu``."""

import json
from dataclasses import asdict
from pathlib import Path

from client.command.backends import ModelDescription
from client.command.errors import CommandError
from client.command.sources import Content
from client.errors import ResponseError
from client.protocol import DetectOptions
from client.results import DetectionResult, parse_result
from model_package import PackageError
from service.detector import load_detector
from service.engines import EngineUnavailableError
from service.errors import ServiceError
from service.http.problem_details import problem_of
from service.http.responses import to_json, to_response


class PackageBackend:
    """The model of a package; see :class:`client.command.backends.Backend`.

    Raises :class:`CommandError` if the package cannot be loaded.
    """

    def __init__(self, package: Path, options: DetectOptions) -> None:
        try:
            self._detector = load_detector(package)
        except (PackageError, EngineUnavailableError, ValueError) as error:
            raise CommandError(f"--package {package}: {error}") from None
        manifest = self._detector.manifest
        self.model = ModelDescription(
            manifest.name,
            manifest.version,
            manifest.classes,
            getattr(manifest.decoder, "keypoints", ()),
            getattr(manifest.decoder, "skeleton", ()),
        )
        # One more than the engine runs at a time, so that decoding overlaps with it.
        self.concurrency = self._detector.engine.concurrency + 1
        self._options = {name: value for name, value in options.items() if value is not None}

    def detect(self, content: Content) -> DetectionResult:
        """Return the detections of one image. Raises :class:`ResponseError`."""
        try:
            prediction = self._detector.detect(content, **self._options)
        except ServiceError as error:
            problem = asdict(problem_of(error, "", ""))
            raise ResponseError(error.status, problem, error.detail, retryable=False) from None
        # As a client receives it: with rounded numbers.
        response = to_response(self._detector.manifest, prediction, "")
        return parse_result(json.loads(to_json(response)))

    def stop(self) -> None:
        """Do nothing: there are no retries."""

    def close(self) -> None:
        """Close the engine."""
        self._detector.close()
