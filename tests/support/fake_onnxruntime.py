"""Fake CUDA execution provider: the real CPU provider on the memory of the fake CUDA runtime.

Sessions run on the stream in their provider options. They assert the requirements of ONNX Runtime
for CUDA graphs: all runs from one thread, and the same addresses for every replay of a graph.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime

from support.fake_cuda import FakeCudaRuntime

PROVIDER = "CUDAExecutionProvider"


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class IOBinding:
    def __init__(self) -> None:
        self.inputs: list[tuple[Any, ...]] = []
        self.outputs: list[tuple[Any, ...]] = []

    def bind_input(self, *binding: Any) -> None:
        self.inputs.append(binding)

    def bind_output(self, *binding: Any) -> None:
        self.outputs.append(binding)

    @property
    def addresses(self) -> tuple[int, ...]:
        return tuple(binding[-1] for binding in (*self.inputs, *self.outputs))


class FakeOnnxRuntime(ModuleType):
    """Fake of the module ``onnxruntime``."""

    SessionOptions = onnxruntime.SessionOptions
    RunOptions = RunOptions

    def __init__(
        self,
        cuda: FakeCudaRuntime,
        *,
        can_capture: bool = True,
        failing_capture: str | None = None,
        starts: bool = True,
        providers: tuple[str, ...] = (PROVIDER, "CPUExecutionProvider"),
    ) -> None:
        super().__init__("onnxruntime")
        self.__version__ = onnxruntime.__version__
        self.cuda, self.can_capture, self.starts, self.providers = (
            cuda,
            can_capture,
            starts,
            providers,
        )
        self.failing_capture = failing_capture
        """``gpu_graph_id`` of a graph whose capture fails during the run."""
        self.sessions: list[InferenceSession] = []

    def get_available_providers(self) -> list[str]:
        return list(self.providers)

    def InferenceSession(  # noqa: N802
        self,
        path: Path,
        sess_options: Any,
        providers: list[tuple[str, Mapping[str, str]]],
        enable_fallback: int,
    ) -> Any:
        assert enable_fallback == 0
        ((provider, options),) = providers
        if provider != PROVIDER:
            return onnxruntime.InferenceSession(path, sess_options, providers=providers)
        if options["enable_cuda_graph"] == "1" and not self.can_capture:
            raise RuntimeError("This session cannot use the graph capture feature")
        session = InferenceSession(self, path, options)
        self.sessions.append(session)
        return session


class InferenceSession:
    def __init__(self, module: FakeOnnxRuntime, path: Path, options: Mapping[str, str]) -> None:
        self._module = module
        self.provider_options = options
        self._real = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._thread: int | None = None
        self.graphs: dict[str, tuple[int, ...]] = {}
        self.run_options: list[Mapping[str, str]] = []

    def get_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"][not self._module.starts :]

    def io_binding(self) -> IOBinding:
        return IOBinding()

    def run_with_iobinding(self, binding: IOBinding, options: RunOptions) -> None:
        thread = threading.get_ident()
        self._thread = self._thread or thread
        assert thread == self._thread, "a session with CUDA graphs is run from two threads"
        self.run_options.append(options.entries)
        graph = options.entries["gpu_graph_id"]
        if graph != "-1":
            assert self.provider_options["enable_cuda_graph"] == "1"
            if graph == self._module.failing_capture:
                raise RuntimeError("CUDA error 900: operation not permitted: stream is capturing")
            captured = self.graphs.setdefault(graph, binding.addresses)
            assert captured == binding.addresses, "a graph is replayed with other addresses"
        stream = int(self.provider_options["user_compute_stream"])
        self._module.cuda.enqueue(stream, lambda: self._compute(binding))

    def _compute(self, binding: IOBinding) -> None:
        real = self._real.io_binding()
        for bind, arguments in (
            *((real.bind_input, arguments) for arguments in binding.inputs),
            *((real.bind_output, arguments) for arguments in binding.outputs),
        ):
            name, device_type, device_id, dtype, shape, pointer = arguments
            assert (device_type, device_id) == ("cuda", 0)
            size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self._module.cuda.memory("device", pointer, size_bytes)  # raises if it is out of bounds
            bind(name, "cpu", 0, dtype, shape, pointer)
        self._real.run_with_iobinding(real)
