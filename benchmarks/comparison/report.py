"""Reports of the comparison: a Markdown table and an SVG bar chart."""

from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from evaluation.report import markdown_row, markdown_table

_BAR, _GAP, _GROUP, _HEIGHT, _LEFT, _TOP = 26, 4, 40, 220, 50, 40
_COLOURS = (
    *("#0b6e4f", "#4caf8a", "#7a869a", "#5b7db1", "#b08a3e"),
    *("#8b5a8c", "#a44a3f", "#4f8a8b", "#3b3b58"),
)
_PANELS = (
    ("fraction_of_ceiling", "images/s as a fraction of the throughput ceiling"),
    ("p99_own_ms", "p99 in ms at 80 % of each server's own throughput"),
    ("p99_common_ms", "p99 in ms at the same rate for all servers"),
)


def write_report(cases: dict[str, Any], output: Path) -> str:
    """Write ``results.md`` and ``results.svg``; return the Markdown text."""
    text = "\n".join(_case(name, case) for name, case in cases.items())
    (output / "results.md").write_text(text)
    (output / "results.svg").write_text(_plot(cases))
    return text


def _case(name: str, case: dict[str, Any]) -> str:
    ceilings = [
        ceiling
        for results in case["rounds"]
        for turn in results.values()
        for ceiling in turn["ceilings"]
    ]
    no_server = median(one["no_server_images_per_second"] for one in ceilings)
    ceiling = sorted(ceilings, key=lambda one: one["images_per_second"])[len(ceilings) // 2]
    lines = [
        f"### {name}",
        "",
        f"Ceiling {ceiling['images_per_second']:.1f} images/s: {ceiling['cores']} cores / "
        f"({ceiling['prepare_ms']:.2f} ms decode and warp + {ceiling['engine_ms']:.2f} ms engine "
        f"at batch {ceiling['batch_size']}), {ceiling['pillow_images_per_second']:.1f} with Pillow "
        f"({ceiling['pillow_prepare_ms']:.2f} ms); one thread per core without a server reaches "
        f"{no_server:.1f}; medians of {len(case['rounds'])} rounds.",
        "",
        markdown_table(
            [
                *("server", "images/s", "of the ceiling", "of the ceiling with Pillow"),
                *("of no server", "p99 at 80 % of its own throughput"),
                *(f"p99 at {case['common_rate']:.1f}/s", "configuration"),
            ]
        ),
    ]
    by_rate = sorted(
        case["medians"].items(), key=lambda item: item[1]["fraction_of_ceiling"], reverse=True
    )
    for server, row in by_rate:
        lines.append(
            markdown_row(
                [
                    server,
                    f"{row['images_per_second']:.1f}",
                    f"{row['fraction_of_ceiling']:.3f}",
                    f"{row['fraction_of_pillow_ceiling']:.3f}",
                    f"{row['fraction_of_no_server']:.3f}",
                    _ms(row["p99_own_ms"]),
                    _ms(row["p99_common_ms"]),
                    case["configurations"][server],
                ]
            )
        )
    share = max(row["generator_cpu_share"] for row in case["medians"].values())
    lines += ["", f"The load generator used at most {share:.1%} of one core.", ""]
    for server, reason in case["excluded"].items():
        lines += [f"Excluded: {server}: {reason}", ""]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "requests failed" if value is None else f"{value:.0f} ms"


def _plot(cases: dict[str, Any]) -> str:
    """Draw a bar chart with three panels as SVG, without a plotting library."""
    servers = list(dict.fromkeys(name for case in cases.values() for name in case["medians"]))
    group = len(servers) * (_BAR + _GAP) + _GROUP
    width = _LEFT + group * len(cases) + 130
    panel_height = _TOP + _HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{panel_height * len(_PANELS)}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (key, title) in enumerate(_PANELS):
        top = number * panel_height + _TOP
        values = [row[key] or 0 for case in cases.values() for row in case["medians"].values()]
        highest = max([*values, 1e-9]) if number else 1.0
        parts.append(f'<text x="{_LEFT}" y="{top - 16}" font-size="13">{escape(title)}</text>')
        for index, (name, case) in enumerate(cases.items()):
            left = _LEFT + index * group
            parts.append(f'<text x="{left}" y="{top + _HEIGHT + 18}">{escape(name)}</text>')
            for position, server in enumerate(servers):
                value = case["medians"].get(server, {}).get(key)
                height = _HEIGHT * min((value or 0) / highest, 1.1)
                x, y = left + position * (_BAR + _GAP), top + _HEIGHT - height
                colour = _COLOURS[position % len(_COLOURS)]
                label = "-" if value is None else f"{value:.2f}" if not number else f"{value:.0f}"
                parts.append(
                    f'<rect x="{x}" y="{y:.1f}" width="{_BAR}" height="{height:.1f}" '
                    f'fill="{colour}"/><text x="{x}" y="{y - 3:.1f}" font-size="9">{label}</text>'
                )
    for position, server in enumerate(servers):
        y = _TOP + position * 18
        colour = _COLOURS[position % len(_COLOURS)]
        parts.append(
            f'<rect x="{width - 115}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{width - 100}" y="{y}">{escape(server)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
