"""While models are loaded, and when they cannot be."""

import signal
import subprocess
import threading
from collections.abc import Callable

import pytest
from support.images import encode, plain
from support.processes import SERVE, serve_process, serving
from support.serving import ColourEngine, one_model, run_startup, wait_until

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


def test_probes_tell_what_is_being_done_until_the_models_are_there() -> None:
    settings, metrics, loaded = Settings(), Metrics(), threading.Event()

    def load(note: Callable[[str], None]) -> ModelRegistry:
        note("painted is being timed")
        assert loaded.wait(20)
        return one_model(ColourEngine())(settings, metrics)

    startup = ModelLoader(load)
    with run_startup(startup, settings, metrics) as running:
        assert running.client.get("/livez").status_code == 200
        wait_until(lambda: "timed" in running.client.get("/startupz").text)
        image = encode(plain(1, 2))
        for answer in (
            running.client.get("/startupz"),
            running.client.get("/readyz"),
            running.client.get("/models"),
            running.client.post("/detect", content=image),
        ):
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (503, "not_ready")
            assert problem["retryable"] is True
            assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
            assert "painted is being timed" in problem["detail"]
        loaded.set()
        wait_until(lambda: running.client.get("/startupz").status_code == 200)
        assert running.client.get("/readyz").status_code == 200
        assert running.client.post("/detect", content=image).status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(tmp_path: object) -> None:
    options = ("--models", str(tmp_path))
    with serve_process(SERVE, *options, stderr=subprocess.PIPE) as service:
        _, text = service.process.communicate(timeout=60)
    assert service.process.returncode == 2
    assert "centernet-serve: error:" in text.decode()
    assert "contains none" in text.decode()


@pytest.mark.parametrize("program", [STILL_LOADING, LOADING_IN_A_POOL])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_signals_do_not_wait_for_the_loading(program: str, stop: signal.Signals) -> None:
    with serve_process(program, stderr=subprocess.PIPE) as service:
        service.wait_for("/livez")
        assert service.status("/startupz") == 503
        service.process.send_signal(stop)
        _, text = service.process.communicate(timeout=20)
        assert service.process.returncode == (-stop if stop == signal.SIGTERM else 128 + stop)
        assert "Traceback" not in text.decode()
