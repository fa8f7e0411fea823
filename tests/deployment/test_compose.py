"""docker-compose.yml: the services of each profile, their hardening and their resources."""

import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.compose import compose_config
from support.tools import MIN_COMPOSE

from service.settings import Settings

SERVICES = {
    (): {"cpu", "prometheus", "grafana"},
    ("cpu",): {"cpu", "prometheus", "grafana"},
    ("gpu",): {"gpu", "dcgm-exporter", "prometheus", "grafana"},
    ("jobs",): {"build", "export", "prometheus", "grafana"},
}
ALL_PROFILES = ("cpu", "gpu", "jobs")
WRITABLE_VOLUMES = {"build": {"/models", "/var/cache/centernet"}, "prometheus": {"/prometheus"}}
WRITABLE_VOLUMES["export"] = WRITABLE_VOLUMES["build"]
WRITABLE_VOLUMES["gpu"] = {"/var/cache/centernet"}
GPU_SERVICES = ("gpu", "build", "dcgm-exporter")

OLDER = (2, 0)
SERVICE_KEYS = (
    *("build", "cap_drop", "command", "deploy", "entrypoint", "env_file", "environment"),
    *("healthcheck", "image", "init", "network_mode", "networks", "ports", "profiles"),
    *("read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "user", "volumes"),
)
KEYS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("name", "services", "volumes"), OLDER),
    **{f"services.{key}": OLDER for key in SERVICE_KEYS},
    "services.env_file.path": (2, 24),
    "services.env_file.required": (2, 24),
}
"""Keys of docker-compose.yml with the version of Compose that they need, from its documentation."""


@pytest.fixture(scope="module")
def services(project: Path) -> dict[str, Any]:
    config: dict[str, Any] = compose_config(project, *ALL_PROFILES)["services"]
    return config


def test_the_stated_version_of_compose_knows_every_key(project: Path) -> None:
    text = (project / "docker-compose.yml").read_text()
    definition = yaml.safe_load(text)
    used = {key for key in definition if not key.startswith("x-")}
    for service in definition["services"].values():
        used |= {f"services.{key}" for key in service}
        for file in service.get("env_file", ()):
            used |= {f"services.env_file.{key}" for key in file}
    assert used == set(KEYS), "add the key to KEYS, with the version of Compose that introduced it"
    assert max(KEYS.values()) == MIN_COMPOSE
    sentence = "Docker Compose {}.{} or newer".format(*MIN_COMPOSE)
    for path in ("docker-compose.yml", "README.md", "docs/deployment.md"):
        assert sentence in (project / path).read_text(), path


def test_the_number_of_cores_can_be_limited(project: Path) -> None:
    for variables, cores in (({}, None), ({"CPU_LIMIT": "1.5"}, 1.5)):
        for name, service in compose_config(project, "cpu", "gpu", **variables)["services"].items():
            if name in {"cpu", "gpu"}:
                assert service["deploy"]["resources"]["limits"].get("cpus") == cores, name


def test_kernels_that_cuda_compiles_are_kept_in_a_volume(
    services: dict[str, Any], project: Path
) -> None:
    dockerfile = (project / "docker/Dockerfile").read_text()
    (directory,) = re.findall(r"\bCUDA_CACHE_PATH=(\S+)", dockerfile)
    for name in ("gpu", "build"):
        assert any(
            volume["type"] == "volume" and Path(directory).is_relative_to(volume["target"])
            for volume in services[name]["volumes"]
        ), name
    # A new volume gets the directory of the image with its permissions; users differ.
    (created,) = re.findall(r"install --directory --mode=1777 (.*)", dockerfile)
    assert directory in created.split()
    # A job that reads untrusted input cannot change the kernels of the service.
    sources = [
        {volume["source"] for volume in services[name]["volumes"] if volume["type"] == "volume"}
        for name in ("gpu", "build")
    ]
    assert sources[0].isdisjoint(sources[1])


@pytest.mark.parametrize("profiles", SERVICES, ids="+".join)
def test_each_profile_starts_exactly_its_services(project: Path, profiles: tuple[str, ...]) -> None:
    assert set(compose_config(project, *profiles)["services"]) == SERVICES[profiles]


