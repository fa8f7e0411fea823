"""The results as Markdown, with the targets beside the measurements."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

TARGET_OF_COPY = 0.8
"""Share of the bandwidth of a device copy, for corner pooling at batch 8 and above."""
TARGET_SPEEDUP = 2.0
"""Images per second of the fastest engine, relative to PyTorch fp16, at batch 8."""
TARGET_LATENCY_MS = 2.0
"""Of res_18-boxes, 512x512, batch 1."""


def markdown(result: Mapping[str, Any]) -> str:
    """Return the report: targets, measurements, failures and checks that were not run."""
    return "\n".join(
        [*_head(result), *_targets(result), *_tables(result), *_failed_and_not_run(result), ""]
    )


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    host = result["host"]
    gpu = host["gpu"]
    title = f"{gpu['name']}, {gpu['memory_gib']} GiB, driver {host['driver']}" if gpu else "no GPU"
    yield f"# GPU check: {title}"
    yield ""
    yield f"{host['cores']} cores ({host['processor']}), Python {host['python']}, " + ", ".join(
        f"{name} {version}" for name, version in host["packages"].items()
    )


def _targets(result: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Targets", "")
    speed = result["speed"]
    rows = [
        (
            "corner pooling, share of copy bandwidth, batch 8 and above",
            f">= {TARGET_OF_COPY}",
            _min_share_of_copy(result["kernels"]["speed"]),
        )
    ]
    for network in ("res_18-boxes", "dla_34-boxes"):
        measure = f"{network}, batch 8: best engine against PyTorch fp16"
        rows.append((measure, f">= {TARGET_SPEEDUP}x", _speedup_over_eager(speed, network)))
    measure = "res_18-boxes, 512x512, batch 1: milliseconds"
    rows.append((measure, f"< {TARGET_LATENCY_MS}", _best_ms(speed, "res_18-boxes", 1)))
    yield from _table(("measure", "target", "measured"), rows)
    yield ""
    yield (
        "PyTorch computes deformable convolutions (dla_34) with tensor operations, as this project "
        "defines them; the upstream CUDA extension is faster."
    )


def _min_share_of_copy(rows: Sequence[Row]) -> str:
    """Return the lowest share over operators and formats, each with its best block size."""
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["op_type"] == "copy" or row.get("of_copy") is None or row["shape"][0] < 8:
            continue
        key = row["op_type"], row["format"], tuple(row["shape"])
        best[key] = max(best.get(key, 0.0), row["of_copy"])
    return f"{min(best.values()):.2f}" if best else "not measured"


def _speedup_over_eager(rows: Sequence[Row], network: str) -> str:
    eager = _images_per_s(rows, network, 8, lambda name: name == "PyTorch fp16")
    engines = _images_per_s(rows, network, 8, _is_engine)
    return f"{engines / eager:.2f}x" if eager and engines else "not measured"


def _best_ms(rows: Sequence[Row], network: str, batch_size: int) -> str:
    milliseconds = [
        row["ms_per_batch"]
        for row in rows
        if (row["network"], row["batch_size"]) == (network, batch_size)
        and _is_engine(row["contender"])
        # Two concurrent runs: the time per batch is not the latency of one run.
        and "two at a time" not in row["contender"]
    ]
    return f"{min(milliseconds):.3f}" if milliseconds else "not measured"


def _is_engine(name: str) -> bool:
    """Return whether it is an engine on the GPU with the settings of the service."""
    return "(" not in name and not name.startswith(("PyTorch", "torch", "onnxruntime-cpu"))


def _images_per_s(rows: Sequence[Row], network: str, batch_size: int, is_included: Any) -> float:
    return max(
        (
            row["images_per_s"]
            for row in rows
            if (row["network"], row["batch_size"]) == (network, batch_size)
            and is_included(row["contender"])
        ),
        default=0.0,
    )


def _tables(result: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Agreement with ONNX Runtime on the CPU", "")
    yield from _table(
        ("package", "backend", "precision", "engine", "agrees", "matched", "worst differences"),
        (
            (row["package"], row["backend"], row["precision"], row["engine"],
             "yes" if row["agrees"] else "NO",
             "" if row["matched"] is None else f"{row['matched']:.4f}",
             ", ".join(f"{name} {error:.1e}" for name, error in row["worst_errors"].items()))
            for row in result["parity"]
        ),
    )  # fmt: skip
    yield from ("", "## Speed, from images to outputs in host memory", "")
    yield from _table(
        ("network", "contender", "batch", "ms per batch", "images/s"),
        (
            (row["network"], row["contender"], row["batch_size"], row["ms_per_batch"],
             row["images_per_s"])
            for row in result["speed"]
        ),
    )  # fmt: skip
    yield from ("", "## ONNX Runtime, one image whose size changes from run to run", "")
    yield from _table_of_all_fields(result["sizes"])
    yield from ("", "## Corner pooling", "")
    parity = result["kernels"]["parity"]
    wrong = [row for row in parity if not row["equal"]]
    yield f"{len(parity) - len(wrong)} of {len(parity)} cases equal PyTorch bit for bit."
    yield ""
    yield from _table_of_all_fields(result["kernels"]["speed"])
    yield from ("", "## Engine builds", "")
    yield from _table_of_all_fields(result["builds"])


def _failed_and_not_run(result: Mapping[str, Any]) -> Iterator[str]:
    for title, lines in (("Failed", result["failed"]), ("Not run", result["not_run"])):
        yield from ("", f"## {title}", "")
        yield from ([f"- {' '.join(line.split())}" for line in lines] or ["Nothing."])


def _table_of_all_fields(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield from _table(names, ([row.get(name, "") for name in names] for row in rows))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    lines = [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    if not lines:
        yield "None."
        return
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from lines


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "/").split())
