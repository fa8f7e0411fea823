"""The comparison with Triton by perf_analyzer: its input, its results and its table."""

import sys
from pathlib import Path

import numpy as np
import pytest
from support.images import encode, plain
from support.open_inference import HEADER_LENGTH, INFER, INFER_TENSOR
from support.serving import ColourEngine, RunningServer, make_manifest

from benchmarks.load import Target
from benchmarks.open_inference.__main__ import servers_of
from benchmarks.open_inference.perf_analyzer import Measured, PerfAnalyzer, read_report
from benchmarks.open_inference.report import to_markdown
from benchmarks.open_inference.tensors import largest_difference, read_outputs, write_image

CSV = (
    "Concurrency,Inferences/Second,Client Send,Client Recv,p50 latency,p90 latency,p95 latency,"
    "p99 latency,Avg latency,request/response,response wait\n"
    "4,17.3915,1613,0,219578,292486,333688,386131,226944,226903,225290\n"
)
FAKE = """
import sys
from pathlib import Path
arguments = sys.argv[1:]
Path(arguments[arguments.index("-f") + 1]).write_text({csv!r})
"""


def test_the_report_of_a_run_is_read() -> None:
    assert read_report(CSV) == Measured(4, 17.3915, 219.578, 386.131)


def test_a_run_that_writes_no_report_fails(tmp_path: Path) -> None:
    script = tmp_path / "perf_analyzer.py"
    script.write_text(FAKE.format(csv=CSV))
    analyzer = PerfAnalyzer([sys.executable, str(script)], tmp_path, 1.0)
    assert analyzer.run("painted.tensor", 8000, 4) == read_report(CSV)
    script.write_text("print('no connection')")
    with pytest.raises(RuntimeError, match="no connection"):
        analyzer.run("painted.tensor", 8000, 4)


def test_ratios_are_those_of_each_round() -> None:
    rounds = [
        {"a": [Measured(8, 30.0, 10.0, 20.0)], "b": [Measured(8, 20.0, 20.0, 40.0)]},
        {"a": [Measured(8, 45.0, 10.0, 30.0)], "b": [Measured(8, 15.0, 20.0, 40.0)]},
    ]
    lines = to_markdown(rounds, ("a", "b")).splitlines()
    assert lines[0] == "| concurrency |  | a | b | ratio |"
    assert (
        "| 8 | images/s | 37.5 (33.8 to 41.2) | 17.5 (16.2 to 18.8) | 2.25 (1.88 to 2.62) |"
        in lines
    )
    assert any(line.startswith("| 8 | p99 ms | 25.0") and "0.62" in line for line in lines)


def test_servers_are_compared_by_their_outputs(server: RunningServer, tmp_path: Path) -> None:
    local, _ = servers_of("painted")
    assert local.path == INFER_TENSOR
    port = server.client.base_url.port or 0
    image = write_image(tmp_path / "image.bin", make_manifest().input)
    dark = tmp_path / "dark.bin"
    dark.write_bytes(plain(1, 2).tobytes())
    target, other = (Target(port, local.path, [body], local.headers) for body in (image, dark))
    assert largest_difference(target, target) == 0
    assert largest_difference(target, other) > 1
    raw = server.client.post(local.path, content=dark.read_bytes(), headers={HEADER_LENGTH: "0"})
    for name, values in ColourEngine().run(plain(1, 2)[None]).items():
        assert np.array_equal(read_outputs(raw.content)[name], values)
    body = tmp_path / "image.png"
    body.write_bytes(encode(plain(1, 2)))
    with pytest.raises(RuntimeError, match="outputs are"):
        largest_difference(target, Target(port, INFER, [body], local.headers))
