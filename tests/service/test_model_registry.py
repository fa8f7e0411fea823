"""Packages that cannot be loaded, among others that can."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.packages import (
    IMAGE,
    change_file,
    change_outputs,
    cut_manifest,
    edit_manifest,
    replace_file,
    write_version,
)
from support.serving import ColourEngine, RunningServer, run_server

from model_package import PackageError, PackageInvalidError
from service.engines.errors import EngineBrokenError, EngineUnavailableError
from service.model_registry import ModelRegistry, load_models
from service.model_repository import (
    BAD_FILES,
    BAD_MANIFEST,
    DUPLICATE,
    FAILED_WARM_UP,
    NO_ENGINE,
    find_packages,
    open_detector,
)
from service.observability.metrics import Metrics
from service.settings import Settings
from service.tune import TuneSettings


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory with the packages ``good`` and ``bad``; tests damage the latter."""
    for name in ("good", "bad"):
        write_version(tmp_path / "models" / name, "1", name=name)
    return tmp_path / "models"


DAMAGES = {
    cut_manifest: (BAD_MANIFEST, "", "EOF while parsing"),
    change_file: (BAD_FILES, "1", "has the SHA-256"),
    replace_file: (NO_ENGINE, "1", "cannot be loaded"),
    change_outputs: (NO_ENGINE, "1", "output scores is"),
}


def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
    return load_models(settings, metrics, lambda _: None)


@contextmanager
def serve(models: Path, **settings: Any) -> Iterator[RunningServer]:
    chosen = Settings(models=models, max_batch_size=1, **{"default_model": "good"} | settings)
    with run_server(load, chosen) as running:
        yield running


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_other_models_are_served(
    models: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(models / "bad")
    reason, version, cause = DAMAGES[damage]
    failed = [{"name": "bad", "version": version, "reason": reason, "default": False}]
    with serve(models) as server:
        client = server.client
        assert client.post("/detect", content=IMAGE).status_code == 200
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()) == (
            200,
            {"status": "ready", "failed": failed, "loading": None},
        )
        assert client.get("/startupz").status_code == client.get("/livez").status_code == 200
        listed = client.get("/models").json()
        assert [model["name"] for model in listed["models"]] == ["good"]
        assert listed["failed"] == failed
        requests = [("GET", "/models/bad"), ("POST", "/models/bad/detect")]
        for method, path in [*requests, ("POST", "/models/bad/detect/batch")]:
            response = client.request(method, path, content=IMAGE if method == "POST" else None)
            problem = response.json()
            assert (response.status_code, problem["code"]) == (503, "model_unavailable")
            assert reason in problem["detail"]
            assert not problem["retryable"]
            assert str(models.parent) not in response.text, "clients see no path"
        assert server.metric("centernet_model_ready", model="bad", version=version) == 0
        assert f'model_ready{{model="bad",version="{version}"}} 0.0' in client.get("/metrics").text
        assert server.metric("centernet_model_ready", model="good", version="1") == 1
    assert f"{'bad ' + version}".rstrip() + " is not served: " in caplog.text
    assert cause in caplog.text, "operators see the error"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_strict_start_ends_with_the_error(models: Path, damage: Callable[[Path], None]) -> None:
    damage(models / "bad")
    settings = Settings(models=models, default_model="good", strict_start=True)
    with pytest.raises((PackageError, EngineUnavailableError), match=DAMAGES[damage][2]):
        load(settings, Metrics())


def test_no_model_at_all_ends_the_start(models: Path) -> None:
    cut_manifest(models / "bad")
    change_file(models / "good")
    with pytest.raises(PackageInvalidError, match=r"bad/model\.json is not a manifest"):
        load(Settings(models=models, default_model="good"), Metrics())


