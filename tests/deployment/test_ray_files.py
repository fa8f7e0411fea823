"""The files for Ray Serve and KubeRay: validated by schemas, and compared with the service."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kubernetes import validate

from service.app import LAST_RUN_S
from service.ray_serve.autoscaling import QueueAgePolicy
from service.ray_serve.settings import read_settings
from service.settings import Settings


@pytest.fixture(scope="module")
def text(project: Path) -> str:
    return (project / "deploy/ray/serve.yaml").read_text()


@pytest.fixture(scope="module")
def config(text: str) -> Any:
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def ray_service(project: Path) -> Any:
    return yaml.safe_load((project / "deploy/ray/rayservice.yaml").read_text())


def groups(ray_service: Any) -> list[Any]:
    """Return the groups of pods."""
    cluster = ray_service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(ray_service: Any) -> list[Any]:
    """Return the container of each group."""
    found = []
    for group in groups(ray_service):
        (container,) = group["template"]["spec"]["containers"]
        found.append(container)
    return found


# metrics_interval_s: the variables that are to replace it have no effect in this version.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_accepts_the_file(config: Any) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed (make test-ray)")
    schema.ServeDeploySchema.model_validate(config)


def test_the_ray_service_matches_the_schemas(ray_service: Any) -> None:
    validate(ray_service)
    for group in groups(ray_service):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}}
        validate({**pod, "spec": group["template"]["spec"]})
    unknown = {**ray_service["spec"], "unknownProperty": 1}
    with pytest.raises(AssertionError, match="unknownProperty"):
        validate({**ray_service, "spec": unknown})


def test_the_ray_service_has_the_text_of_the_file(text: str, ray_service: Any) -> None:
    assert ray_service["spec"]["serveConfigV2"] == text.partition("\n")[2]


def test_no_process_sends_usage_statistics(ray_service: Any) -> None:
    for container in containers(ray_service):
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert variables["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_version_of_ray_is_that_of_the_extra(project: Path, ray_service: Any) -> None:
    pins = (project / "constraints.txt").read_text().splitlines()
    assert f"ray=={ray_service['spec']['rayClusterConfig']['rayVersion']}" in pins


def test_replicas_fit_into_the_workers(config: Any, ray_service: Any) -> None:
    _, *workers = containers(ray_service)
    largest = max(
        deployment["ray_actor_options"]["num_cpus"]
        for application in config["applications"]
        for deployment in application["deployments"]
    )
    for container in workers:
        # Ray itself needs a part of a core.
        assert int(container["resources"]["limits"]["cpu"]) > largest
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_every_application_agrees_with_the_service(
    config: Any, ray_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = [application["route_prefix"] for application in config["applications"]]
    assert len(prefixes) == len(set(prefixes)) > 1
    for application in config["applications"]:
        module, _, attribute = application["import_path"].partition(":")
        assert (module, attribute) == ("service.ray_serve.application", "app")
        assert importlib.util.find_spec(module) is not None
        with monkeypatch.context() as context:
            for name, value in application["runtime_env"]["env_vars"].items():
                context.setenv(name, value)
            settings = read_settings()
        (deployment,) = application["deployments"]
        assert deployment["name"] == "CenterNet"
        check_limits(config["http_options"], deployment, settings)
        for group in groups(ray_service)[1:]:
            grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
            assert grace_s > deployment["graceful_shutdown_timeout_s"] + LAST_RUN_S


def check_limits(http: Any, deployment: Any, settings: Settings) -> None:
    """Check that the limits of the service apply before those of Ray."""
    longest_s = settings.body_timeout_s + settings.request_timeout_s
    assert http["request_timeout_s"] > longest_s
    assert deployment["graceful_shutdown_timeout_s"] > longest_s + LAST_RUN_S
    assert deployment["max_ongoing_requests"] >= 2 * settings.max_queue_size
    policy = deployment["autoscaling_config"]["policy"]
    name = f"{QueueAgePolicy.__module__}:{QueueAgePolicy.__name__}"
    assert policy["policy_function"] == name
    QueueAgePolicy(**policy["policy_kwargs"])
