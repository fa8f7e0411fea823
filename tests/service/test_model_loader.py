"""Requests, probes and signals while models are being loaded, and errors of loading."""

import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import encode, plain
from support.processes import SERVE, serve_process, serving
from support.serving import ColourEngine, one_model, run_server_with_loader, wait_until

from service.model_loader import RETRY_AFTER_S, ModelLoader
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.settings import Settings

STILL_LOADING = serving("    threading.Event().wait()")
LOADING_IN_A_POOL = serving(
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threading.Event().wait).result()
"""
)


def test_probes_report_the_current_step_until_the_models_are_loaded() -> None:
    settings, metrics, loaded = Settings(), Metrics(), threading.Event()

    def load(report_step: Callable[[str], None]) -> ModelRegistry:
        report_step("painted is being timed")
        assert loaded.wait(20)
        return one_model(ColourEngine())(settings, metrics)

    loader = ModelLoader(load)
    with run_server_with_loader(loader, settings, metrics) as running:
        assert running.client.get("/livez").status_code == 200
        wait_until(lambda: "timed" in running.client.get("/startupz").text)
        image = encode(plain(1, 2))
        for response in (
            running.client.get("/startupz"),
            running.client.get("/readyz"),
            running.client.get("/models"),
            running.client.post("/detect", content=image),
        ):
            problem = response.json()
            assert (response.status_code, problem["code"]) == (503, "not_ready")
            assert problem["retryable"] is True
            assert response.headers["Retry-After"] == str(RETRY_AFTER_S)
            assert "painted is being timed" in problem["detail"]
        loaded.set()
        wait_until(lambda: running.client.get("/startupz").status_code == 200)
        assert running.client.get("/readyz").status_code == 200
        assert running.client.post("/detect", content=image).status_code == 200


def test_the_log_of_a_start_is_a_line_per_model_and_the_address_last(
    bundled: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        shutil.copytree(bundled, tmp_path / name)
        manifest = tmp_path / name / "model.json"
        manifest.write_text(manifest.read_text().replace('"blood_cells"', f'"{name}"'))
    options = ("--models", str(tmp_path), "--default-model", "second", "--max-batch-size", "1")
    with serve_process(SERVE, *options, stderr=subprocess.PIPE) as service:
        service.wait_for("/livez")
        service.wait_for("/readyz")  # asks while the models are loaded
        service.process.send_signal(signal.SIGTERM)
        _, text = service.process.communicate(timeout=60)
    pattern = r"[-\d]+ [:,\d]+ (\w+) [\w.]+: (.*)"
    levels, messages = zip(*re.findall(pattern, text.decode()), strict=True)
    assert set(levels) == {"INFO"}
    start, first, second, ready, stop = messages
    url = str(service.client.base_url).rstrip("/")
    assert re.fullmatch(rf"CenterNet Serving \S+ listens on {url} and loads .*{tmp_path}", start)
    for name, line in (("first", first), ("second", second)):
        assert re.match(rf"{name}: .*, (fp32|bf16|int8) on CPU", line)
        assert "onnxruntime-cuda" in line, "a backend that was skipped"
    assert re.fullmatch(rf"ready after .* the models first, second \(default\): {url}", ready)
    assert stop.startswith("stopping")


def test_a_load_error_ends_the_process_with_its_message(tmp_path: object) -> None:
    options = ("--models", str(tmp_path))
    with serve_process(SERVE, *options, stderr=subprocess.PIPE) as service:
        _, text = service.process.communicate(timeout=60)
    assert service.process.returncode == 2
    assert "centernet-serve: error:" in text.decode()
    assert "contains none" in text.decode()


@pytest.mark.parametrize("program", [STILL_LOADING, LOADING_IN_A_POOL])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_process_while_models_are_loading(
    program: str, stop: signal.Signals
) -> None:
    with serve_process(program, stderr=subprocess.PIPE) as service:
        service.wait_for("/livez")
        assert service.status("/startupz") == 503
        service.process.send_signal(stop)
        _, text = service.process.communicate(timeout=20)
        assert service.process.returncode == (-stop if stop == signal.SIGTERM else 128 + stop)
        assert "Traceback" not in text.decode()
