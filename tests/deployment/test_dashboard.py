"""The Grafana dashboard: its layout, its data source and its GPU queries."""

from itertools import combinations
from pathlib import Path
from typing import Any

from support.dashboard import DASHBOARD, DCGM_METRICS, queries
from support.promtool import Case, check_cases

GRID_COLUMNS = 24
GPU = 'job="dcgm", instance="172.18.0.2:9400", gpu="0", modelName="NVIDIA H200"'
GPU_VALUES = {
    f"DCGM_FI_DEV_GPU_UTIL{{{GPU}}}": 90,
    f"DCGM_FI_DEV_FB_USED{{{GPU}}}": 4000,
    f"DCGM_FI_DEV_FB_FREE{{{GPU}}}": 139000,
    f"DCGM_FI_DEV_POWER_USAGE{{{GPU}}}": 350,
}
"""Samples in %, MiB, MiB and W."""


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


def test_every_panel_has_a_valid_layout() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries", "heatmap"), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names) > 0, panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= GRID_COLUMNS, panel["title"]
    for one, other in combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def test_the_data_source_is_provisioned(project: Path) -> None:
    source = (project / "docker/grafana/provisioning/datasources/prometheus.yml").read_text()
    items: list[Any] = [*DASHBOARD["panels"], *DASHBOARD["templating"]["list"]]
    for item in items:
        assert item["datasource"]["type"] == "prometheus"
        assert f"uid: {item['datasource']['uid']}\n" in source


def test_gpu_queries_return_the_metrics_of_dcgm_exporter(project: Path, tmp_path: Path) -> None:
    expressions = [query.expression for query in queries("1m") if query.needs_gpu]
    samples = {
        expression: {
            series: value
            for series, value in GPU_VALUES.items()
            if series.partition("{")[0] == expression.partition("{")[0]
        }
        for expression in expressions
    }
    assert sorted(expressions) == sorted(DCGM_METRICS)
    assert all(samples.values())
    series = {name: f"{value}x8" for name, value in GPU_VALUES.items()}
    rules = project / "docker/prometheus/alerts.yml"
    check_cases({"a GPU": Case(series, "1m", samples=samples)}, rules, {}, tmp_path)
