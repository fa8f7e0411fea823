"""The processor of this machine, and the engines that are measured on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from service.cpu_cores import available_cores


class CpuEngine(NamedTuple):
    """A backend of the service and a precision that it computes in."""

    backend: str
    precision: str


CPU_ENGINES: Mapping[str, CpuEngine] = {
    "onnxruntime-fp32": CpuEngine("onnxruntime-cpu", "fp32"),
    "openvino-fp32": CpuEngine("openvino", "fp32"),
    "openvino-bf16": CpuEngine("openvino", "bf16"),
}
CPU_ENGINES_WITH_INT8 = {**CPU_ENGINES, "openvino-int8": CpuEngine("openvino", "int8")}
"""The last one only for packages that have an int8 file."""


def describe_cpu() -> str:
    """Return the name of the processor, the number of cores, and its bf16 instructions."""
    flags = set(_cpu_info("flags").split()) & {"avx512_bf16", "amx_bf16"}
    return (
        f"{_cpu_info('model name')}, {available_cores()} cores, "
        f"bf16 instructions: {', '.join(sorted(flags)) or 'none'}"
    )


def _cpu_info(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.split(":", 1)[1].strip()
    return "unknown"
