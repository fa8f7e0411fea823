"""Settings, model loading and engine selection: errors that prevent the start, and their texts."""

import json
import shutil
import typing
from pathlib import Path

import onnxruntime
import pytest
from pydantic_settings import CliApp

from docs.generate_settings_table import with_table
from model_package import Decoder, PackageInvalidError, load_package
from service.cli import main
from service.decoders import DECODERS
from service.engines import BACKENDS, EngineUnavailableError, open_engine
from service.model_registry import load_models
from service.observability.metrics import Metrics
from service.option_rules import TASK_RULES
from service.settings import Settings


def start_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(("--port", "0", *arguments) if "--models" in arguments else arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_every_backend_and_decoder_kind_is_registered() -> None:
    choices = typing.get_args(Settings.model_fields["backend"].annotation)
    assert set(choices) == {"auto", *BACKENDS}
    union, _ = typing.get_args(Decoder)
    kinds = {decoder.model_fields["kind"].default for decoder in typing.get_args(union)}
    assert set(DECODERS) == set(TASK_RULES) == kinds


def test_rejects_unknown_environment_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CENTERNET_PROT", "9000")
    assert "unknown variables in the environment: CENTERNET_PROT" in start_error(capsys)


def test_ignores_kubernetes_service_links_and_explains_a_conflict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(f"CENTERNET_{name}", "10.0.0.1")
    assert Settings().port == 8000
    monkeypatch.setenv("CENTERNET_PORT", "tcp://10.0.0.1:8000")
    assert "enableServiceLinks: false" in start_error(capsys)


@pytest.mark.parametrize(
    ("option", "value"), [("--max-batch-size", "0"), ("--port", "70000"), ("--backend", "tpu")]
)
def test_rejects_settings_out_of_range(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert option.removeprefix("--").replace("-", "_") in start_error(capsys, option, value)


def test_variables_and_options_set_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        **{"host": "0.0.0.0", "models": "here", "default_model": "one"},
        **{"backend": "onnxruntime-cpu", "body_timeout_s": "1.5", "scaled_decoding": "False"},
        **{"build_engines": "False", "precision": "fp32", "strict_start": "True"},
        **{"trusted_proxies": "10.0.0.1, 10.1.0.0/16", "cors_origins": "https://a.org,http://b:1"},
        **{"log_format": "json", "log_level": "debug", "otlp_endpoint": "http://collector:4318"},
        **{"root_path": "/vision", "label_studio_url": "http://labels:8080"},
        **{"model_control": "signal, poll", "shadow": "people:2=0.1"},
    }
    for name in set(Settings.model_fields) - set(values):
        values[name] = "5000" if name.endswith(("_bytes", "_pixels")) else "3"
    arguments = [
        part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    by_options = CliApp.run(Settings, cli_args=arguments)
    for name, value in values.items():
        monkeypatch.setenv(f"CENTERNET_{name.upper()}", value)
    assert Settings() == by_options
    lists = {"trusted_proxies": ("10.0.0.1", "10.1.0.0/16")}
    lists["cors_origins"] = ("https://a.org", "http://b:1")
    lists["model_control"] = ("signal", "poll")
    lists["shadow"] = ("people:2=0.1",)
    assert {name: value for name, value in by_options if isinstance(value, tuple)} == lists
    assert {name: str(value) for name, value in by_options if name not in lists} == {
        name: str(float(value)) if isinstance(getattr(by_options, name), float) else value
        for name, value in values.items()
        if name not in lists
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--trusted-proxies", "*"),
        ("--trusted-proxies", "10.0.0.1/8"),
        ("--cors-origins", "*"),
        ("--cors-origins", "https://example.org/"),
        ("--cors-origins", "example.org"),
        ("--otlp-endpoint", "collector:4318"),
        ("--otlp-endpoint", "http://user:secret@collector"),
        ("--log-level", "trace"),
    ],
)
def test_rejects_invalid_settings(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert option.removeprefix("--").replace("-", "_") in start_error(capsys, option, value)


def test_the_settings_table_is_up_to_date(project: Path) -> None:
    page = (project / "docs" / "settings.md").read_text()
    assert page == with_table(page), "run `make settings`"
    rows = [line for line in page.splitlines() if line.startswith("| `--")]
    assert len(rows) == len(Settings.model_fields)
    assert all(row.strip("| ").rpartition("| ")[2] for row in rows), (
        "each setting has a description"
    )


def test_rejects_a_directory_without_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = start_error(capsys, "--models", str(tmp_path))
    assert "centernet-serve: error:" in error
    assert "centernet-export" in error


def test_several_models_require_a_default(
    bundled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("one", "two"):
        shutil.copytree(bundled, tmp_path / name)
        path = tmp_path / name / "model.json"
        path.write_text(path.read_text().replace('"name": "blood_cells"', f'"name": "{name}"'))
    with monkeypatch.context() as unloaded:
        # Before any model is loaded, which can take minutes.
        unloaded.setattr("service.model_repository.open_detector", None)
        assert "--default-model" in start_error(capsys, "--models", str(tmp_path))
        assert "no model 'three'" in start_error(
            capsys, "--models", str(tmp_path), "--default-model", "three"
        )
    models = load_models(Settings(models=tmp_path, default_model="two"), Metrics(), print)
    assert models.get(None).manifest.name == "two"
    models.pool.close()


def test_rejects_two_packages_of_the_same_name(
    bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree(bundled, tmp_path / name)
    assert "the name blood_cells" in start_error(capsys, "--models", str(tmp_path))


def test_rejects_an_artifact_with_a_wrong_digest(bundled: Path, tmp_path: Path) -> None:
    package = tmp_path / "changed"
    shutil.copytree(bundled, package)
    model = package / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(PackageInvalidError, match="SHA-256"):
        load_models(Settings(models=package), Metrics(), print)


def test_rejects_outputs_that_differ_from_the_manifest(bundled: Path, tmp_path: Path) -> None:
    package = tmp_path / "wrong"
    shutil.copytree(bundled, package)
    fields = json.loads((package / "model.json").read_text())
    fields["decoder"]["top_k"] += 1
    (package / "model.json").write_text(json.dumps(fields))
    with pytest.raises(EngineUnavailableError, match="output scores is"):
        load_models(Settings(models=package), Metrics(), print)


def test_rejects_more_workers_than_cores(
    bundled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.available_cores", lambda: 4)
    error = start_error(capsys, "--models", str(bundled), "--workers", "5")
    assert "workers: received 5, but the process may use 4 cores" in error


def test_several_workers_do_not_build_engines(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--backend", "tensorrt", "--build-engines", "true", "--workers", "2")
    assert "build_engines works with one worker" in start_error(capsys, *options)


without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="needs an ONNX Runtime without CUDA",
)


@without_cuda
def test_a_named_backend_never_falls_back(bundled: Path) -> None:
    package = load_package(bundled)
    with pytest.raises(EngineUnavailableError, match="no CUDAExecutionProvider here"):
        open_engine(package, "onnxruntime-cuda", threads=1)


@without_cuda
def test_auto_logs_why_it_skipped_each_other_backend(
    bundled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "service")
    engine = open_engine(load_package(bundled), "auto", threads=1, precision="fp32")
    assert engine.description.startswith("OpenVINO")
    assert "backend onnxruntime-cuda (fp32) is unavailable: ONNX Runtime" in caplog.text
