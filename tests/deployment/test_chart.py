"""The Helm chart: rendered by Helm, validated by schemas, and compared with the service."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kubernetes import (
    CHART,
    CRD_SCHEMAS,
    NAMESPACE,
    RELEASE,
    ChartError,
    Manifest,
    crd_schema,
    environment,
    find_helm,
    merge,
    only,
    pod_templates,
    render,
    validate,
)
from support.promtool import Case, check_cases

from deploy.kubernetes.generate_settings_schema import SET_BY_CHART, with_settings
from model_export.__main__ import main as centernet_export
from service.app import LAST_RUN_S
from service.http.routes import monitoring, probes
from service.settings import Settings

BASE = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}
GPU = ("values-gpu.yaml",)
STORAGE_EGRESS = [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443}]}]
CLAIM = {"models": {"source": "volumeClaim", "volumeClaim": {"claimName": "packages"}}}
KEDA = {"autoscaling": {"kind": "keda", "prometheusAddress": "http://prometheus.monitoring:9090"}}
MONITORING = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}
JOBS = merge(
    CLAIM,
    {
        "jobs": {
            "export": {
                "enabled": True,
                "args": [
                    *("package", "--checkpoint", "/models/dla.pth", "--output", "/models/dla"),
                ],
            },
            "build": {"enabled": True, "packages": ["dla", "blood_cells"]},
        }
    },
)
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], set[str]]] = {
    "CPU": ({}, (), BASE),
    "GPU": ({}, GPU, BASE),
    "ingress": (
        {
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "host": "vision.example.org",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "16m"},
                "tlsSecretName": "vision-tls",
            }
        },
        (),
        BASE | {"Ingress"},
    ),
    "gateway": (
        {
            "httpRoute": {
                "enabled": True,
                "parentRefs": [{"name": "public", "namespace": "gateways"}],
                "hostnames": ["vision.example.org"],
            }
        },
        (),
        BASE | {"HTTPRoute"},
    ),
    "gRPC": ({"settings": {"grpc_port": 8001}}, (), BASE),
    "HPA": ({"autoscaling": {"kind": "hpa"}}, (), BASE | {"HorizontalPodAutoscaler"}),
    "KEDA": (KEDA, (), BASE | {"ScaledObject"}),
    "GPU with KEDA": (KEDA, GPU, BASE | {"ScaledObject"}),
    "monitoring": (MONITORING, (), BASE | {"ServiceMonitor", "PrometheusRule", "ConfigMap"}),
    "API keys": (
        merge(MONITORING, {"apiKeys": {"secretName": "centernet-api-keys"}}),
        (),
        BASE | {"ServiceMonitor", "PrometheusRule", "ConfigMap"},
    ),
    "claim": (merge(CLAIM, {"models": {"volumeClaim": {"subPath": "production"}}}), (), BASE),
    "image volume": (
        {"models": {"source": "imageVolume", "imageVolume": {"reference": "registry/models:3"}}},
        (),
        BASE,
    ),
    "object storage": (
        {
            "models": {
                "source": "objectStorage",
                "objectStorage": {"path": "s3:bucket/models", "secretName": "storage"},
            },
            "networkPolicy": {"egress": STORAGE_EGRESS},
        },
        (),
        BASE,
    ),
    "jobs": (JOBS, (), BASE | {"Job"}),
    "jobs on GPU nodes": (JOBS, GPU, BASE | {"Job"}),
    "without optional parts": (
        {
            "podDisruptionBudget": {"enabled": False},
            "networkPolicy": {"enabled": False},
            "serviceAccount": {"create": False},
        },
        (),
        {"Deployment", "Service"},
    ),
    "scheduling": (
        {
            "imagePullSecrets": [{"name": "registry"}],
            "nodeSelector": {"pool": "vision"},
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
            "podAnnotations": {"example.org/team": "vision"},
            "serviceAccount": {"annotations": {"example.org/role": "reader"}},
            "service": {"type": "LoadBalancer", "annotations": {"example.org/internal": "true"}},
        },
        GPU,
        BASE,
    ),
}


@pytest.fixture(params=CASES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    values, files, _ = CASES[request.param]
    return render(values, files)


def server(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the pods that serve."""
    spec: Manifest = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def settings(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings that the service reads in the container."""
    variables = environment(server(manifests)["containers"][0])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings()


def gigabytes(quantity: str) -> int:
    """Return the bytes of a quantity in Gi."""
    return int(quantity.removesuffix("Gi")) * 1024**3


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_nothing(case: str) -> None:
    values, files, _ = CASES[case]
    for file in files:
        values = merge(yaml.safe_load((CHART / file).read_text()), values)
    report = find_helm().lint(CHART, values, strict=True, kube_version="v1.31.0")
    assert not report["errors"]
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("case", CASES)
def test_each_case_renders_exactly_its_kinds(case: str) -> None:
    values, files, kinds = CASES[case]
    assert {manifest["kind"] for manifest in render(values, files)} == kinds


def test_manifests_match_the_schemas(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE


def test_schemas_reject_an_unknown_property_of_each_kind() -> None:
    """The schemas would otherwise accept a misspelt property."""
    kinds = {}
    for values, files, _ in CASES.values():
        kinds |= {manifest["kind"]: manifest for manifest in render(values, files)}
    for manifest in kinds.values():
        manifest.get("spec", manifest)["unknownProperty"] = 1
        with pytest.raises((AssertionError, pytest.fail.Exception), match="unknownProperty"):
            validate(manifest)
    custom = {
        path.name
        for path in CRD_SCHEMAS.glob("*.json")
        if not path.name.startswith(("serving.kserve.io", "ray.io"))
    }
    assert len(custom) == sum(crd_schema(manifest) is not None for manifest in kinds.values())


def test_the_environment_consists_of_valid_settings(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings(manifests, monkeypatch)
    container = server(manifests)["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports.pop("http") == read.port
    assert ports == ({"grpc": read.grpc_port} if read.grpc_port else {})
    assert read.host == "0.0.0.0"
    for mount in container["volumeMounts"]:
        if mount["name"] == "models":
            assert mount["mountPath"] == str(read.models)
            assert mount["readOnly"]
        if mount["name"] == "api-keys":
            assert read.api_keys_file is not None
            assert str(read.api_keys_file.parent) == mount["mountPath"]
    assert server(manifests)["enableServiceLinks"] is False


def test_values_of_settings_are_written_as_the_service_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {
        "max_upload_bytes": 2**40,
        "max_queue_delay_ms": 1.5,
        "drain_delay_s": 7.5,
        "scaled_decoding": False,
        "cors_origins": "https://a.example,https://b.example",
        "default_model": None,
    }
    read = settings(render({"settings": values}), monkeypatch)
    assert read.max_upload_bytes == 2**40
    assert read.max_queue_delay_ms == 1.5
    assert read.scaled_decoding is False
    assert read.cors_origins == ("https://a.example", "https://b.example")
    assert read.default_model is None
    assert server(render({"settings": values}))["terminationGracePeriodSeconds"] == 38


def test_pods_have_the_time_to_drain(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings(manifests, monkeypatch)
    needed_s = read.drain_delay_s + read.shutdown_timeout_s + LAST_RUN_S
    assert server(manifests)["terminationGracePeriodSeconds"] >= needed_s + 5
    assert read.drain_delay_s >= 5, "load balancers need time to notice that a pod ends"
    assert "lifecycle" not in server(manifests)["containers"][0]


def test_probes_request_routes_of_the_service(manifests: list[Manifest]) -> None:
    container = server(manifests)["containers"][0]
    paths = [
        container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    ]
    assert paths == ["/startupz", "/livez", "/readyz"]
    assert set(paths) <= {route.path for route in probes.routes}
    for kind in ("startup", "liveness", "readiness"):
        assert container[f"{kind}Probe"]["httpGet"]["port"] == container["ports"][0]["name"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 900


def test_memory_covers_the_limits_of_the_service(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings(manifests, monkeypatch)
    resources = server(manifests)["containers"][0]["resources"]
    in_memory = sum(
        int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 1024**2
        for volume in server(manifests)["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    )
    assert in_memory
    # docs/measurements/container_memory.md: 411 MiB are resident when the service is idle.
    needed = read.max_upload_bytes + read.max_decoding_bytes + in_memory + 411 * 1024**2
    assert gigabytes(resources["limits"]["memory"]) > needed * read.workers
    # Otherwise the node may be short of it, and kills the pod.
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    # The service sizes its thread pools by the limit.
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"]


def test_every_container_meets_the_restricted_pod_security_standard(
    manifests: list[Manifest],
) -> None:
    for template in pod_templates(manifests):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
            assert "memory" in container["resources"]["limits"]


def test_the_user_of_the_pods_is_that_of_the_image(
    project: Path, manifests: list[Manifest]
) -> None:
    dockerfile = (project / "docker/Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+):", dockerfile, re.MULTILINE)
    for template in pod_templates(manifests):
        assert template["spec"]["securityContext"]["runAsUser"] == int(user)


def test_selectors_match_the_pods_that_serve(manifests: list[Manifest]) -> None:
    deployment = only(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    spread = server(manifests)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        only(manifests, "Service")["spec"]["selector"],
        spread,
    ]
    for manifest in manifests:
        if manifest["kind"] == "PodDisruptionBudget":
            selectors.append(manifest["spec"]["selector"]["matchLabels"])
        if manifest["kind"] == "NetworkPolicy" and manifest["metadata"]["name"] == RELEASE:
            selectors.append(manifest["spec"]["podSelector"]["matchLabels"])
    for selector in selectors:
        assert selector.items() <= labels
        assert selector["app.kubernetes.io/component"] == "server"


def test_traffic_reaches_the_port_of_the_container(manifests: list[Manifest]) -> None:
    ports = [port["name"] for port in server(manifests)["containers"][0]["ports"]]
    published, *others = only(manifests, "Service")["spec"]["ports"]
    assert [published["targetPort"], *(port["targetPort"] for port in others)] == ports
    service = only(manifests, "Service")["metadata"]["name"]
    for manifest in manifests:
        if manifest["kind"] == "Ingress":
            backend = manifest["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
            assert backend == {"name": service, "port": {"name": published["name"]}}
        if manifest["kind"] == "HTTPRoute":
            (backend,) = manifest["spec"]["rules"][0]["backendRefs"]
            assert backend == {"name": service, "port": published["port"]}
        if manifest["kind"] == "ServiceMonitor":
            (endpoint,) = manifest["spec"]["endpoints"]
            assert endpoint["port"] == published["name"]
            assert endpoint["path"] in {route.path for route in monitoring.routes}
            assert (
                manifest["spec"]["selector"]["matchLabels"].items()
                <= only(manifests, "Service")["metadata"]["labels"].items()
            )
        if manifest["kind"] == "NetworkPolicy" and manifest["metadata"]["name"] == RELEASE:
            assert manifest["spec"]["ingress"][0]["ports"] == [
                {"port": port, "protocol": "TCP"} for port in ports
            ]


def test_routes_wait_longer_than_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    values = merge(CASES["gateway"][0], {"settings": {"request_timeout_s": 120}})
    for case in (CASES["gateway"][0], values):
        manifests = render(case)
        read = settings(manifests, monkeypatch)
        timeout = only(manifests, "HTTPRoute")["spec"]["rules"][0]["timeouts"]["request"]
        assert int(timeout.removesuffix("s")) > read.body_timeout_s + read.request_timeout_s


@pytest.mark.parametrize("case", ["HPA", "KEDA"])
def test_autoscalers_own_the_number_of_pods(case: str) -> None:
    manifests = render(*CASES[case][:2])
    deployment = only(manifests, "Deployment")
    assert "replicas" not in deployment["spec"]
    (scaler,) = (
        manifest
        for manifest in manifests
        if manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    )
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert only(render(), "Deployment")["spec"]["replicas"] == 2


def series(
    pod: str, service: str = RELEASE, namespace: str = NAMESPACE, **values: str
) -> dict[str, str]:
    labels = f'namespace="{namespace}", service="{service}", pod="{pod}"'
    return {
        name if "{" in name else f'centernet_{name}{{{labels}, model="cells"}}': value
        for name, value in values.items()
    }


LOAD = {
    # 25 and 50 of 100 images/s; a pod of another release is ignored.
    **series("a", images_total="0+375x8", engine_calibrated_images_per_second="100x8"),
    **series("b", images_total="0+750x8", engine_calibrated_images_per_second="100x8"),
    **series("a", queue_oldest_age_seconds="0.5x8"),
    **series("b", queue_oldest_age_seconds="0.1x8"),
    **series(
        "c",
        service="other",
        images_total="0+1500x8",
        engine_calibrated_images_per_second="100x8",
        queue_oldest_age_seconds="9x8",
    ),
    f'centernet_decode_queue_oldest_age_seconds{{namespace="{NAMESPACE}", service="{RELEASE}", '
    'pod="b"}': "0.7x8",
}


def test_keda_queries_give_the_utilization_and_the_age_of_the_oldest_image(
    tmp_path: Path, project: Path
) -> None:
    utilization, age = only(render(KEDA), "ScaledObject")["spec"]["triggers"]
    samples = {
        utilization["metadata"]["query"]: {"{}": 0.75},
        age["metadata"]["query"]: {"{}": 0.7},
    }
    rules = project / "docker/prometheus/alerts.yml"
    check_cases({"load": Case(LOAD, "2m", samples=samples)}, rules, {}, tmp_path)


def test_prometheus_adapter_has_the_metrics_of_the_autoscaler(
    tmp_path: Path, project: Path
) -> None:
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter-values.yaml").read_text())
    queries = {}
    for rule in adapter["rules"]["custom"]:
        replacements = {
            "<<.GroupBy>>": "pod",
            "<<.LabelMatchers>>": f'namespace="{NAMESPACE}", pod=~"a|b"',
            "<<.Series>>": rule["seriesQuery"].partition("{")[0],
        }
        query = rule["metricsQuery"]
        for placeholder, text in replacements.items():
            query = query.replace(placeholder, text)
        queries[rule["name"]["as"]] = query
    metrics = only(render({"autoscaling": {"kind": "hpa"}}), "HorizontalPodAutoscaler")["spec"]
    assert [metric["pods"]["metric"]["name"] for metric in metrics["metrics"]] == list(queries)
    targets = [metric["pods"]["target"]["averageValue"] for metric in metrics["metrics"]]
    assert targets == ["700m", "200m"]
    samples = {
        queries["centernet_engine_utilization"]: {'{pod="a"}': 0.25, '{pod="b"}': 0.5},
        queries["centernet_queue_age_seconds"]: {'{pod="a"}': 0.5, '{pod="b"}': 0.7},
    }
    rules = project / "docker/prometheus/alerts.yml"
    check_cases({"load": Case(LOAD, "2m", samples=samples)}, rules, {}, tmp_path)


@pytest.mark.parametrize("gpu", [False, True])
def test_rules_are_those_of_compose(project: Path, gpu: bool) -> None:
    values = merge(MONITORING, {"prometheusRule": {"gpu": gpu}})
    groups = yaml.safe_load((project / "docker/prometheus/alerts.yml").read_text())["groups"]
    assert [group["name"] for group in groups] == ["centernet", "centernet-gpu"]
    rendered = only(render(values), "PrometheusRule")["spec"]["groups"]
    assert rendered == (groups if gpu else groups[:1])


def test_the_dashboard_is_that_of_compose(project: Path) -> None:
    dashboard = json.loads((project / "docker/grafana/dashboards/centernet.json").read_text())
    data = only(render(MONITORING), "ConfigMap")["data"]
    assert json.loads(data["centernet.json"]) == dashboard


def test_packaged_charts_contain_the_files_of_compose(project: Path, tmp_path: Path) -> None:
    helm = find_helm()
    with helm.Chart.load(helm.package(CHART, destination=tmp_path)) as chart:
        files = {file["name"]: len(file["data"]) for file in chart.files}
    for name, source in (
        ("files/alerts.yml", "docker/prometheus/alerts.yml"),
        ("files/dashboard.json", "docker/grafana/dashboards/centernet.json"),
    ):
        assert (CHART / name).resolve() == project / source
        assert files[name] == len((project / source).read_text())


def test_prometheus_uses_the_job_of_the_alerts_and_an_api_key(project: Path) -> None:
    alerts = (project / "docker/prometheus/alerts.yml").read_text()
    (endpoint,) = only(render(MONITORING), "ServiceMonitor")["spec"]["endpoints"]
    (relabeling,) = endpoint["relabelings"]
    assert f'up{{{relabeling["targetLabel"]}="{relabeling["replacement"]}"}}' in alerts
    assert "authorization" not in endpoint
    (endpoint,) = only(render(CASES["API keys"][0]), "ServiceMonitor")["spec"]["endpoints"]
    credentials = {"name": "centernet-api-keys", "key": "metrics"}
    assert endpoint["authorization"] == {"credentials": credentials}


def test_gpus_are_requested_with_the_values_for_gpus_only() -> None:
    for files, count in (((), None), (GPU, 1)):
        limits = server(render(files=files))["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == count


def test_object_storage_is_copied_before_the_service_starts() -> None:
    manifests = render(CASES["object storage"][0])
    (copy,) = server(manifests)["initContainers"]
    assert copy["args"][-2:] == ["s3:bucket/models", "/models"]
    assert copy["envFrom"] == [{"secretRef": {"name": "storage"}}]
    shared = {"name": "models", "emptyDir": {"sizeLimit": "4Gi"}}
    assert shared in server(manifests)["volumes"]
    assert only(manifests, "NetworkPolicy")["spec"]["egress"] == STORAGE_EGRESS


def test_the_service_may_open_no_connections_by_default() -> None:
    policy = only(render(), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert policy["ingress"][0]["from"] == [{"podSelector": {}}]


@pytest.mark.parametrize("files", [(), GPU])
def test_jobs_run_on_the_nodes_of_the_service_without_a_network(files: tuple[str, ...]) -> None:
    values = merge(JOBS, {"nodeSelector": {"pool": "vision"}})
    manifests = render(values, files)
    jobs = [manifest for manifest in manifests if manifest["kind"] == "Job"]
    assert [job["metadata"]["name"].rpartition("-")[0] for job in jobs] == [
        *("centernet-build", "centernet-build", "centernet-export")
    ]
    (policy,) = (
        manifest["spec"]
        for manifest in manifests
        if manifest["kind"] == "NetworkPolicy" and manifest["metadata"]["name"] != RELEASE
    )
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(policy)
    for job in jobs:
        labels = job["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        service = only(manifests, "Service")["spec"]["selector"]
        assert not service.items() <= labels.items(), "a job must not receive requests"
        pod = job["spec"]["template"]["spec"]
        (claim,) = (volume for volume in pod["volumes"] if volume["name"] == "models")
        assert claim["persistentVolumeClaim"] == {"claimName": "packages"}
    build = jobs[0]["spec"]["template"]["spec"]
    for name in ("nodeSelector", "tolerations"):
        assert build.get(name) == server(manifests).get(name)
    (container,), (serving,) = build["containers"], server(manifests)["containers"]
    assert container["image"] == serving["image"], "engines run only with the TensorRT of the image"
    assert container["resources"] == serving["resources"]
    assert jobs[0]["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_jobs_call_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [manifest for manifest in render(JOBS) if manifest["kind"] == "Job"]
    for job, step in zip(jobs, ("build", "build", "package"), strict=True):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        command = [*container["command"], *container.get("args", ())]
        assert command[:2] == ["centernet-export", step]
        with pytest.raises(SystemExit) as ended:
            centernet_export([*command[1:], "--help"])
        assert ended.value.code == 0
        assert f"usage: centernet-export {step}" in capsys.readouterr().out


def test_an_upgrade_repeats_an_export_only_if_it_changed() -> None:
    def name(values: dict[str, Any]) -> str:
        jobs = [manifest for manifest in render(merge(JOBS, values)) if manifest["kind"] == "Job"]
        return str(jobs[-1]["metadata"]["name"])

    other = {"jobs": {"export": {"args": ["package", "--output", "/models/other"]}}}
    assert name({}) == name({"replicas": 3})
    assert name({}) != name(other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"settings": {"drain_delay": 3}}, "additional properties 'drain_delay' not allowed"),
        ({"settings": {"port": 9000}}, "additional properties 'port' not allowed"),
        ({"settings": {"max_batch_size": 100}}, "maximum: got 100, want 64"),
        ({"settings": {"backend": "tensorflow"}}, "value must be one of 'auto'"),
        ({"settings": {"drain_delay_s": None}}, "missing property 'drain_delay_s'"),
        ({"image": {"tga": "gpu"}}, "additional properties 'tga' not allowed"),
        ({"models": {"source": "volumeClaim"}}, "/models/volumeClaim/claimName"),
        ({"models": {"source": "imageVolume"}}, "/models/imageVolume/reference"),
        ({"models": {"source": "objectStorage"}}, "/models/objectStorage/path"),
        (
            {"models": {"source": "objectStorage", "objectStorage": {"path": "s3:bucket"}}},
            "networkPolicy.egress",
        ),
        ({"autoscaling": {"kind": "keda"}}, "/autoscaling/prometheusAddress"),
        ({"ingress": {"enabled": True}}, "/ingress/host"),
        ({"httpRoute": {"enabled": True}}, "/httpRoute/parentRefs"),
        (
            {"jobs": {"build": {"enabled": True, "packages": ["dla"]}}},
            "set models.source to volumeClaim, received image",
        ),
        ({"jobs": {"build": {"enabled": True, "packages": ["../x"]}}}, "does not match pattern"),
    ],
)
def test_wrong_values_are_rejected_before_the_installation(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChartError, match=re.escape(message)):
        render(values)


def test_the_schema_of_the_values_has_every_setting() -> None:
    text = (CHART / "values.schema.json").read_text()
    assert text == with_settings(text), "run `make settings`"
    properties = json.loads(text)["properties"]["settings"]["properties"]
    assert set(properties) | SET_BY_CHART == set(Settings.model_fields)
