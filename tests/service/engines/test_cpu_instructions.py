"""Which CPUs compute in bfloat16 without emulation."""

from pathlib import Path

import pytest

from service.engines.cpu_instructions import bf16_problem


@pytest.mark.parametrize(
    ("flags", "limit", "reason"),
    [
        ("avx2 avx512_vnni avx512_bf16", None, None),
        ("avx512_vnni amx_tile amx_bf16", None, None),
        ("avx2 avx512_vnni", None, "this CPU has no bf16 instructions"),
        ("avx512_bf16_x", None, "this CPU has no bf16 instructions"),
        ("avx512_bf16", "AVX512_CORE_VNNI", "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI excludes bf16"),
        ("avx512_bf16", "avx2", "ONEDNN_MAX_CPU_ISA=AVX2 excludes bf16"),
        ("avx512_bf16", "AVX512_CORE_BF16", None),
        ("avx512_bf16", "DEFAULT", None),
    ],
)
def test_bf16_needs_instructions(
    flags: str, limit: str | None, reason: str | None, tmp_path: Path
) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    environment = {} if limit is None else {"ONEDNN_MAX_CPU_ISA": limit}
    problem = bf16_problem(cpu_info, environment)
    assert (problem is None) == (reason is None)
    assert (reason or "") in (problem or "")


def test_other_architectures_have_no_such_flags(tmp_path: Path) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert bf16_problem(cpu_info, {}) is not None
