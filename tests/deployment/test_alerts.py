"""Every alert fires when it should and is silent when it should be, says a real Prometheus."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.promtool import Alert, Case, check_cases, run_promtool

A = 'instance="a:8000"'
JOB = f'job="centernet", {A}'
MODEL = f'{JOB}, model="cells"'
FROM_A = {"instance": "a:8000"}
OF_MODEL = {**FROM_A, "job": "centernet", "model": "cells"}

UP = f"up{{{JOB}}}"
READY = f'centernet_model_ready{{{MODEL}, version="1"}}'
QUEUE = f"centernet_queue_inputs{{{MODEL}}}"
LIMIT = f"centernet_queue_limit_inputs{{{MODEL}}}"
AGE = f"centernet_queue_oldest_age_seconds{{{MODEL}}}"
IMAGES = f"centernet_images_total{{{MODEL}}}"
CALIBRATED = f"centernet_engine_calibrated_images_per_second{{{MODEL}}}"
LAG = f"centernet_event_loop_lag_seconds{{{JOB}}}"
MEMORY = f"process_resident_memory_bytes{{{JOB}}}"
GPU_USED = f'centernet_gpu_memory_used_bytes{{{JOB}, gpu="0"}}'
GPU_TOTAL = f'centernet_gpu_memory_total_bytes{{{JOB}, gpu="0"}}'


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


FIRES: dict[str, list[tuple[Case, Alert]]] = {
    "CenternetDown": [
        (
            Case({UP: "0x8"}, "2m"),
            Alert({**FROM_A, "job": "centernet"}, "a:8000 does not answer Prometheus."),
        ),
        (
            Case({'up{job="other"}': "1x8"}, "2m"),
            Alert({"job": "centernet"}, "The service does not answer Prometheus."),
        ),
    ],
    "CenternetNotReady": [
        (
            Case({UP: "1x24", READY: "1x3 0x20"}, "6m"),
            Alert(
                {**OF_MODEL, "version": "1"},
                "a:8000 is up, but model cells takes no requests.",
            ),
        ),
        (
            Case({UP: "1x24"}, "6m"),
            Alert({**FROM_A, "job": "centernet"}, "a:8000 is up, but has not loaded its models."),
        ),
    ],
    "CenternetEngineFailing": [
        (
            Case({errors(code): "0x8 1x8"}, "3m"),
            Alert(FROM_A, "a:8000: the engine fails on batches; the log has the cause."),
        )
        for code in ("engine_failed", "engine_broken")
    ],
    "CenternetBugs": [
        (
            Case({errors("internal_error"): "0x8 1x8"}, "3m"),
            Alert(FROM_A, "a:8000 answered 500 for no foreseen reason; the log has the cause."),
        )
    ],
    "CenternetSelfTestFailed": [
        (
            Case({self_test(result): "0x8 1x8", self_test("ok"): "0+1x16"}, "3m"),
            Alert(
                {**FROM_A, "model": "cells"},
                "a:8000: model cells does not find what it should in a known image.",
            ),
        )
        for result in ("wrong", "failed")
    ],
    "CenternetSlowAnswers": [
        (
            Case(seconds("/detect", fast="0+90x80", slow="0+100x80", all="0+100x80"), "16m"),
            Alert(FROM_A, "a:8000: one request in a hundred takes over 2.35s."),
        )
    ],
    "CenternetQueueNearLimit": [
        (
            Case({QUEUE: "112x16", LIMIT: "128x16"}, "3m"),
            Alert(OF_MODEL, "a:8000: the queue of cells is 87.5% full."),
        )
    ],
    "CenternetRejecting": [
        (
            Case(
                {
                    errors(code): "0+15x60",
                    requests("/detect", "200"): "0+105x60",
                    requests("/models/{name}/detect", "429"): "0+45x60",
                },
                "12m",
            ),
            Alert(FROM_A, "a:8000 turns away 10% of the requests."),
        )
        for code in ("queue_full", "deadline_unreachable", "deadline_exceeded", "not_ready")
    ],
    "CenternetInefficient": [
        (
            Case({IMAGES: "0+300x60", CALIBRATED: "50x60", AGE: "0.5x60"}, "12m"),
            Alert(
                OF_MODEL,
                "a:8000: cells runs at 40% of its calibrated rate though inputs wait.",
            ),
        )
    ],
    "CenternetEventLoopBlocked": [
        (
            Case({LAG: "0.3x16"}, "3m"),
            Alert(
                {**FROM_A, "job": "centernet"},
                "a:8000: the event loop is 300ms late; probes will time out.",
            ),
        )
    ],
    "CenternetMemoryGrowing": [
        (
            # 5 MiB in five minutes.
            Case({MEMORY: "1000000000+5242880x110"}, "9h", "5m"),
            Alert({**FROM_A, "job": "centernet"}, "a:8000 has grown by 360MiB in six hours."),
        )
    ],
    "CenternetGpuMemoryFull": [
        (
            Case({GPU_USED: "78x60", GPU_TOTAL: "80x60"}, "11m"),
            Alert(
                {**FROM_A, "job": "centernet", "gpu": "0"},
                "a:8000: the memory of GPU 0 is 97.5% full.",
            ),
        )
    ],
}

SILENT: dict[str, dict[str, Case]] = {
    "CenternetDown": {
        "up": Case({UP: "1x8"}, "2m"),
        "missed one scrape": Case({UP: "1x4 0 1x4"}, "2m"),
    },
    "CenternetNotReady": {
        "ready": Case({UP: "1x24", READY: "1x24"}, "6m"),
        "just starting": Case({UP: "1x24"}, "4m"),
        "down, which is another alert": Case({UP: "0x24"}, "6m"),
    },
    "CenternetEngineFailing": {
        "long ago": Case({errors("engine_failed"): "0 1x40"}, "9m"),
        "another error": Case({errors("bad_image"): "0+9x16"}, "3m"),
    },
    "CenternetBugs": {"the engine's": Case({errors("engine_failed"): "0+9x16"}, "3m")},
    "CenternetSelfTestFailed": {
        "finds everything": Case({self_test("ok"): "0+1x16", self_test("wrong"): "0x16"}, "3m")
    },
    "CenternetSlowAnswers": {
        "fast": Case(seconds("/detect", fast="0+100x80", slow="0+100x80", all="0+100x80"), "16m"),
        "not detecting": Case(seconds("/docs", fast="0x80", slow="0+9x80", all="0+9x80"), "16m"),
        "nobody asks": Case(seconds("/detect", fast="0x80", slow="0x80", all="0x80"), "16m"),
        "for a moment": Case(
            seconds("/detect", fast="0x9 9+100x70", slow="0+1x9 9+100x70", all="0+1x9 9+100x70"),
            "16m",
        ),
    },
    "CenternetQueueNearLimit": {
        "half full": Case({QUEUE: "64x16", LIMIT: "128x16"}, "3m"),
        "full for a moment": Case({QUEUE: "0x6 128x3 0x6", LIMIT: "128x16"}, "3m"),
    },
    "CenternetRejecting": {
        "few": Case(
            {errors("queue_full"): "0+3x60", requests("/detect", "200"): "0+150x60"}, "12m"
        ),
        "faults of clients": Case(
            {
                errors("bad_image"): "0+90x60",
                errors("rate_limited"): "0+90x60",
                requests("/detect", "400"): "0+150x60",
            },
            "12m",
        ),
        "nobody asks": Case(
            {errors("queue_full"): "0x60", requests("/detect", "200"): "0x60"}, "12m"
        ),
    },
    "CenternetInefficient": {
        "fast": Case({IMAGES: "0+690x60", CALIBRATED: "50x60", AGE: "0.5x60"}, "12m"),
        "nothing waits": Case({IMAGES: "0+300x60", CALIBRATED: "50x60", AGE: "0x60"}, "12m"),
        "something waits now and then": Case(
            {IMAGES: "0+300x60", CALIBRATED: "50x60", AGE: "0.5 0 " * 30}, "12m"
        ),
    },
    "CenternetEventLoopBlocked": {
        "on time": Case({LAG: "0.002x16"}, "3m"),
        "once": Case({LAG: "0x6 0.9 0x8"}, "3m"),
    },
    "CenternetMemoryGrowing": {
        # 2 MiB in five minutes.
        "slowly": Case({MEMORY: "1000000000+2097152x110"}, "9h", "5m"),
        "only at the start": Case({MEMORY: "80000000 500000000 1000000000x110"}, "9h", "5m"),
    },
    "CenternetGpuMemoryFull": {"room": Case({GPU_USED: "70x60", GPU_TOTAL: "80x60"}, "11m")},
}


@pytest.fixture(scope="module")
def rules(project: Path) -> Path:
    return project / "docker/prometheus/alerts.yml"


@pytest.fixture(scope="module")
def severities(rules: Path) -> dict[str, str]:
    """The severity of each alert."""
    pattern = r"- alert: (\w+).*?severity: (\w+)"
    return dict(re.findall(pattern, rules.read_text(), flags=re.DOTALL))


def test_prometheus_accepts_its_configuration(project: Path) -> None:
    run_promtool("check", "config", project / "docker/prometheus/prometheus.yml")


def test_every_alert_is_tested_both_ways_and_documented(
    severities: dict[str, str], project: Path
) -> None:
    assert set(FIRES) == set(SILENT) == set(severities)
    text = (project / "docs/deployment.md").read_text()
    documented = re.findall(r"^\| `(Centernet\w+)` \|", text, re.MULTILINE)
    assert documented == list(severities)


@pytest.mark.parametrize("rule", FIRES)
def test_it_fires_when_it_should(
    rule: str, rules: Path, severities: dict[str, str], tmp_path: Path
) -> None:
    cases = {
        f"fires ({number})": replace(case, alerts={rule: [alert]})
        for number, (case, alert) in enumerate(FIRES[rule], start=1)
    }
    for reason, case in SILENT[rule].items():
        cases[f"silent: {reason}"] = replace(case, alerts={rule: []})
    check_cases(cases, rules, severities, tmp_path)
