"""``centernet-serve tune``, and the timing of batch sizes that it shares with the warm-up."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import ColourEngine, make_manifest

from service.cli import main
from service.engines import EngineUnavailableError, Images
from service.warmup import BatchTiming, choose_batch_size, time_batches


def test_checks_and_times_every_batch_size() -> None:
    class SlowEngine(ColourEngine):
        def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
            time.sleep(0.002)
            return super().run(images, flip)

    engine = SlowEngine()
    timings = time_batches(engine, make_manifest(), 6, 0.01)
    assert [timing.batch_size for timing in timings] == [1, 2, 4, 6]
    assert set(engine.batch_sizes) == {1, 2, 4, 6}
    for timing in timings:
        assert timing.run_s >= 0.002
        assert 0 < timing.images_per_s <= timing.batch_size / 0.002


def test_omits_batch_sizes_after_a_run_that_is_too_long() -> None:
    timings = time_batches(ColourEngine(), make_manifest(), 8, 0.0, max_run_s=0.0)
    assert [timing.batch_size for timing in timings] == [1]


def test_rejects_outputs_with_a_wrong_dtype() -> None:
    class WrongEngine(ColourEngine):
        def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
            outputs = super().run(images, flip)
            return {**outputs, "scores": outputs["scores"].astype(np.float64)}

    with pytest.raises(EngineUnavailableError, match="output scores is"):
        time_batches(WrongEngine(), make_manifest(), 1, 0.0)


TIMINGS = [BatchTiming(1, 0.100, 10.0), BatchTiming(4, 0.200, 20.0), BatchTiming(8, 0.396, 20.2)]


@pytest.mark.parametrize(
    ("target_s", "size"), [(None, 8), (10.0, 8), (0.61, 4), (0.59, 1), (0.01, 1)]
)
def test_the_batch_size_fits_the_target_latency(target_s: float | None, size: int) -> None:
    assert choose_batch_size(TIMINGS, target_s) == size


@pytest.mark.parametrize(("image_s", "size"), [(0.6, 1), (0.057, 2), (0.03, 4), (0.012, 8)])
def test_shorter_runs_get_larger_batches(image_s: float, size: int) -> None:
    timings = [
        BatchTiming(batch_size, batch_size * image_s, 2 / image_s) for batch_size in (1, 2, 4, 8)
    ]
    assert choose_batch_size(timings, None) == size


@pytest.mark.parametrize("slow_index", [0, 1, 2, 3])
def test_one_noisy_timing_does_not_change_the_batch_size(slow_index: int) -> None:
    timings = [
        BatchTiming(batch_size, batch_size * 0.012, 2 / 0.012) for batch_size in (1, 2, 4, 8)
    ]
    timing = timings[slow_index]
    timings[slow_index] = BatchTiming(
        timing.batch_size, 1.08 * timing.run_s, timing.images_per_s / 1.08
    )
    assert choose_batch_size(timings, None) == 8


def test_never_chooses_a_size_with_less_throughput_than_a_smaller_one() -> None:
    assert choose_batch_size([*TIMINGS, BatchTiming(16, 0.941, 17.0)], None) == 8


def test_the_command_prints_and_writes_its_measurements(
    bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundled, tmp_path / "models")
    output = tmp_path / "tuning.json"
    main(
        [
            *("tune", "--models", str(tmp_path / "models"), "--backend", "onnxruntime-cpu"),
            *("--max-batch-size", "2", "--seconds", "0.5", "--output", str(output)),
        ]
    )
    printed = capsys.readouterr().out
    assert "batch size  run ms  images/s" in printed
    (tuning,) = json.loads(output.read_text())
    assert tuning["model"] == "blood_cells"
    assert tuning["timings"][0]["batch_size"] == 1
    for trial in tuning["trials"]:
        assert 0 < trial["p50_ms"] <= trial["p99_ms"]
        assert trial["images_per_s"] > 0
    if tuning["chosen"] is not None:
        size = tuning["chosen"]["max_batch_size"]
        assert f"CENTERNET_MAX_BATCH_SIZE={size}" in printed
