"""Latency of ordinary requests and memory of the service beside hostile clients.

    python -m benchmarks.hostile_load

For each kind of hostile file a service is started, and an ordinary client sends photos at a
constant mean rate, first alone, then beside 32 clients that send the file without a pause and
ignore Retry-After. Exits 1 if a bound of ``checks`` does not hold.
"""

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageFile

from benchmarks.decoding_cost import (
    deep_png,
    encode_image,
    first_scans,
    measure,
    repeated_scans,
    uniform_webp,
    webp_with_tables,
)
from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import IMAGES, Service, run_service
from benchmarks.load import Load, Target, build, closed_loop, open_loop
from evaluation.report import markdown_row, markdown_table
from service.imaging.jpeg_header import scan_limit
from service.settings import Settings

HOSTILE_CLIENTS = 32
TIMES_P99 = 2.0
MAX_LAG_S = 0.05
MAX_OTHER_BYTES = 256 << 20
"""Memory over idle beside ``max_decoding_bytes``: request bodies, network inputs, responses."""
_SIZE = (8192, 6100)
_MANY_SCANS_SIZE = (3000, 2000)
_SAMPLE_S = 0.5


@dataclass(frozen=True)
class Measured:
    """Ordinary requests beside one kind of hostile clients.

    ``decode_s``: CPU time of decoding the hostile file once. ``lag_s``: maximum delay of the event
    loop. ``over_idle_bytes``: peak memory minus that before the load.
    """

    name: str
    ordinary: Load
    hostile: Load | None
    decode_s: float
    lag_s: float
    over_idle_bytes: float


def hostile_files() -> Iterator[tuple[str, bytes, float]]:
    """Yield names, files and the CPU time of decoding them, in seconds.

    The last file is refused for its header, the others are the most expensive of their formats.
    """
    many_scans = Image.new("RGB", _MANY_SCANS_SIZE, (90, 120, 30))
    progressive = encode_image(many_scans, "JPEG", progressive=True)
    ImageFile.MAXBLOCK = 1 << 28  # Pillow encodes a progressive JPEG into one block
    cmyk = encode_image(Image.new("CMYK", _SIZE, (90, 120, 30, 7)), "JPEG", progressive=True)
    files = {
        "WebP, lossless, 50 Mpx": uniform_webp(*_SIZE),
        "WebP, 65,536 sets of Huffman tables": webp_with_tables(1 << 16),
        "progressive JPEG, 100 scans": repeated_scans(progressive, many_scans, 100),
        "progressive CMYK JPEG, 50 Mpx": first_scans(cmyk, scan_limit(_SIZE[0] * _SIZE[1])),
        "PNG, 16 bits, interlaced, 50 Mpx": deep_png(Image.new("RGB", _SIZE), 6, 4, 1),
    }
    for name, body in files.items():
        outcome, *_, decode_s, _ = measure(body)
        assert outcome == "decoded", name
        yield name, body, decode_s
    yield "refused: JPEG, 2,000 scans", repeated_scans(progressive, many_scans, 2000), 0.0


def run(
    name: str, seconds: float, rate: float, body: Path | None = None, decode_s: float = 0.0
) -> Measured:
    """Send ordinary requests to a new service, beside hostile ones if their body is given."""
    with run_service() as service, ThreadPoolExecutor(1) as clients:
        ordinary = Target(service.port, "/detect", IMAGES)
        closed_loop(ordinary, 2, 4)
        idle_mib = service.state().memory_mib
        service.reset_peak_memory()
        hostile = None
        with sample_lag(service) as lags_s:
            if body is not None:
                target = Target(service.port, "/detect", [body])
                hostile = clients.submit(closed_loop, target, seconds + 4, HOSTILE_CLIENTS)
                time.sleep(2)
            load = open_loop(ordinary, seconds, rate)
        return Measured(
            name,
            load,
            hostile.result() if hostile else None,
            decode_s,
            max(lags_s),
            (service.state().peak_mib - idle_mib) * 2**20,
        )


@contextmanager
def sample_lag(service: Service) -> Iterator[list[float]]:
    """Read the event-loop lag, the maximum of each second, until the block ends."""
    lags_s: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            lags_s.append(service.metrics().total("centernet_event_loop_lag_seconds"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lags_s
    finally:
        ended.set()
        thread.join()


def print_row(measured: Measured, body: Path | None) -> None:
    """Print a row of the table of :func:`main`."""
    ok, hostile = measured.ordinary.ok, measured.hostile
    row = [
        *(measured.name, f"{body.stat().st_size / 1024:.1f}" if body else ""),
        *(f"{measured.decode_s:.2f}" if body else "", measured.ordinary.sent),
        *((f"{ok.latency_ms.p50:.0f}", f"{ok.latency_ms.p99:.0f}") if ok else ("", "")),
        *(statuses(measured.ordinary), statuses(hostile) if hostile else ""),
        *(f"{1000 * measured.lag_s:.0f}", f"{measured.over_idle_bytes / 2**20:.0f}"),
    ]
    print(markdown_row(row), flush=True)


def statuses(load: Load) -> str:
    """Return the numbers of responses by status."""
    counts = {str(status): responses.count for status, responses in load.statuses.items()}
    counts |= {"timeouts": load.timeouts, "failures": load.failures}
    return ", ".join(f"{count} x {name}" for name, count in counts.items() if count)


def checks(usual: Measured, measured: Sequence[Measured]) -> Iterator[Check]:
    """Yield the bounds for each kind of hostile file."""
    assert usual.ordinary.ok is not None
    usual_p99_s = usual.ordinary.ok.latency_ms.p99 / 1000
    memory_mib = (Settings.model_fields["max_decoding_bytes"].default + MAX_OTHER_BYTES) / 2**20
    for kind in measured:
        ok = kind.ordinary.ok
        yield Check(
            f"{kind.name}: ordinary p99, s",
            ok.latency_ms.p99 / 1000 if ok else float("inf"),
            max=TIMES_P99 * usual_p99_s + kind.decode_s,
        )
        yield Check(
            f"{kind.name}: ordinary requests without status 200",
            kind.ordinary.sent - (ok.count if ok else 0),
            max=0,
        )
        yield Check(f"{kind.name}: event-loop lag, s", kind.lag_s, max=MAX_LAG_S)
        yield Check(
            f"{kind.name}: memory over idle, MiB", kind.over_idle_bytes / 2**20, max=memory_mib
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="duration per kind of file")
    parser.add_argument("--rate", type=float, default=6.0, help="ordinary requests per second")
    args = parser.parse_args()
    build()
    columns = [
        *("beside", "file KiB", "one decode, CPU s", "requests", "p50 ms", "p99 ms", "statuses"),
        *("statuses of the hostile clients", "event-loop lag, ms", "memory over idle, MiB"),
    ]
    with TemporaryDirectory() as folder:
        files = list(hostile_files())
        print(markdown_table(columns))
        usual = run("no other client", args.seconds, args.rate)
        print_row(usual, None)
        measured = []
        for name, content, decode_s in files:
            body = Path(folder) / "hostile"
            body.write_bytes(content)
            measured.append(run(name, args.seconds, args.rate, body, decode_s))
            print_row(measured[-1], body)
    exit_with_checks(list(checks(usual, measured)))


if __name__ == "__main__":
    main()
