"""Latency of ordinary requests and memory of the service beside hostile clients.

    python -m benchmarks.hostile_load

For each kind of hostile file a service is started, and ordinary clients send photos at a constant
mean rate, first alone, then beside 32 clients that send the file without a pause and ignore
Retry-After. Exits 1 if a bound of ``checks`` does not hold.
"""

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
)
from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import IMAGES, Service, run_service, sample
from benchmarks.load import Latency, Load, LoadError, Target, build, closed_loop, open_loop
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


@dataclass(frozen=True)
class Phase:
    """Ordinary requests, and the maximum delay of the event loop meanwhile."""

    ordinary: Load
    lag_s: float


@dataclass(frozen=True)
class Measured:
    """Ordinary requests alone, and beside one kind of hostile clients.

    ``decode_s``: CPU time of decoding the hostile file once. ``over_idle_bytes``: peak memory of
    the service minus that before the load.
    """

    name: str
    file_bytes: int
    decode_s: float
    alone: Phase
    beside: Phase
    hostile: Load
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
        "progressive JPEG, 100 scans": repeated_scans(progressive, many_scans, 100),
        "progressive CMYK JPEG, 50 Mpx": first_scans(cmyk, scan_limit(_SIZE[0] * _SIZE[1])),
        "PNG, 16 bits, interlaced, 50 Mpx": deep_png(Image.new("RGB", _SIZE), 6, 4, 1),
    }
    for name, body in files.items():
        outcome, *_, decode_s, _ = measure(body)
        assert outcome == "decoded", name
        yield name, body, decode_s
    yield "refused: JPEG, 2,000 scans", repeated_scans(progressive, many_scans, 2000), 0.0


def run(name: str, content: bytes, decode_s: float, seconds: float, rate: float) -> Measured:
    """Send ordinary requests to a new service for so long, alone and beside hostile clients."""
    with TemporaryDirectory() as folder, run_service() as service, ThreadPoolExecutor(1) as clients:
        body = Path(folder) / "hostile"
        body.write_bytes(content)
        closed_loop(Target(service.port, "/detect", IMAGES), 2, 4)
        alone = measure_ordinary(service, seconds, rate)
        idle_mib = service.state().memory_mib
        service.reset_peak_memory()
        target = Target(service.port, "/detect", [body])
        hostile = clients.submit(closed_loop, target, seconds + 4, HOSTILE_CLIENTS)
        time.sleep(2)
        beside = measure_ordinary(service, seconds, rate)
        over_idle_bytes = (service.state().peak_mib - idle_mib) * 2**20
        return Measured(
            name, len(content), decode_s, alone, beside, hostile.result(), over_idle_bytes
        )


def measure_ordinary(service: Service, seconds: float, rate: float) -> Phase:
    """Send ordinary requests and sample the delay of the event loop."""
    # The maximum of each second.
    with sample(lambda: service.metrics().total("centernet_event_loop_lag_seconds")) as lags_s:
        load = open_loop(Target(service.port, "/detect", IMAGES), seconds, rate)
    return Phase(load, max(lags_s))


def print_row(measured: Measured) -> None:
    """Print a row of the table of :func:`main`."""
    alone, beside = latency_ms(measured.alone), latency_ms(measured.beside)
    row = [
        *(measured.name, f"{measured.file_bytes / 1024:.1f}", f"{measured.decode_s:.2f}"),
        *(f"{alone.p50:.0f}, {alone.p99:.0f}", f"{beside.p50:.0f}, {beside.p99:.0f}"),
        *(statuses(measured.beside.ordinary), statuses(measured.hostile)),
        f"{1000 * measured.alone.lag_s:.0f}, {1000 * measured.beside.lag_s:.0f}",
        f"{measured.over_idle_bytes / 2**20:.0f}",
    ]
    print(markdown_row(row), flush=True)


def latency_ms(phase: Phase) -> Latency:
    """Return the latency of the responses with status 200."""
    if phase.ordinary.ok is None:
        raise LoadError("no ordinary request got status 200.")
    return phase.ordinary.ok.latency_ms


def statuses(load: Load) -> str:
    """Return the numbers of responses by status."""
    counts = {str(status): responses.count for status, responses in load.statuses.items()}
    counts |= {"timeouts": load.timeouts, "failures": load.failures}
    return ", ".join(f"{count} x {name}" for name, count in counts.items() if count)


def checks(measured: Measured) -> Iterator[Check]:
    """Yield the bounds for one kind of hostile file."""
    ordinary, name = measured.beside.ordinary, measured.name
    refused = ordinary.sent - (ordinary.ok.count if ordinary.ok else 0)
    usual_s = latency_ms(measured.alone).p99 / 1000
    memory = Settings.model_fields["max_decoding_bytes"].default + MAX_OTHER_BYTES
    yield Check(
        f"{name}: ordinary p99, s",
        latency_ms(measured.beside).p99 / 1000,
        max=TIMES_P99 * usual_s + measured.decode_s,
    )
    yield Check(f"{name}: ordinary requests without status 200", refused, max=0)
    yield Check(f"{name}: event-loop lag, s", measured.beside.lag_s, max=MAX_LAG_S)
    yield Check(
        f"{name}: memory over idle, MiB", measured.over_idle_bytes / 2**20, max=memory / 2**20
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=42.0, help="duration of each measurement")
    parser.add_argument("--rate", type=float, default=5.0, help="ordinary requests per second")
    args = parser.parse_args()
    build()
    files = list(hostile_files())
    columns = [
        *("hostile file", "KiB", "one decode, CPU s", "alone: p50, p99 ms"),
        *("beside: p50, p99 ms", "ordinary statuses", "hostile statuses"),
        *("event-loop lag alone, beside, ms", "memory over idle, MiB"),
    ]
    print(markdown_table(columns))
    bounds: list[Check] = []
    for name, content, decode_s in files:
        measured = run(name, content, decode_s, args.seconds, args.rate)
        print_row(measured)
        bounds += checks(measured)
    exit_with_checks(bounds)


if __name__ == "__main__":
    main()
