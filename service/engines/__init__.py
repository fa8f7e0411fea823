"""Inference backends: load the artifacts of a model package and run batches of images."""

from service.engines.backends import BACKENDS, open_engine, select_engine
from service.engines.engine import Engine, EngineOptions, Images
from service.engines.errors import EngineBrokenError, EngineUnavailableError

__all__ = [
    "BACKENDS",
    "Engine",
    "EngineBrokenError",
    "EngineOptions",
    "EngineUnavailableError",
    "Images",
    "open_engine",
    "select_engine",
]
