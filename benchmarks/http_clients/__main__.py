"""Send requests with HTTP clients of several languages, directly and through nginx.

    python -m benchmarks.http_clients --requests 1000

The clients run at the same time. Directly, the service closes idle connections during the long
pauses; through nginx, which keeps them for 60 s, the settings are the defaults. Bodies over the
limit are sent through nginx, which must pass on every 413. Prints Markdown; the exit status is 1 if
a request failed.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.endurance.service import IMAGES, run_service
from benchmarks.http_clients import CLIENTS, Client, run_nginx, send
from evaluation.report import Cell, markdown_table

KEEP_ALIVE_S = 5
OVER_LIMIT_BYTES = 17 * 2**20


def failures(port: int, images: Sequence[Path], requests: int, status: str) -> dict[str, list[str]]:
    """Run all clients; return, by client, the outcomes other than ``status``."""
    url = f"http://127.0.0.1:{port}/detect"

    def run(client: Client) -> list[str]:
        outcomes = send(client, url, images, requests, 2 * KEEP_ALIVE_S)
        outcomes += ["no outcome"] * (requests - len(outcomes))
        return [outcome for outcome in outcomes if outcome != status]

    installed = [client for client in CLIENTS if client.is_installed]
    with ThreadPoolExecutor(len(installed)) as pool:
        return dict(zip([one.name for one in installed], pool.map(run, installed), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000, help="per client")
    parser.add_argument("--over-limit", type=int, default=200, help="per client")
    args = parser.parse_args()
    columns: dict[str, dict[str, list[str]]] = {}
    with run_service("--keep-alive-s", str(KEEP_ALIVE_S)) as service:
        columns["direct"] = failures(service.port, IMAGES, args.requests, "200")
    with tempfile.TemporaryDirectory() as folder, run_service() as service:
        large = Path(folder, "large")
        large.write_bytes(bytes(OVER_LIMIT_BYTES))
        with run_nginx([service.port], Path(folder)) as (port, _):
            columns["nginx"] = failures(port, IMAGES, args.requests, "200")
            columns["nginx, over the limit"] = failures(port, [large], args.over_limit, "413")
    rows: list[tuple[Cell, ...]] = [
        (client, *(len(column[client]) for column in columns.values()))
        for client in columns["direct"]
    ]
    print(markdown_table(("failed requests", *columns), rows))
    missing = [client.name for client in CLIENTS if not client.is_installed]
    print(f"\nNot installed: {', '.join(missing) or 'none'}.")
    for name, column in columns.items():
        for client, outcomes in column.items():
            for outcome, count in Counter(outcomes).items():
                print(f"{client}, {name}: {count} x {outcome}")
    sys.exit(any(outcomes for column in columns.values() for outcomes in column.values()))


if __name__ == "__main__":
    main()
