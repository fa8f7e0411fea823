"""The manifests for KServe: validated by schemas, and compared with the service."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kubernetes import environment, validate
from support.promtool import Case, check_cases

from service.app import LAST_RUN_S
from service.http.routes import probes
from service.settings import Settings


@pytest.fixture(scope="module")
def runtime(project: Path) -> Any:
    return yaml.safe_load((project / "deploy/kserve/servingruntime.yaml").read_text())


@pytest.fixture(scope="module")
def inference_service(project: Path) -> Any:
    return yaml.safe_load((project / "deploy/kserve/inferenceservice.yaml").read_text())


@pytest.fixture
def settings(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment(runtime["spec"]["containers"][0]).items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize("name", ["runtime", "inference_service"])
def test_the_manifest_matches_the_schema(name: str, request: pytest.FixtureRequest) -> None:
    validate(request.getfixturevalue(name))


def test_schemas_reject_unknown_properties(runtime: Any, inference_service: Any) -> None:
    container = {**runtime["spec"]["containers"][0], "unknownProperty": 1}
    with pytest.raises(AssertionError, match="unknownProperty"):
        validate({**runtime, "spec": {**runtime["spec"], "containers": [container]}})
    predictor = {**inference_service["spec"]["predictor"], "unknownProperty": 1}
    with pytest.raises(AssertionError, match="unknownProperty"):
        validate({**inference_service, "spec": {"predictor": predictor}})


def test_the_runtime_has_the_format_and_the_protocol_of_the_service(
    runtime: Any, inference_service: Any
) -> None:
    model = inference_service["spec"]["predictor"]["model"]
    (supported,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"]["name"] == supported["name"]
    assert supported["autoSelect"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_ports_and_probes_are_those_of_the_service(runtime: Any, settings: Settings) -> None:
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"  # KServe replaces the container of this name
    assert [port["containerPort"] for port in container["ports"]] == [settings.port]
    paths = {route.path for route in probes.routes}
    for kind, path in (("startup", "/startupz"), ("liveness", "/livez"), ("readiness", "/readyz")):
        assert container[f"{kind}Probe"]["httpGet"] == {"path": path, "port": settings.port}
        assert path in paths


def test_the_service_reads_the_packages_that_kserve_copies(settings: Settings) -> None:
    assert settings.models == Path("/mnt/models")
    # KServe names neither the package nor a default model; a single package needs none.
    assert settings.default_model is None


def test_pods_have_the_time_to_drain(inference_service: Any, settings: Settings) -> None:
    predictor = inference_service["spec"]["predictor"]
    needed_s = settings.drain_delay_s + settings.shutdown_timeout_s + LAST_RUN_S
    assert predictor["terminationGracePeriodSeconds"] >= needed_s + 5
    assert predictor["timeout"] > settings.body_timeout_s + settings.request_timeout_s
    assert predictor["enableServiceLinks"] is False


def test_the_container_meets_the_restricted_pod_security_standard(runtime: Any) -> None:
    (container,) = runtime["spec"]["containers"]
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_query_of_the_autoscaler_gives_the_utilization(
    inference_service: Any, project: Path, tmp_path: Path
) -> None:
    (metric,) = inference_service["spec"]["predictor"]["autoScaling"]["metrics"]
    labels = 'namespace="NAMESPACE", pod="blood-cells-predictor-{}", model="blood_cells"'
    series = {}
    for pod, increase in (("a", 375), ("b", 750)):
        of_pod = labels.format(pod)
        series[f"centernet_images_total{{{of_pod}}}"] = f"0+{increase}x8"
        series[f"centernet_engine_calibrated_images_per_second{{{of_pod}}}"] = "100x8"
    samples = {metric["external"]["metric"]["query"]: {"{}": 0.75}}
    rules = project / "docker/prometheus/alerts.yml"
    check_cases({"load": Case(series, "2m", samples=samples)}, rules, {}, tmp_path)