def test_without_the_default_model_only_named_models_are_served(models: Path) -> None:
    cut_manifest(models / "bad")
    with serve(models, default_model="bad") as server:
        response = server.client.post("/detect", content=IMAGE)
        assert (response.status_code, response.json()["code"]) == (503, "model_unavailable")
        assert server.client.get("/readyz").json()["failed"][0]["default"] is True
        assert server.client.post("/models/good/detect", content=IMAGE).status_code == 200


def test_the_default_model_is_checked_before_any_is_loaded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_manifest(models / "bad")
    opened: list[object] = []
    monkeypatch.setattr("service.model_repository.open_detector", lambda *args: opened.append(args))
    with pytest.raises(PackageError, match="no model 'god'; there are good, bad"):
        load(Settings(models=models, default_model="god"), Metrics())
    with pytest.raises(PackageError, match="several models, good, bad"):
        load(Settings(models=models), Metrics())
    assert not opened


def test_a_directory_with_the_name_of_a_loaded_model_may_fail(models: Path) -> None:
    cut_manifest(models / "bad")
    edit_manifest(models / "good", {"name": "bad"})
    with serve(models, default_model="bad") as server:
        assert server.client.post("/detect", content=IMAGE).status_code == 200
        (failed,) = server.client.get("/readyz").json()["failed"]
        assert (failed["name"], failed["version"], failed["reason"]) == ("bad", "", BAD_MANIFEST)


def test_packages_of_the_same_name_and_version_are_not_loaded(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(models / "other", "1", name="bad")
    with serve(models) as server:
        failed = server.client.get("/readyz").json()["failed"]
        assert {(one["name"], one["version"], one["reason"]) for one in failed} == {
            ("bad", "1", DUPLICATE)
        }
        assert server.client.post("/models/bad/detect", content=IMAGE).status_code == 503
    assert f"the packages in {models / 'bad'} and {models / 'other'} have the name" in caplog.text


def test_a_directory_name_may_be_any_bytes(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)  # pytest-xdist cannot transfer the log with this name
    shutil.move(models / "bad", models / "b\udcffd")
    cut_manifest(models / "b\udcffd")
    with serve(models) as server:
        assert server.client.get("/readyz").json()["failed"][0]["name"] == "b?d"
        assert server.client.get("/models").status_code == 200
        assert 'model="b?d"' in server.client.get("/metrics").text


def test_an_unexpected_exception_is_logged_with_its_traceback(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_for_bad(package: Any, settings: Settings) -> Any:
        if package.manifest.name == "bad":
            raise RuntimeError("a bug of a library")
        return open_detector(package, settings)

    monkeypatch.setattr("service.model_repository.open_detector", fail_for_bad)
    with serve(models) as server:
        assert server.client.get("/readyz").json()["failed"][0]["reason"] == NO_ENGINE
    assert "Traceback" in caplog.text


def test_the_engine_of_a_model_that_fails_in_the_warm_up_is_closed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Engine(ColourEngine):
        def run(self, *_: Any) -> Any:
            raise RuntimeError("a bug of a library")

        def close(self) -> None:
            closed.append(self)

    def replace_engine(package: Any, settings: Settings) -> Any:
        detector, self_test = open_detector(package, settings)
        if package.manifest.name == "bad":
            detector.engine = Engine()
        return detector, self_test

    monkeypatch.setattr("service.model_repository.open_detector", replace_engine)
    with serve(models) as server:
        assert server.client.get("/readyz").json()["failed"][0]["reason"] == FAILED_WARM_UP
    assert len(closed) == 1


def test_a_broken_gpu_ends_the_start(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_gpu(*_: object) -> None:
        raise EngineBrokenError("an illegal memory access")

    monkeypatch.setattr("service.model_repository.open_detector", break_gpu)
    with pytest.raises(EngineBrokenError):
        load(Settings(models=models, default_model="good"), Metrics())


def test_tune_needs_every_package(models: Path) -> None:
    change_file(models / "bad")
    with pytest.raises(PackageInvalidError, match="SHA-256"):
        list(find_packages(TuneSettings(models=models)))
