"""Models that are loaded, replaced and unloaded while the service runs."""

import asyncio
import gc
import shutil
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.packages import (
    IMAGE,
    change_file,
    change_outputs,
    cut_manifest,
    replace_file,
    write_version,
)
from support.processes import SERVE, ServeProcess, serve_process, serving
from support.serving import GatedEngine, RunningServer, one_model, run_server, wait_until

from service.cpu_cores import available_cores
from service.errors import ModelUnavailableError, ServiceError, UnknownModelError
from service.model_registry import ModelRegistry, load_models
from service.model_repository import (
    BAD_FILES,
    BAD_MANIFEST,
    DUPLICATE,
    NO_ENGINE,
    open_detector,
)
from service.observability.metrics import Metrics
from service.settings import Settings

SCORES = {"1": 0.51, "2": 0.52, "3": 0.53, "4": 0.54, "10": 0.6}
"""Best score of each version, by which the tests tell whose detections a response has."""


def write(models: Path, version: str, directory: str | None = None) -> Path:
    return write_version(models / (directory or f"cells_{version}"), version, score=SCORES[version])


def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
    return load_models(settings, metrics, lambda _: None)


def settings_of(models: Path, **given: Any) -> Settings:
    defaults = {"max_batch_size": 1, "backend": "onnxruntime-cpu"}
    return Settings(models=models, **{**defaults, **given})


@contextmanager
def serve(models: Path, **given: Any) -> Iterator[RunningServer]:
    with run_server(load, settings_of(models, **given)) as running:
        yield running


def registry_of(server: RunningServer) -> ModelRegistry:
    return server.state.loader.models


def version_of(response: httpx.Response) -> str:
    """Return the version that made the detections of a response, which must be the stated one."""
    assert response.status_code == 200, response.text
    body = response.json()
    version: str = body["model"]["version"]
    assert body["detections"][0]["score"] == pytest.approx(SCORES[version], abs=1e-6)
    return version


def served(server: RunningServer, path: str = "/detect") -> str:
    return version_of(server.client.post(path, content=IMAGE))


def versions_in_metrics(server: RunningServer) -> set[str]:
    """Return the versions that any series has as a label."""
    return {
        sample.labels["version"]
        for metric in server.metrics.registry.collect()
        for sample in metric.samples
        if "model" in sample.labels
    }


def count_engine_threads() -> int:
    return sum(thread.name.startswith("engine_") for thread in threading.enumerate())


