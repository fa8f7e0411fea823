"""Unit tests of the Prometheus alert rules, run by ``promtool test rules``."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.dashboard import DCGM_METRICS
from support.promtool import Alert, Case, check_cases, run_promtool

from service.http.deepstack import deepstack
from service.http.open_inference import inference_routes
from service.http.routes import detection_routes

A = 'instance="a:8000"'
JOB = f'job="centernet", {A}'
MODEL = f'{JOB}, model="cells"'
INSTANCE = {"instance": "a:8000"}
MODEL_LABELS = {**INSTANCE, "job": "centernet", "model": "cells"}

UP = f"up{{{JOB}}}"
READY = f'centernet_model_ready{{{MODEL}, version="1"}}'
NO_VERSION = f'centernet_model_ready{{{JOB}, model="bad", version=""}}'
QUEUE = f"centernet_queue_inputs{{{MODEL}}}"
LIMIT = f"centernet_queue_limit_inputs{{{MODEL}}}"
AGE = f"centernet_queue_oldest_age_seconds{{{MODEL}}}"
IMAGES = f"centernet_images_total{{{MODEL}}}"
CALIBRATED = f"centernet_engine_calibrated_images_per_second{{{MODEL}}}"
LAG = f"centernet_event_loop_lag_seconds{{{JOB}}}"
MEMORY = f"process_resident_memory_bytes{{{JOB}}}"
DCGM_JOB = 'job="dcgm", instance="172.18.0.2:9400"'
DCGM_UP = f"up{{{DCGM_JOB}}}"
GPU = f'{DCGM_JOB}, gpu="0", modelName="NVIDIA H200"'
GPU_LABELS = {
    "job": "dcgm",
    "instance": "172.18.0.2:9400",
    "gpu": "0",
    "modelName": "NVIDIA H200",
}
GPU_MEMORY_USED = f"DCGM_FI_DEV_FB_USED{{{GPU}}}"
GPU_MEMORY_FREE = f"DCGM_FI_DEV_FB_FREE{{{GPU}}}"
GPU_UTILIZATION = f"DCGM_FI_DEV_GPU_UTIL{{{GPU}}}"


def errors(code: str) -> str:
    return f'centernet_request_errors_total{{{JOB}, code="{code}"}}'


def requests(route: str, status: str) -> str:
    labels = f'{JOB}, route="{route}", method="POST", status="{status}"'
    return f"centernet_http_requests_total{{{labels}}}"


def seconds(route: str, **buckets: str) -> dict[str, str]:
    edges = {"fast": "1.0", "slow": "2.5", "all": "+Inf"}
    name = "centernet_http_request_duration_seconds_bucket"
    return {
        f'{name}{{{JOB}, route="{route}", le="{edges[bucket]}"}}': values
        for bucket, values in buckets.items()
    }


def self_test(result: str) -> str:
    return f'centernet_self_test_runs_total{{{MODEL}, result="{result}"}}'


FIRING: dict[str, list[tuple[Case, Alert]]] = {
    "CenternetDown": [
        (
            Case({UP: "0x8"}, "2m"),
            Alert({**INSTANCE, "job": "centernet"}, "Prometheus cannot scrape a:8000."),
        ),
        (
            Case({'up{job="other"}': "1x8"}, "2m"),
            Alert({"job": "centernet"}, "Prometheus cannot scrape the service."),
        ),
    ],
    "CenternetNotReady": [
        (
            Case({UP: "1x24", READY: "1x3 0x20"}, "6m"),
            Alert(
                {**MODEL_LABELS, "version": "1"},
                "a:8000 is up, but model cells, version 1, is not ready.",
            ),
        ),
        (
            # A model whose model.json cannot be read has no version.
            Case({UP: "1x24", READY: "1x24", NO_VERSION: "0x24"}, "6m"),
            Alert(
                {**MODEL_LABELS, "model": "bad"},
                "a:8000 is up, but model bad is not ready.",
            ),
        ),
        (
            Case({UP: "1x24"}, "6m"),
            Alert({**INSTANCE, "job": "centernet"}, "a:8000 is up, but has not loaded its models."),
        ),
    ],
    "CenternetEngineErrors": [
        (
            Case({errors(code): "0x8 1x8"}, "3m"),
            Alert(
                INSTANCE,
                "a:8000: the inference engine fails on batches; see the log for the cause.",
            ),
        )
        for code in ("engine_failed", "engine_broken")
    ],
    "CenternetInternalErrors": [
        (
            Case({errors("internal_error"): "0x8 1x8"}, "3m"),
            Alert(
                INSTANCE,
                "a:8000 returned status 500 because of an unexpected exception; see the log.",
            ),
        )
    ],
    "CenternetSelfTestFailed": [
        (
            Case({self_test(result): "0x8 1x8", self_test("ok"): "0+1x16"}, "3m"),
            Alert(
                {**INSTANCE, "model": "cells"},
                "a:8000: model cells returns unexpected detections for the self-test image.",
            ),
        )
        for result in ("wrong", "failed")
    ],
    "CenternetHighLatency": [
        (
            Case(seconds(route, fast="0+90x80", slow="0+100x80", all="0+100x80"), "16m"),
            Alert(INSTANCE, "a:8000: the 99th percentile of the request latency is 2.35s."),
        )
        for route in ("/detect", "/models/{name}/detect/batch")
    ],
    "CenternetQueueNearLimit": [
        (
            Case({QUEUE: "112x16", LIMIT: "128x16"}, "3m"),
            Alert(MODEL_LABELS, "a:8000: the queue of cells is 87.5% full."),
        )
    ],
    "CenternetHighRejectionRate": [
        (
            Case(
                {
                    errors(code): "0+15x60",
                    requests("/detect", "200"): "0+105x60",
                    requests("/models/{name}/detect", "429"): "0+45x60",
                },
                "12m",
            ),
            Alert(INSTANCE, "a:8000 rejects 10% of the requests for lack of capacity."),
        )
        for code in ("queue_full", "deadline_unreachable", "deadline_exceeded")
    ]
    + [
        (
            Case(
                {
                    requests("/detect/batch", "200"): "0+105x60",
                    requests("/models/{name}/detect/batch", "503"): "0+45x60",
                },
                "12m",
            ),
            Alert(INSTANCE, "a:8000 rejects 30% of the requests for lack of capacity."),
        )
    ],
    "CenternetLowThroughput": [
        (
            Case({IMAGES: "0+300x60", CALIBRATED: "50x60", AGE: "0.5x60"}, "12m"),
            Alert(
                MODEL_LABELS,
                "a:8000: cells runs at 40% of its calibrated throughput although "
                "inputs are queued.",
            ),
        )
    ],
    "CenternetEventLoopLag": [
        (
            Case({LAG: "0.3x16"}, "3m"),
            Alert(
                {**INSTANCE, "job": "centernet"},
                "a:8000: the event loop lags by 300ms; probes may time out.",
            ),
        )
    ],
    "CenternetMemoryGrowth": [
        (
            # 5 MiB per five minutes.
            Case({MEMORY: "1000000000+5242880x110"}, "9h", "5m"),
            Alert(
                {**INSTANCE, "job": "centernet"},
                "a:8000: resident memory grew by 360MiB in six hours.",
            ),
        )
    ],
    "CenternetGpuMetricsDown": [
        (
            Case({DCGM_UP: "0x24"}, "6m"),
            Alert(
                {"job": "dcgm", "instance": "172.18.0.2:9400"},
                "Prometheus cannot scrape dcgm-exporter at 172.18.0.2:9400.",
            ),
        )
    ],
    "CenternetGpuMemoryNearLimit": [
        (
            Case({GPU_MEMORY_USED: "78x60", GPU_MEMORY_FREE: "2x60"}, "11m"),
            Alert(GPU_LABELS, "GPU 0 (NVIDIA H200): 97.5% of the memory is in use."),
        )
    ],
    "CenternetGpuUnderutilized": [
        (
            Case({GPU_UTILIZATION: "10x80", AGE: "0.5x80"}, "16m"),
            Alert(GPU_LABELS, "GPU 0 (NVIDIA H200) is 10 % utilized although inputs are queued."),
        )
    ],
}

INACTIVE: dict[str, dict[str, Case]] = {
    "CenternetDown": {
        "up": Case({UP: "1x8"}, "2m"),
        "missed one scrape": Case({UP: "1x4 0 1x4"}, "2m"),
    },
    "CenternetNotReady": {
        "ready": Case({UP: "1x24", READY: "1x24"}, "6m"),
        "just starting": Case({UP: "1x24"}, "4m"),
        "down, which is reported by CenternetDown": Case({UP: "0x24"}, "6m"),
    },
    "CenternetEngineErrors": {
        "long ago": Case({errors("engine_failed"): "0 1x40"}, "9m"),
        "error of another kind": Case({errors("bad_image"): "0+9x16"}, "3m"),
    },
    "CenternetInternalErrors": {"engine error": Case({errors("engine_failed"): "0+9x16"}, "3m")},
    "CenternetSelfTestFailed": {
        "expected detections": Case({self_test("ok"): "0+1x16", self_test("wrong"): "0x16"}, "3m")
    },
    "CenternetHighLatency": {
        "fast": Case(seconds("/detect", fast="0+100x80", slow="0+100x80", all="0+100x80"), "16m"),
        "slow requests of another route": Case(
            seconds("/docs", fast="0x80", slow="0+9x80", all="0+9x80"), "16m"
        ),
        "no requests": Case(seconds("/detect", fast="0x80", slow="0x80", all="0x80"), "16m"),
        "slow for a short time": Case(
            seconds("/detect", fast="0x9 9+100x70", slow="0+1x9 9+100x70", all="0+1x9 9+100x70"),
            "16m",
        ),
    },
    "CenternetQueueNearLimit": {
        "half full": Case({QUEUE: "64x16", LIMIT: "128x16"}, "3m"),
        "full for a short time": Case({QUEUE: "0x6 128x3 0x6", LIMIT: "128x16"}, "3m"),
    },
    "CenternetHighRejectionRate": {
        "low rejection rate": Case(
            {errors("queue_full"): "0+3x60", requests("/detect", "200"): "0+150x60"}, "12m"
        ),
        "client errors": Case(
            {
                errors("bad_image"): "0+90x60",
                errors("rate_limited"): "0+90x60",
                requests("/detect", "400"): "0+150x60",
            },
            "12m",
        ),
        "no requests": Case(
            {errors("queue_full"): "0x60", requests("/detect", "200"): "0x60"}, "12m"
        ),
        "probes while the models are loaded": Case(
            {
                errors("not_ready"): "0+6x60",
                requests("/readyz", "503"): "0+6x60",
                requests("/detect", "200"): "0x60",
            },
            "12m",
        ),
        "batch requests": Case(
            {errors("queue_full"): "0+3x60", requests("/detect/batch", "200"): "0+150x60"}, "12m"
        ),
    },
    "CenternetLowThroughput": {
        "fast": Case({IMAGES: "0+690x60", CALIBRATED: "50x60", AGE: "0.5x60"}, "12m"),
        "nothing queued": Case({IMAGES: "0+300x60", CALIBRATED: "50x60", AGE: "0x60"}, "12m"),
        "queued occasionally": Case(
            {IMAGES: "0+300x60", CALIBRATED: "50x60", AGE: "0.5 0 " * 30}, "12m"
        ),
    },
    "CenternetEventLoopLag": {
        "no lag": Case({LAG: "0.002x16"}, "3m"),
        "a single lag": Case({LAG: "0x6 0.9 0x8"}, "3m"),
    },
    "CenternetMemoryGrowth": {
        # 2 MiB per five minutes.
        "slow growth": Case({MEMORY: "1000000000+2097152x110"}, "9h", "5m"),
        "growth during start-up only": Case(
            {MEMORY: "80000000 500000000 1000000000x110"}, "9h", "5m"
        ),
    },
    "CenternetGpuMetricsDown": {
        "up": Case({DCGM_UP: "1x24"}, "6m"),
        "no GPU profile": Case({UP: "1x24"}, "6m"),
        "down for a short time": Case({DCGM_UP: "1x8 0x8 1x8"}, "6m"),
    },
    "CenternetGpuMemoryNearLimit": {
        "enough free memory": Case({GPU_MEMORY_USED: "70x60", GPU_MEMORY_FREE: "10x60"}, "11m")
    },
    "CenternetGpuUnderutilized": {
        "busy": Case({GPU_UTILIZATION: "90x80", AGE: "0.5x80"}, "16m"),
        "nothing queued": Case({GPU_UTILIZATION: "10x80", AGE: "0x80"}, "16m"),
        "queued occasionally": Case({GPU_UTILIZATION: "10x80", AGE: "0.5 0 " * 40}, "16m"),
    },
}


@pytest.fixture(scope="module")
def rules(project: Path) -> Path:
    return project / "docker/prometheus/alerts.yml"


@pytest.fixture(scope="module")
def severities(rules: Path) -> dict[str, str]:
    """Severity by alert name."""
    pattern = r"- alert: (\w+).*?severity: (\w+)"
    return dict(re.findall(pattern, rules.read_text(), flags=re.DOTALL))


def test_promtool_accepts_the_prometheus_configuration(project: Path) -> None:
    run_promtool("check", "config", project / "docker/prometheus/prometheus.yml")


def test_every_alert_has_firing_and_inactive_cases_and_is_documented(
    severities: dict[str, str], project: Path
) -> None:
    assert set(FIRING) == set(INACTIVE) == set(severities)
    text = (project / "docs/deployment.md").read_text()
    documented = re.findall(r"^\| `(Centernet\w+)` \|", text, re.MULTILINE)
    assert documented == list(severities)


def test_gpu_alerts_use_metrics_that_dcgm_exporter_has_by_default(rules: Path) -> None:
    metrics = set(re.findall(r"DCGM_\w*[A-Z]", rules.read_text()))
    assert metrics <= DCGM_METRICS
    assert metrics


@pytest.mark.parametrize("rule", FIRING)
def test_alert_fires_only_in_the_firing_cases(
    rule: str, rules: Path, severities: dict[str, str], tmp_path: Path
) -> None:
    cases = {
        f"fires ({number})": replace(case, alerts={rule: [alert]})
        for number, (case, alert) in enumerate(FIRING[rule], start=1)
    }
    for reason, case in INACTIVE[rule].items():
        cases[f"inactive: {reason}"] = replace(case, alerts={rule: []})
    check_cases(cases, rules, severities, tmp_path)


def test_expressions_match_the_routes_that_detect(project: Path) -> None:
    files = ("prometheus/alerts.yml", "grafana/dashboards/centernet.json")
    text = "".join((project / "docker" / file).read_text() for file in files)
    (expression,) = set(re.findall(r'route=~\\?"([^"\\]*)', text))
    every = [*detection_routes(), *inference_routes(), *deepstack.routes]
    routes = {route.path for route in every}
    matched = {path for path in routes if re.fullmatch(expression, path)}
    assert routes - matched == {"/v1/vision/custom/list"}
    assert not re.fullmatch(expression, "/livez")
