"""The dashboard's file, and the queries that need a GPU to have data."""

from itertools import combinations
from pathlib import Path
from typing import Any

from support.dashboard import DASHBOARD, queries
from support.promtool import Case, check_cases

GRID_COLUMNS = 24
GPU = 'job="centernet", instance="a:8000", gpu="0"'
GPU_VALUES = {
    f"centernet_gpu_utilization_ratio{{{GPU}}}": 0.9,
    f"centernet_gpu_memory_used_bytes{{{GPU}}}": 4e9,
    f"centernet_gpu_memory_total_bytes{{{GPU}}}": 8e10,
    f"centernet_gpu_power_watts{{{GPU}}}": 350,
}


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


def test_every_panel_can_be_drawn() -> None:
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


def test_the_source_of_its_data_is_provisioned(project: Path) -> None:
    source = (project / "docker/grafana/provisioning/datasources/prometheus.yml").read_text()
    named: list[Any] = [*DASHBOARD["panels"], *DASHBOARD["templating"]["list"]]
    for one in named:
        assert one["datasource"]["type"] == "prometheus"
        assert f"uid: {one['datasource']['uid']}\n" in source


def test_the_queries_of_a_gpu_find_what_is_measured_of_it(project: Path, tmp_path: Path) -> None:
    found = [query.expression for query in queries("1m") if query.needs_gpu]
    samples = {
        expression: {
            series: value
            for series, value in GPU_VALUES.items()
            if series.partition("{")[0] == expression.partition("{")[0]
        }
        for expression in found
    }
    assert len(found) == len(GPU_VALUES)
    assert all(samples.values())
    series = {name: f"{value}x8" for name, value in GPU_VALUES.items()}
    rules = project / "docker/prometheus/alerts.yml"
    check_cases({"a GPU": Case(series, "1m", samples=samples)}, rules, {}, tmp_path)