def test_the_port_mapping_does_not_depend_on_centernet_env(project: Path, tmp_path: Path) -> None:
    shutil.copy(project / "docker-compose.yml", tmp_path)
    (tmp_path / "centernet.env").write_text("CENTERNET_PORT=9000\nCENTERNET_HOST=127.0.0.1\n")
    for name, service in compose_config(tmp_path, "cpu", "gpu")["services"].items():
        if name in {"cpu", "gpu"}:
            assert service["environment"]["CENTERNET_PORT"] == "8000"
            assert service["environment"]["CENTERNET_HOST"] == "0.0.0.0"
            assert service["environment"]["CENTERNET_GRPC_PORT"] == "8001"
            assert [port["target"] for port in service["ports"]] == [8000, 8001]


def test_every_container_is_hardened(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert not service.get("privileged"), name
        volumes = service.get("volumes", ())
        written = {volume["target"] for volume in volumes if not volume.get("read_only")}
        assert written == WRITABLE_VOLUMES.get(name, set()), name


def test_services_with_a_configured_user_do_not_run_as_root(services: dict[str, Any]) -> None:
    for name in ("cpu", "gpu", "build", "export", "dcgm-exporter"):
        assert services[name]["user"].split(":")[0] not in ("", "0", "root"), name


def test_ports_are_published_on_the_loopback_interface_by_default(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_stop_grace_period_exceeds_the_shutdown_timeout(
    services: dict[str, Any], name: str
) -> None:
    fields = Settings.model_fields
    bound_s = fields["shutdown_timeout_s"].default
    if "drain_delay_s" in fields:
        bound_s += fields["drain_delay_s"].default
    assert float(services[name]["stop_grace_period"].removesuffix("s")) >= bound_s + 5


def test_gpus_are_reserved_for_the_services_that_need_them(services: dict[str, Any]) -> None:
    for name, service in services.items():
        resources = service.get("deploy", {}).get("resources", {})
        reserved = resources.get("reservations", {}).get("devices", [])
        expected = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
        assert reserved == (expected if name in GPU_SERVICES else []), name


def test_engines_are_built_with_the_serving_image(services: dict[str, Any]) -> None:
    assert services["build"]["image"] == services["gpu"]["image"]
    assert services["build"]["build"] == services["gpu"]["build"]


def test_prometheus_scrapes_the_service_in_both_profiles(
    services: dict[str, Any], project: Path
) -> None:
    config = (project / "docker/prometheus/prometheus.yml").read_text()
    for name in ("cpu", "gpu"):
        alias = services[name]["networks"]["default"]["aliases"][0]
        assert f'"{alias}:{services[name]["ports"][0]["target"]}"' in config


def test_prometheus_scrapes_dcgm_exporter_by_its_service_name(
    services: dict[str, Any], project: Path
) -> None:
    config = (project / "docker/prometheus/prometheus.yml").read_text()
    (name,) = (name for name, service in services.items() if "dcgm" in service["image"])
    assert f"names: [{name}], type: A, port: 9400" in config


def test_environment_variables_are_settings(services: dict[str, Any]) -> None:
    known = {f"CENTERNET_{name.upper()}" for name in Settings.model_fields}
    for name in ("cpu", "gpu"):
        assert set(services[name]["environment"]) <= known


def test_image_extras_exist(services: dict[str, Any], project: Path) -> None:
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name in ("gpu", "build", "export"):
        assert set(services[name]["build"]["args"]["EXTRAS"].split(",")) <= set(extras), name


def test_mounted_files_exist(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            assert volume["type"] == "volume" or Path(volume["source"]).is_dir(), name


def test_third_party_images_have_a_pinned_version(services: dict[str, Any]) -> None:
    # dcgm-exporter has two versions, that of DCGM and its own: 4.5.3-4.8.2-distroless.
    for name in ("prometheus", "grafana", "dcgm-exporter"):
        tag = services[name]["image"].rpartition(":")[2].removeprefix("v")
        for version in tag.removesuffix("-distroless").split("-"):
            assert len(version.split(".")) == 3, name
            assert version.replace(".", "").isdigit(), name
