"""Fake of TensorRT: the fake of TensorRT-RTX with plugins, timing cache and ``DeformConv``."""

import enum

import tensorrt_rtx
from tensorrt_rtx import BuilderFlag, ILogger, IProgressMonitor

__version__ = "10.9.0.34"
__all__ = [
    "Builder",
    "BuilderFlag",
    "ILogger",
    "IProgressMonitor",
    "OnnxParser",
    "init_libnvinfer_plugins",
]


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0
    PREFER_AOT_PYTHON_PLUGINS = 3


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes | None:
        """Return the cache, or something that cannot be written if it is to fail."""
        return None if self.content == b"fail" else self.content + b"measured;"


class IBuilderConfig(tensorrt_rtx.IBuilderConfig):
    _cache: ITimingCache

    def create_timing_cache(self, content: bytes) -> ITimingCache:
        return ITimingCache(content)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._cache = cache
        self.timings = cache.content.decode()
        return b"other GPU" not in cache.content

    def get_timing_cache(self) -> ITimingCache:
        return self._cache


class Builder(tensorrt_rtx.Builder):
    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()


class OnnxParser(tensorrt_rtx.OnnxParser):
    _unknown_operators = tensorrt_rtx.UNKNOWN_OPERATORS  # until the plugins are registered


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    assert isinstance(logger, ILogger)
    assert namespace == ""
    OnnxParser._unknown_operators = tensorrt_rtx.UNKNOWN_OPERATORS - {"DeformConv"}
    return True