def states(server: RunningServer) -> set[tuple[str, str, str]]:
    return {(one.version, one.state, one.reason) for one in registry_of(server).states()}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory with version 1 of the model ``cells``."""
    write(tmp_path / "models", "1")
    return tmp_path / "models"


def test_the_newest_version_is_the_default_and_others_have_paths(models: Path) -> None:
    write(models, "2")
    write(models, "10")
    with serve(models, model_versions=2) as server:
        client = server.client
        assert served(server) == served(server, "/models/cells/detect") == "10"
        for version in ("2", "10"):
            assert served(server, f"/models/cells/versions/{version}/detect") == version
            details = client.get(f"/models/cells/versions/{version}").json()
            assert details["version"] == details["manifest"]["version"] == version
            assert details["default"] is (version == "10")
        batch = client.post("/models/cells/versions/2/detect/batch", files={"image": IMAGE})
        assert batch.json()["results"][0]["model"]["version"] == "2"
        (listed,) = client.get("/models").json()["models"]
        assert (listed["version"], listed["versions"]) == ("10", ["10", "2"])
        response = client.post("/models/cells/versions/1/detect", content=IMAGE)
        assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
        assert "The loaded versions are 10, 2." in response.json()["detail"]
        assert versions_in_metrics(server) == {"2", "10"}


def test_a_new_version_replaces_the_old_one(models: Path) -> None:
    with serve(models) as server:
        threads = threading.active_count() + 1  # that which loads packages
        for version, old in (("2", "1"), ("3", "2")):
            assert served(server) == old
            write(models, version)
            server.call(registry_of(server).load("cells"))
            assert served(server) == version
            wait_until(lambda old=old: old not in versions_in_metrics(server))
            assert versions_in_metrics(server) == {version}
            assert states(server) == {(version, "READY", "")}
            assert server.client.get("/readyz").status_code == 200
        wait_until(lambda: threading.active_count() <= threads)
        assert server.metric("centernet_model_loads_total", result="ok") == 3


def test_loading_a_package_that_is_served_changes_nothing(models: Path) -> None:
    with serve(models) as server:
        detector = registry_of(server).get("cells")
        (models / "cells_1").rename(models / "renamed")
        server.call(registry_of(server).load("cells"))
        server.call(registry_of(server).reload())
        assert registry_of(server).get("cells") is detector
        shutil.rmtree(models / "renamed")
        write(models, "2")
        server.call(registry_of(server).reload())
        assert served(server) == "2"


def test_a_package_of_the_same_version_with_other_files_replaces_it(models: Path) -> None:
    with serve(models) as server:
        package = models / "cells_1"
        assert served(server) == "1"
        counted = server.metric("centernet_images_total", version="1")
        shutil.rmtree(package)
        write_version(package, "1", score=0.77)
        server.call(registry_of(server).load("cells"))
        detections = server.client.post("/detect", content=IMAGE).json()["detections"]
        assert detections[0]["score"] == pytest.approx(0.77)
        wait_until(lambda: len(states(server)) == 1)
        # The series of the version continue.
        assert server.metric("centernet_images_total", version="1") == counted + 1
        assert server.metric("centernet_model_ready", version="1") == 1


DAMAGES = {
    change_file: BAD_FILES,
    replace_file: NO_ENGINE,
    change_outputs: NO_ENGINE,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_package_changes_nothing_and_says_why(
    models: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    reason = DAMAGES[damage]
    with serve(models) as server:
        detector = registry_of(server).get("cells")
        package = write(models, "2")
        damage(package)
        for _ in range(2):
            with pytest.raises(ModelUnavailableError, match=reason) as caught:
                server.call(registry_of(server).load("cells"))
            assert "versions that are served are 1." in caught.value.detail
            assert str(models.parent) not in caught.value.detail
            server.call(registry_of(server).reload())
            assert registry_of(server).get("cells") is detector
            assert served(server) == "1"
            assert states(server) == {("1", "READY", ""), ("2", "UNAVAILABLE", reason)}
        ready = server.client.get("/readyz")
        assert ready.status_code == 200
        assert [(one["version"], one["reason"]) for one in ready.json()["failed"]] == [
            ("2", reason)
        ]
        assert server.metric("centernet_model_ready", version="1") == 1
        assert 'model_ready{model="cells",version="2"} 0.0' in server.client.get("/metrics").text
        assert server.metric("centernet_model_loads_total", result="failed") == 4
        assert "cells 2 is not served" in caplog.text
        shutil.rmtree(package)
        write(models, "2")
        server.call(registry_of(server).load("cells"))
        assert served(server) == "2"
        assert server.client.get("/readyz").json()["failed"] == []
        wait_until(lambda: states(server) == {("2", "READY", "")})


@pytest.mark.parametrize("damage", [*DAMAGES, cut_manifest])
@pytest.mark.parametrize("version", ["1", "2", "10"])
def test_a_version_whose_package_is_overwritten_with_a_bad_one_remains(
    tmp_path: Path, damage: Callable[[Path], None], version: str
) -> None:
    package = write(tmp_path, "2", "package")
    with serve(tmp_path) as server:
        detector = registry_of(server).get("cells")
        shutil.rmtree(package)
        damage(write_version(package, version, score=0.9))
        server.call(registry_of(server).reload())
        with pytest.raises(ModelUnavailableError):
            server.call(registry_of(server).load("cells"))
        assert registry_of(server).get("cells") is detector
        assert served(server) == "2"
        shutil.rmtree(package)
        write(tmp_path, "3", "package")
        server.call(registry_of(server).load("cells"))
        assert served(server) == "3"


def test_a_second_package_of_the_served_version_is_refused(models: Path) -> None:
    with serve(models) as server:
        write_version(models / "other", "1", score=0.9)
        with pytest.raises(ModelUnavailableError, match=DUPLICATE):
            server.call(registry_of(server).load("cells"))
        assert served(server) == "1"


def test_the_version_before_is_loaded_if_the_newest_cannot_be_at_the_start(models: Path) -> None:
    change_file(write(models, "2"))
    with serve(models) as server:
        assert served(server) == "1"
        assert states(server) == {("1", "READY", ""), ("2", "UNAVAILABLE", BAD_FILES)}


def test_removing_the_newest_package_returns_to_the_version_before(models: Path) -> None:
    package = write(models, "2")
    with serve(models) as server:
        assert served(server) == "2"
        shutil.rmtree(package)
        server.call(registry_of(server).reload())
        assert served(server) == "1"


def test_models_come_and_go_with_their_packages(models: Path) -> None:
    with serve(models, default_model="cells") as server:
        write_version(models / "people", "1", name="people")
        server.call(registry_of(server).reload())
        assert server.client.post("/models/people/detect", content=IMAGE).status_code == 200
        shutil.rmtree(models / "people")
        server.call(registry_of(server).reload())
        response = server.client.post("/models/people/detect", content=IMAGE)
        assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
        assert served(server) == "1"


def test_a_directory_without_packages_changes_nothing(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(models) as server:
        models.rename(models.parent / "elsewhere")
        server.call(registry_of(server).reload())
        assert served(server) == "1"
        assert "the models are not changed" in caplog.text


def test_a_package_whose_manifest_cannot_be_read_is_reported(models: Path) -> None:
    with serve(models) as server:
        write(models, "2")
        cut_manifest(models / "cells_2")
        server.call(registry_of(server).reload())
        assert served(server) == "1"
        (failed,) = server.client.get("/models").json()["failed"]
        assert (failed["name"], failed["version"]) == ("cells_2", "")
        assert failed["reason"] == BAD_MANIFEST
        assert server.metric("centernet_model_ready", model="cells_2", version="") == 0
        shutil.rmtree(models / "cells_2")
        server.call(registry_of(server).reload())
        assert server.client.get("/models").json()["failed"] == []
        assert "cells_2" not in server.client.get("/metrics").text


def test_an_unloaded_model_completes_its_requests_and_stays_unloaded() -> None:
    engine, closed = GatedEngine(), threading.Event()
    engine.close = closed.set  # type: ignore[method-assign]
    with (
        run_server(one_model(engine), Settings(max_batch_size=1)) as server,
        ThreadPoolExecutor(3) as clients,
    ):
        requests = [clients.submit(server.client.post, "/detect", content=IMAGE) for _ in range(3)]
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 3)
        server.call(registry_of(server).unload("painted"))
        for path in ("/detect", "/models/painted/detect"):
            response = server.client.post(path, content=IMAGE)
            assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
            assert "The model painted is unloaded." in response.json()["detail"]
        assert states(server) == {("1", "UNLOADING", ""), ("1", "UNAVAILABLE", "unloaded")}
        assert server.client.get("/readyz").status_code == 200
        assert not closed.is_set()
        engine.gate.set()
        assert [request.result(30).status_code for request in requests] == [200] * 3
        wait_until(closed.is_set)
        wait_until(lambda: states(server) == {("1", "UNAVAILABLE", "unloaded")})
        assert versions_in_metrics(server) == set()
        with pytest.raises(UnknownModelError):
            server.call(registry_of(server).unload("painted"))


def test_an_unloaded_model_is_loaded_again_on_request_only(models: Path) -> None:
    with serve(models) as server:
        server.call(registry_of(server).unload("cells"))
        write(models, "2")
        server.call(registry_of(server).reload())
        assert server.client.post("/detect", content=IMAGE).status_code == 404
        server.call(registry_of(server).load("cells"))
        assert served(server) == "2"
        assert states(server) == {("2", "READY", "")}


def test_an_unknown_model_cannot_be_loaded(models: Path) -> None:
    with serve(models) as server:
        for name in ("none", "../models/cells_1", str(models / "cells_1"), "cells_1"):
            with pytest.raises(UnknownModelError, match="There are packages of cells"):
                server.call(registry_of(server).load(name))
        assert served(server) == "1"


def test_a_request_keeps_the_version_that_it_began_with(models: Path) -> None:
    """It holds the model while its body arrives."""
    with serve(models) as server:
        port = httpx.URL(server.url).port
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(IMAGE)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head + IMAGE[:10])
            wait_until(lambda: server.metric("centernet_request_body_bytes") == 10)
            write(models, "2")
            server.call(registry_of(server).load("cells"))
            assert served(server) == "2"
            assert ("1", "UNLOADING", "") in states(server)
            connection.sendall(IMAGE[10:])
            response = connection.recv(65536)
        assert b'"version":"1"' in response
        wait_until(lambda: states(server) == {("2", "READY", "")})


def test_replacing_a_model_under_load_loses_and_mixes_no_request(models: Path) -> None:
    """Between the replacements, damaged packages are refused."""
    ended = threading.Event()

    def send_requests(url: str) -> list[str]:
        versions = []
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ended.is_set():
                versions.append(version_of(client.post("/detect", content=IMAGE)))
        return versions

    with serve(models) as server, ThreadPoolExecutor(4) as clients:
        threads = count_engine_threads()
        requests = [clients.submit(send_requests, server.url) for _ in range(4)]
        try:
            for number in range(6):
                damaged = write_version(models / "damaged", f"{number + 20}")
                [change_file, replace_file][number % 2](damaged)
                with pytest.raises(ServiceError):
                    server.call(registry_of(server).load("cells"))
                shutil.rmtree(damaged)
                old, new = ("1", "2") if number % 2 == 0 else ("2", "1")
                (models / f"cells_{old}").rename(models / ".old")
                write(models, new)
                server.call(registry_of(server).reload())
                shutil.rmtree(models / ".old")
                counted = server.metric("centernet_images_total", version=new)
                wait_until(
                    lambda new=new, counted=counted: (
                        server.metric("centernet_images_total", version=new) > counted
                    )
                )
        finally:
            ended.set()
        versions = [version for request in requests for version in request.result(60)]
        assert {"1", "2"} == set(versions)
        wait_until(lambda: states(server) == {("1", "READY", "")})
        wait_until(lambda: count_engine_threads() == threads)


def test_an_unloaded_detector_is_freed_without_garbage_collection(models: Path) -> None:
    """Objects of the start are excluded from collection (gc.freeze)."""
    gc.disable()
    try:
        with serve(models, self_test_interval_s=0.05) as server:
            detector = weakref.ref(registry_of(server).get("cells"))
            self_test = weakref.ref(detector()._self_test)  # type: ignore[union-attr, arg-type]
            assert served(server) == "1"
            wait_until(lambda: server.metric("centernet_self_test_runs_total", result="ok") > 0)
            write(models, "2")
            server.call(registry_of(server).load("cells"))
            assert served(server) == "2"
            wait_until(lambda: detector() is None and self_test() is None)
    finally:
        gc.enable()


def test_changes_are_made_one_after_the_other(models: Path) -> None:
    with serve(models) as server, ThreadPoolExecutor(3) as callers:
        write(models, "2")
        models_of = registry_of(server)
        changes = [
            callers.submit(server.call, change)
            for change in (models_of.load("cells"), models_of.reload(), models_of.load("cells"))
        ]
        for change in changes:
            change.result(60)
        assert server.metric("centernet_model_loads_total", result="ok") == 2
        assert served(server) == "2"


def test_the_loading_of_a_model_is_visible(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = threading.Event(), threading.Event()
    with serve(models) as server:

        def open_slowly(*given: Any) -> Any:
            began.set()
            assert may_end.wait(20)
            return open_detector(*given)

        monkeypatch.setattr("service.model_repository.open_detector", open_slowly)
        write(models, "2")
        with ThreadPoolExecutor(1) as callers:
            change = callers.submit(server.call, registry_of(server).load("cells"))
            assert began.wait(20)
            assert served(server) == "1"
            ready = server.client.get("/readyz")
            assert (ready.status_code, ready.json()["loading"]) == (200, "loading cells 2")
            assert server.metric("centernet_model_loading") == 1
            assert ("", "LOADING", "loading cells 2") in states(server)
            may_end.set()
            change.result(60)
        assert server.client.get("/readyz").json()["loading"] is None
        assert server.metric("centernet_model_loading") == 0
        assert served(server) == "2"


def test_complete_packages_are_loaded_while_the_directory_is_polled(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(models, model_control=("poll",), model_poll_s=0.2) as server:
        complete = write(tmp_path / "source", "2")
        partial = models / "cells_2"
        partial.mkdir()
        shutil.copy(complete / "model.json", partial)
        wait_until(lambda: states(server) >= {("2", "UNAVAILABLE", BAD_FILES)})
        assert served(server) == "1"
        shutil.copy(complete / "model.onnx", partial)
        wait_until(lambda: states(server) == {("2", "READY", "")})
        assert served(server) == "2"
        # A directory whose name starts with a dot is being written.
        shutil.copytree(write(tmp_path / "source", "3"), models / ".cells_3")
        time.sleep(1)
        assert served(server) == "2"
        (models / ".cells_3").rename(models / "cells_3")
        wait_until(lambda: states(server) == {("3", "READY", "")})
        # An empty directory, for example of a volume that is not mounted, is reported once.
        caplog.clear()
        models.rename(tmp_path / "elsewhere")
        wait_until(lambda: "the models are not changed" in caplog.text)
        time.sleep(1)
        assert caplog.text.count("the models are not changed") == 1
        assert served(server) == "3"


def test_files_that_are_still_changing_are_not_loaded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(models) as server:
        registry = registry_of(server)
        readings = [registry._signature, "a", "b", "b", "b", "c", "b", "c", "c"]
        reloaded_at = []

        async def read() -> object:
            if not readings:
                raise asyncio.CancelledError
            return readings.pop(0)

        async def reload() -> None:
            reloaded_at.append(len(readings))
            registry._signature = {5: "b", 0: "c"}[len(readings)]

        monkeypatch.setattr(registry, "_read_signature", read)
        monkeypatch.setattr(registry, "reload", reload)
        with pytest.raises(CancelledError):
            server.call(registry.reload_on_change(0))
        assert reloaded_at == [5, 0], "after two equal readings that differ from the last reload"


def test_several_workers_cannot_be_controlled_by_requests() -> None:
    with pytest.raises(ValueError, match="use signal or poll, which reach all"):
        Settings(model_control=("explicit",), workers=2)
    assert Settings(model_control="signal, poll", workers=2).model_control == ("signal", "poll")
    with pytest.raises(ValueError, match="'explicit', 'signal' or 'poll'"):
        Settings(model_control="requests")


@contextmanager
def serve_models(models: Path, *options: str, program: str = SERVE) -> Iterator[ServeProcess]:
    fixed = ("--models", str(models), "--backend", "onnxruntime-cpu", "--max-batch-size", "1")
    with serve_process(program, *fixed, *options, stderr=subprocess.DEVNULL) as service:
        service.wait_for("/readyz")
        yield service


def detect(service: ServeProcess) -> str:
    """Detect over a new connection, so that each worker answers some of the requests."""
    return version_of(httpx.post(f"{service.client.base_url}/detect", content=IMAGE, timeout=30))


def test_sighup_loads_the_packages_again(models: Path) -> None:
    with serve_models(models, "--model-control", "signal") as service:
        for version in ("2", "3"):
            write(models, version)
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda version=version: detect(service) == version, 20)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == -signal.SIGTERM


def test_sighup_ends_the_service_unless_it_is_set(models: Path) -> None:
    with serve_models(models) as service:
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(20) == -signal.SIGHUP


@pytest.mark.skipif(available_cores() < 2, reason="each worker needs a core")
def test_sighup_reaches_every_worker(models: Path) -> None:
    with serve_models(models, "--model-control", "signal", "--workers", "2") as service:
        wait_until(
            lambda: service.client.get("/metrics").text.count("centernet_model_ready{") == 2, 30
        )
        write(models, "2")
        service.process.send_signal(signal.SIGHUP)

        def ready_versions() -> set[str]:
            text = service.client.get("/metrics").text
            return {line for line in text.splitlines() if line.startswith("centernet_model_ready")}

        wait_until(
            lambda: (
                ready_versions()
                == {
                    f'centernet_model_ready{{model="cells",version="2",worker="{worker}"}} 1.0'
                    for worker in (0, 1)
                }
            ),
            30,
        )
        assert {detect(service) for _ in range(10)} == {"2"}


def test_the_process_ends_while_a_model_is_being_loaded(models: Path) -> None:
    program = serving(
        """
    from service import model_repository
    from service.model_registry import load_models
    models = load_models(settings, metrics, note)
    model_repository.open_detector = lambda *_: threading.Event().wait()
    return models
"""
    )
    with serve_models(models, "--model-control", "signal", program=program) as service:
        write(models, "2")
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: service.client.get("/readyz").json()["loading"] == "loading cells 2")
        assert detect(service) == "1"
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == -signal.SIGTERM
