"""docker-compose.yml: what each profile starts, and how it is locked in."""

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.tools import find_compose

from service.settings import Settings

SERVICES = {
    (): {"cpu", "prometheus", "grafana"},
    ("cpu",): {"cpu", "prometheus", "grafana"},
    ("gpu",): {"gpu", "prometheus", "grafana"},
    ("jobs",): {"build", "export", "prometheus", "grafana"},
}
EVERYTHING = ("cpu", "gpu", "jobs")
READ_WRITE = {"build": {"/models", "/var/cache/centernet"}, "prometheus": {"/prometheus"}}
READ_WRITE["export"] = READ_WRITE["build"]


def compose_config(project: Path, *profiles: str) -> dict[str, Any]:
    command = [*find_compose(), "--project-directory", str(project)]
    command += [part for profile in profiles for part in ("--profile", profile)]
    # Only what the files say, not what the shell of whoever tests has set.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = subprocess.run(
        [*command, "config", "--format", "json"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr  # warnings, as of variables without a value
    config: dict[str, Any] = json.loads(result.stdout)
    return config


@pytest.fixture(scope="module")
def services(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = compose_config(project, *EVERYTHING)["services"]
    return found


@pytest.mark.parametrize("profiles", SERVICES, ids="+".join)
def test_a_profile_starts_its_services_and_no_others(
    project: Path, profiles: tuple[str, ...]
) -> None:
    assert set(compose_config(project, *profiles)["services"]) == SERVICES[profiles]


def test_every_container_is_locked_in(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert not service.get("privileged"), name
        written = {one["target"] for one in service["volumes"] if not one.get("read_only")}
        assert written == READ_WRITE.get(name, set()), name


def test_what_is_ours_does_not_run_as_root(services: dict[str, Any]) -> None:
    for name in ("cpu", "gpu", "build", "export"):
        assert services[name]["user"].split(":")[0] not in ("", "0", "root"), name


def test_nothing_is_published_beyond_this_machine_by_itself(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_service_may_finish_before_it_is_killed(services: dict[str, Any], name: str) -> None:
    fields = Settings.model_fields
    bound_s = fields["shutdown_timeout_s"].default
    if "drain_delay_s" in fields:
        bound_s += fields["drain_delay_s"].default
    assert float(services[name]["stop_grace_period"].removesuffix("s")) >= bound_s + 5


def test_gpus_are_reserved_where_they_are_needed(services: dict[str, Any]) -> None:
    for name, service in services.items():
        resources = service.get("deploy", {}).get("resources", {})
        reserved = resources.get("reservations", {}).get("devices", [])
        expected = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
        assert reserved == (expected if name in ("gpu", "build") else []), name


def test_engines_are_built_with_what_serves_them(services: dict[str, Any]) -> None:
    assert services["build"]["image"] == services["gpu"]["image"]
    assert services["build"]["build"] == services["gpu"]["build"]


def test_prometheus_finds_the_service_of_either_profile(
    services: dict[str, Any], project: Path
) -> None:
    config = (project / "docker/prometheus/prometheus.yml").read_text()
    for name in ("cpu", "gpu"):
        alias = services[name]["networks"]["default"]["aliases"][0]
        assert f'"{alias}:{services[name]["ports"][0]["target"]}"' in config


def test_every_variable_is_a_setting(services: dict[str, Any]) -> None:
    known = {f"CENTERNET_{name.upper()}" for name in Settings.model_fields}
    for name in ("cpu", "gpu"):
        assert set(services[name]["environment"]) <= known


def test_images_install_extras_that_exist(services: dict[str, Any], project: Path) -> None:
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name in ("gpu", "build", "export"):
        assert set(services[name]["build"]["args"]["EXTRAS"].split(",")) <= set(extras), name


def test_mounted_files_exist(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or Path(volume["source"]).is_dir(), name


def test_images_of_others_have_a_version(services: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        tag = services[name]["image"].partition(":")[2].removeprefix("v")
        assert len(tag.split(".")) == 3, name
        assert tag.replace(".", "").isdigit(), name
