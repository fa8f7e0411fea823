"""Instruction sets of the CPU that decide which precisions it computes natively."""

import os
from collections.abc import Mapping
from pathlib import Path

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_LIMIT_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_LIMITS_WITHOUT_BF16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)
"""Values of oneDNN's variable that exclude the instructions in :data:`_BF16_FLAGS`."""


def bf16_problem(
    cpu_info: Path = Path("/proc/cpuinfo"), environment: Mapping[str, str] = os.environ
) -> str | None:
    """Return why bfloat16 would be emulated on this CPU; None if it has the instructions.

    OpenVINO's own list of capabilities ignores the limit that is set for oneDNN.
    """
    limit = environment.get(_LIMIT_VARIABLE, "").upper()
    if limit in _LIMITS_WITHOUT_BF16:
        return f"{_LIMIT_VARIABLE}={limit} excludes bf16 instructions, and emulation is slow."
    flags: set[str] = set()
    for line in cpu_info.read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":", 1)[1].split())
            break
    if flags & _BF16_FLAGS:
        return None
    return "this CPU has no bf16 instructions (AMX or AVX-512), and emulation is slow."
