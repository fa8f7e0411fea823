"""Compare HTTP servers that run the same application: speed, and malformed and slow requests.

    pip install hypercorn granian        # others are compared without these
    python -m benchmarks.http_servers

Prints Markdown. The rounds of the speed test alternate between the servers; the load generator
shares the cores. Each flood is sent to a newly started server. Arguments choose parts: speed,
floods, conversations.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.http_servers.attacks import CONVERSATIONS, FLOODS, flood
from benchmarks.http_servers.servers import SERVERS, SERVICE, Server, run
from benchmarks.load import Target, closed_loop
from evaluation.report import Cell, markdown_table

BODY_BYTES = 100_000
CONNECTIONS = 16
ROUNDS = 7
ROUND_S = 2.0


def speed(servers: Sequence[Server]) -> str:
    """Return a table of rate, p99 latency and CPU time, as ratios to the first server too."""
    measured: dict[str, list[tuple[float, ...]]] = {server.name: [] for server in servers}
    with ExitStack() as stack:
        body = Path(stack.enter_context(tempfile.TemporaryDirectory()), "body")
        body.write_bytes(bytes(BODY_BYTES))
        running = [stack.enter_context(run(server)) for server in servers]
        for _ in range(ROUNDS):
            for server, one in zip(servers, running, strict=True):
                cpu_s = one.cpu_s()
                load = closed_loop(Target(one.port, "/", [body]), ROUND_S, CONNECTIONS)
                if not load.ok or not load.all_ok:
                    raise RuntimeError(f"{server.name}: requests failed: {load}")
                cpu_ms = 1000 * (one.cpu_s() - cpu_s) / load.ok.count
                measured[server.name].append(
                    (load.images_per_second, load.ok.latency_ms.p99, cpu_ms)
                )
    reference = measured[servers[0].name]
    rows: list[list[Cell]] = []
    for name, values in measured.items():
        row: list[Cell] = [name]
        for column, digits in enumerate((0, 1, 3)):
            row.append(f"{median(value[column] for value in values):.{digits}f}")
            ratios = [a[column] / b[column] for a, b in zip(values, reference, strict=True)]
            row.append(f"{median(ratios):.2f}")
        rows.append(row)
    columns = ("", "requests/s", "ratio", "p99 in ms", "ratio", "CPU ms per request", "ratio")
    return markdown_table(columns, rows)


def floods(servers: Sequence[Server]) -> str:
    """Return a table of the resources that floods take."""
    rows = []
    for server in (*servers, SERVICE):
        for attack in FLOODS:
            result = flood(server, attack)
            rows.append(
                (
                    *(server.name, attack.name, f"{result.memory_mib:.0f}", f"{result.cpu_s:.1f}"),
                    *(f"{result.sent_mib:.1f}", result.ended),
                )
            )
    columns = ("server", "flood", "memory in MiB", "CPU s", "MiB sent", "connection")
    return markdown_table(columns, rows)


def conversations(servers: Sequence[Server]) -> str:
    """Return a table of what the servers do in short conversations."""

    def converse(server: Server) -> list[str]:
        with run(server) as running, ThreadPoolExecutor(len(tuple(CONVERSATIONS))) as pool:
            results = [pool.submit(talk, server, running) for _, talk in CONVERSATIONS]
            return [result.result() for result in results]

    rows = [(server.name, *converse(server)) for server in (*servers, SERVICE)]
    return markdown_table(("", *(name for name, _ in CONVERSATIONS)), rows)


PARTS: dict[str, Callable[[Sequence[Server]], str]] = {
    "speed": speed,
    "floods": floods,
    "conversations": conversations,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    args = parser.parse_args()
    servers = [server for server in SERVERS if server.is_installed]
    for part in args.parts:
        print(PARTS[part](servers), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
