"""Fake of TensorRT-RTX: the calls that the exporter makes, and engines that contain its settings.

It parses the ONNX file and rejects operators that TensorRT-RTX does not support. The producer name
of the file selects other behaviour: ``refuse`` fails to build, ``abort`` aborts the process, and
``slow`` takes a minute in one call that ignores signals. If the environment variable
``FAKE_SIGNAL`` has the name of a signal, the process that imports this module gets it where Python
ignores exceptions; child processes do not.
"""

import ctypes
import enum
import json
import multiprocessing
import os
import signal

import onnx

__version__ = "1.7.1.116"

UNKNOWN_OPERATORS = {"DeformConv", "NonMaxSuppression"}


class _Interrupted:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.Signals[os.environ["FAKE_SIGNAL"]])


if "FAKE_SIGNAL" in os.environ and multiprocessing.parent_process() is None:
    _Interrupted()


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0


class BuilderFlag(enum.Enum):
    TF32 = 6


class ComputeCapability(enum.Enum):
    NONE = 0
    CURRENT = 1
    SM89 = 89
    SM120 = 120


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class IProgressMonitor:
    pass


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> "INetworkDefinition":
        assert flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition(flags)

    def create_builder_config(self) -> "IBuilderConfig":
        return IBuilderConfig()

    def create_optimization_profile(self) -> "IOptimizationProfile":
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: "INetworkDefinition", config: "IBuilderConfig"
    ) -> bytes | None:
        model = network.model
        assert model is not None
        self.logger.log(ILogger.Severity.WARNING, "of no interest")
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 4)
        monitor.step_complete("Building engine", 0)
        if model.producer_name == "slow":
            ctypes.CDLL(None).sleep(60)  # other threads run, signal handlers do not
        if model.producer_name == "abort":
            os.abort()
        if model.producer_name == "refuse":
            self.logger.log(ILogger.Severity.ERROR, "no kernel for node /head/Conv")
            return None
        monitor.phase_start("Optimizing graph", "Building engine", 2)
        monitor.step_complete("Optimizing graph", 0)
        monitor.phase_finish("Optimizing graph")
        for step in (1, 2, 3):
            monitor.step_complete("Building engine", step)
        monitor.phase_finish("Building engine")
        settings = {
            "flags": network.flags,
            "operators": sorted({node.op_type for node in model.graph.node}),
            "profiles": config.profiles,
            "tf32": config.tf32,
            "targets": config.targets,
            "timings": config.timings,
        }
        return json.dumps(settings).encode()


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None


class ParserError:
    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def desc(self) -> str:
        return "not supported"


class OnnxParser:
    _unknown_operators = UNKNOWN_OPERATORS

    def __init__(self, network: INetworkDefinition, _: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, content: bytes) -> bool:
        model = onnx.ModelProto.FromString(content)
        self._network.model = model
        self._errors = [
            ParserError(node)
            for node in model.graph.node
            if node.op_type in self._unknown_operators
        ]
        return not self._errors


class IOptimizationProfile:
    _shapes: tuple[object, ...] = ()

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self._shapes = (name, *shapes)


class IBuilderConfig:
    progress_monitor: IProgressMonitor | None = None
    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.tf32 = True
        self.profiles: list[tuple[object, ...]] = []
        self.targets: list[str] = []
        self.timings: str | None = None

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile._shapes)
        return len(self.profiles) - 1

    def clear_flag(self, flag: BuilderFlag) -> None:
        assert flag is BuilderFlag.TF32
        self.tf32 = False

    def set_compute_capability(self, target: ComputeCapability, index: int) -> bool:
        assert index < self.num_compute_capabilities
        self.targets.append(target.name)
        return True
