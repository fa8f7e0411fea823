"""Send damaged image files to a running service, which must respond with 2xx or 4xx to each.

    centernet-serve --models models/blood_cells --port 8000 &
    python -m benchmarks.fuzz_images --url http://127.0.0.1:8000/detect --seconds 300 --pid $!

Files are mutants (benchmarks/mutants.py) of generated images and of the given ones. A file that
gets another response, none, or one that takes longer than --slow is written to --failures, and the
exit status is 1. With --pid the service's memory is printed: after warm-up, at the end and peak.
"""

import argparse
import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.mutants import mutants, originals
from evaluation.report import markdown_table


class Campaign:
    """Counts of the responses to all clients, and the files that failed."""

    def __init__(self, url: str, slow_s: float, failures: Path) -> None:
        self._address = urlsplit(url)
        self._slow_s = slow_s
        self._failures = failures
        self._lock = threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.failed = 0
        self.slowest_s = 0.0

    def run(self, bodies: Iterator[bytes], stop_at: float) -> None:
        """Send files over one connection until ``stop_at`` (``time.perf_counter`` seconds)."""
        connection = self._connect()
        while time.perf_counter() < stop_at:
            body = next(bodies)
            started_at = time.perf_counter()
            try:
                connection.request("POST", self._address.path, body)
                response = connection.getresponse()
                response.read()
                status = str(response.status)
            except (OSError, http.client.HTTPException) as error:
                status = f"no response: {type(error).__name__}"
                connection.close()
                connection = self._connect()
            self._count(body, status, time.perf_counter() - started_at)
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        port = self._address.port or 80
        return http.client.HTTPConnection(self._address.hostname or "", port, timeout=60)

    def _count(self, body: bytes, status: str, duration_s: float) -> None:
        with self._lock:
            self.statuses[status] += 1
            self.slowest_s = max(self.slowest_s, duration_s)
            if status[0] in "24" and duration_s <= self._slow_s:
                return
            self.failed += 1
            self._failures.mkdir(parents=True, exist_ok=True)
            name = f"{self.failed:04d}_{status.replace(': ', '_').replace(' ', '_')}"
            (self._failures / name).write_bytes(body)


def memory_mib(pid: int, field: str) -> float:
    """Return a field of Linux's /proc/PID/status, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path, nargs="*")
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--slow", type=float, default=10.0, help="seconds after which a response is a failure"
    )
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"))
    parser.add_argument("--pid", type=int)
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    files = originals() + [path.read_bytes() for path in args.images]
    campaign = Campaign(args.url, args.slow, args.failures)
    campaign.run(mutants(args.seed + args.clients, files), time.perf_counter() + 5)  # warm-up
    first_mib = memory_mib(args.pid, "VmRSS") if args.pid else 0
    stop_at = time.perf_counter() + args.seconds
    clients = [
        threading.Thread(target=campaign.run, args=(mutants(args.seed + index, files), stop_at))
        for index in range(args.clients)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    total = sum(campaign.statuses.values())
    print(f"{total} files in {args.seconds:g} s, {args.clients} clients, seed {args.seed}\n")
    print(markdown_table(("response", "files"), sorted(campaign.statuses.items())))
    print(f"\nslowest response {campaign.slowest_s * 1000:.0f} ms; failures {campaign.failed}")
    if args.pid:
        last, peak = (memory_mib(args.pid, field) for field in ("VmRSS", "VmHWM"))
        print(f"memory: {first_mib:.0f} MiB after warm-up, {last:.0f} at the end, {peak:.0f} peak")
    sys.exit(1 if campaign.failed else 0)


if __name__ == "__main__":
    main()
