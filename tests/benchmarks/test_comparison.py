"""The arithmetic, the report and the engines of the comparison with other servers."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.comparison import __main__ as command
from benchmarks.comparison.ceiling import Ceiling, Pipeline, matched_fraction
from benchmarks.comparison.report import fraction_of, p99_ms, write_report
from benchmarks.comparison.servers import DEFAULT, HERE, Server
from benchmarks.comparison.workload import Case
from benchmarks.cpu import CPU_ENGINES
from benchmarks.endurance.service import BUNDLED, IMAGES

CEILING = Ceiling(
    prepare_ms=2.0,
    pillow_prepare_ms=6.0,
    engine_ms=8.0,
    batch_size=4,
    cores=2,
    no_server_images_per_second=160.0,
    no_server_cpu_ms=12.0,
)


def turn(rate: float, latencies_ms: list[float], all_ok: bool = True) -> dict[str, Any]:
    return {
        "images_per_second": rate,
        "generator_cpu_share": 0.01,
        "all_ok": all_ok,
        "latencies_ms": latencies_ms,
        "ceilings": [CEILING.as_json()] * 2,
    }


def results(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    case = {
        "common_rate": 40.0,
        "configurations": {DEFAULT: "defaults", "other": "2 workers"},
        "excluded": {"broken": "it did not start"},
        "rounds": rounds,
    }
    return {"cpu": "a CPU", "engine": "openvino-bf16", "seconds": 4.0, "cases": {"256": case}}


def test_the_ceiling_is_cores_by_cpu_time_per_image() -> None:
    assert CEILING.images_per_second == pytest.approx(2 / 0.010)
    assert CEILING.pillow_images_per_second == pytest.approx(2 / 0.014)


def test_a_fraction_relates_to_the_mean_of_the_ceilings_around_the_turn() -> None:
    one = turn(100.0, [])
    one["ceilings"] = [{"images_per_second": 150.0}, {"images_per_second": 250.0}]
    assert fraction_of(one, "images_per_second") == pytest.approx(0.5)


def test_the_p99_is_that_of_the_responses_of_all_turns() -> None:
    turns = [turn(1.0, list(range(51, 101))), turn(1.0, list(range(1, 51)))]
    assert p99_ms(turns) == 99.0


def test_there_is_no_p99_if_a_request_failed() -> None:
    assert p99_ms([turn(1.0, [1.0]), turn(1.0, [1.0], all_ok=False)]) is None


def test_the_report_has_quartiles_and_ratios_within_rounds(tmp_path: Path) -> None:
    rounds = [
        {DEFAULT: turn(default, [10.0]), "other": turn(other, [20.0], all_ok=other != 30.0)}
        for default, other in ((100.0, 50.0), (50.0, 50.0), (100.0, 30.0))
    ]
    text = write_report(results(rounds), tmp_path)
    rows = [line for line in text.splitlines() if line.startswith(f"| {DEFAULT}")]
    assert "0.50 (0.38 to 0.50)" in rows[0]
    other = next(line for line in text.splitlines() if line.startswith("| other"))
    assert "0.50 (0.40 to 0.75)" in other
    assert "requests failed" in other
    assert "Ceiling 200.0 images/s" in text
    assert "Excluded: broken: it did not start" in text


def test_the_figure_of_the_same_results_has_the_same_bytes(tmp_path: Path) -> None:
    figures = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(results([{DEFAULT: turn(9, [1]), "other": turn(8, [2])}]), tmp_path / name)
        figures.append((tmp_path / name / "results.svg").read_bytes())
    assert figures[0] == figures[1]
    assert b"centernet-serving" in figures[0]


def test_results_without_rounds_have_no_figure(tmp_path: Path) -> None:
    write_report(results([]), tmp_path)
    assert not (tmp_path / "results.svg").exists()


class FakeComparison:
    """Measures nothing; records what it was restored from."""

    def __init__(self, case: Case, _: argparse.Namespace) -> None:
        self.case = case
        self.rounds: list[dict[str, Any]] = []

    def restore(self, earlier: dict[str, Any]) -> None:
        self.rounds = earlier["rounds"]

    def run(self, _: Sequence[Server], rounds: int) -> Iterator[None]:
        for _ in range(rounds):
            self.rounds.append({DEFAULT: turn(9.0, [1.0]), "other": turn(8.0, [2.0])})
            yield

    def as_json(self) -> dict[str, Any]:
        return {**results([])["cases"]["256"], "rounds": self.rounds}


def test_a_further_run_continues_and_one_with_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*options: str) -> None:
        paths = ["--environments", str(tmp_path), "--output", str(tmp_path)]
        selection = ["--only", DEFAULT, "--cases", "256-640x480"]
        monkeypatch.setattr("sys.argv", ["comparison", *paths, *selection, *options])
        command.main()

    monkeypatch.setattr(command, "Comparison", FakeComparison)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    run("--rounds", "2")
    run("--rounds", "1")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert len(stored["cases"]["256-640x480"]["rounds"]) == 3
    with pytest.raises(SystemExit, match="measured with another engine, seconds"):
        run("--engine", "onnxruntime-fp32", "--seconds", "1")


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
def test_the_detector_of_the_other_servers_returns_the_detections_of_the_pipeline(
    name: str,
) -> None:
    engine = CPU_ENGINES[name]
    program = (
        "import json, sys; from pathlib import Path; from detector import Detector, Settings\n"
        "settings = Settings(Path(sys.argv[1]), 0, *sys.argv[2:4], 1, 1, 8, 0.0, '')\n"
        "detector = Detector(settings, concurrency=2)\n"
        "images = [detector.prepare(Path(path).read_bytes()) for path in sys.argv[4:]]\n"
        "print(json.dumps(detector.run(images * 2)))"
    )
    paths = IMAGES[:3]  # twice: a batch of 6, which OpenVINO runs as 4, 1 and 1
    result = subprocess.run(
        [sys.executable, "-c", program, str(BUNDLED), *engine, *map(str, paths)],
        cwd=HERE / "shared",
        capture_output=True,
        text=True,
        check=True,
    )
    pipeline = Pipeline(BUNDLED, engine)
    documents = json.loads(result.stdout)
    assert len(documents) == 2 * len(paths)
    for path, document in zip(paths * 2, documents, strict=True):
        expected = pipeline.detect(path.read_bytes())
        assert np.mean([one["score"] for one in expected]) > 0
        assert matched_fraction(expected, document["detections"], threshold=0.3) == 1.0
