"""Serve model packages over HTTP: images in, detections in their pixels out."""

import model_package  # noqa: F401  # disables ONNX Runtime's telemetry before it is loaded
