"""Compare one process, one replica and two replicas in Ray Serve, and Ray's proxies.

    python -m benchmarks.ray_serve models/blood_cells docs/samples/blood_smear_*.jpg

It needs the extras ``serve`` and ``ray`` (the environment of ``make test-ray``), and starts a
cluster of three nodes on this machine. Each replica, and the process without Ray, has one thread
for images and one for the engine.

Turns of all variants alternate. The CPU time is that of the processes of the service and of those
of Ray (proxy, controller, node processes) for each image. The load generator uses the same cores
as well.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.cpu import CPU_ENGINES, describe_cpu
from benchmarks.load import Target, closed_loop
from benchmarks.quartiles import format_quartiles

STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class _Variant:
    """A service: its port and path, and how to recognize its processes by their title."""

    name: str
    port: int
    path: str
    title: bytes
    connections: int


@dataclass(frozen=True)
class _Turn:
    images_per_second: float
    p50_ms: float
    p99_ms: float
    service_cpu_ms: float
    """CPU time of the service per image."""
    ray_cpu_ms: float
    """CPU time of the processes of Ray per image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--engine", choices=CPU_ENGINES, default="onnxruntime-fp32")
    parser.add_argument("--connections", type=int, default=8, help="for each replica")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--port", type=int, default=21100)
    parser.add_argument("--haproxy", action="store_true", help="use HAProxy instead of Ray's proxy")
    args = parser.parse_args()
    engine = CPU_ENGINES[args.engine]
    settings = {
        "CENTERNET_MODELS": str(args.package.resolve()),
        "CENTERNET_BACKEND": engine.backend,
        "CENTERNET_PRECISION": engine.precision,
        "CENTERNET_LOG_LEVEL": "warning",
        "CENTERNET_IMAGE_THREADS": "1",
        "CENTERNET_ENGINE_THREADS": "1",
        "CENTERNET_ENGINE_CONCURRENCY": "1",
    }
    with ExitStack() as stack:
        stack.enter_context(_cluster(settings, args.port, haproxy=args.haproxy))
        direct = stack.enter_context(_process(settings, args.port + 1))
        variants = [
            _Variant("one process, without Ray", args.port + 1, "/detect", direct, 1),
            _Variant("1 replica", args.port, "/one/detect", b"ray::ServeReplica:one", 1),
            _Variant("2 replicas", args.port, "/two/detect", b"ray::ServeReplica:two", 2),
        ]
        rounds = [[_measure(one, args) for one in variants] for _ in range(args.rounds)]
    proxy = "HAProxy" if args.haproxy else "Ray's proxy"
    print(f"{describe_cpu()}; {args.engine}; {proxy}; {args.connections} connections per replica")
    print(
        "| | images/s | ratio to 1 replica | p50 ms | p99 ms | CPU ms per image, service "
        "| CPU ms per image, Ray | share of Ray |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for index, variant in enumerate(variants):
        turns = [row[index] for row in rounds]
        ratios = [row[index].images_per_second / row[1].images_per_second for row in rounds]
        service, ray_ms = (
            median(getattr(turn, name) for turn in turns)
            for name in ("service_cpu_ms", "ray_cpu_ms")
        )
        print(
            f"| {variant.name} | {median(turn.images_per_second for turn in turns):.1f} "
            f"| {format_quartiles(ratios)} | {median(turn.p50_ms for turn in turns):.1f} "
            f"| {median(turn.p99_ms for turn in turns):.1f} | {service:.2f} | {ray_ms:.2f} "
            f"| {ray_ms / (service + ray_ms):.2f} |"
        )


def _measure(variant: _Variant, args: argparse.Namespace) -> _Turn:
    target = Target(variant.port, variant.path, args.images, ())
    connections = variant.connections * args.connections
    closed_loop(target, 1, connections)
    before = _cpu_seconds(variant.title)
    load = closed_loop(target, args.seconds, connections)
    after = _cpu_seconds(variant.title)
    service_s, ray_s = after[0] - before[0], after[1] - before[1]
    if load.ok is None or not load.all_ok:
        raise RuntimeError(f"some requests failed: {load.statuses}")
    latency = load.ok.latency_ms
    return _Turn(
        *(load.images_per_second, latency.p50, latency.p99),
        *(1000 * service_s / load.completed, 1000 * ray_s / load.completed),
    )


def _cpu_seconds(title: bytes) -> tuple[float, float]:
    """Return the CPU seconds of the processes with a title, and of those of Ray except replicas."""
    service_s = ray_s = 0.0
    for pid in _descendants(os.getpid()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if command.startswith(title):
            service_s += used_s
        elif not command.startswith(b"ray::ServeReplica") and (
            command.startswith(b"ray::") or any(name in command for name in _RAY_PROGRAMS)
        ):
            ray_s += used_s
    return service_s, ray_s


def _descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those that they have started."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (thread / "children").read_text().split()
        except OSError:  # it has ended
            continue
        for child in map(int, children):
            yield child
            yield from _descendants(child)


_RAY_PROGRAMS = (b"/raylet", b"gcs_server", b"ray/dashboard", b"haproxy")


@contextmanager
def _process(settings: dict[str, str], port: int) -> Iterator[bytes]:
    """Run ``centernet-serve``; yields the start of its command line."""
    command = [sys.executable, "-m", "service", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | settings)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield b"\0".join(part.encode() for part in command)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(transport=transport, timeout=60) as client:
        while client.get(f"{url}/readyz").status_code != 200:
            if process.poll() is not None:
                raise RuntimeError("centernet-serve has ended")


@contextmanager
def _cluster(settings: dict[str, str], port: int, *, haproxy: bool) -> Iterator[None]:
    """Run a head node without replicas and two nodes for them."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy)),
    }
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from service.ray_serve.application import CenterNet

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        http: dict[str, Any] = {"host": "127.0.0.1", "port": port}
        serve.start(proxy_location="HeadOnly", http_options=http)
        actor = {"num_cpus": 1, "runtime_env": {"env_vars": settings}}
        applications: Sequence[tuple[str, int]] = (("one", 1), ("two", 2))
        for name, replicas in applications:
            deployment = CenterNet.options(
                num_replicas=replicas, max_replicas_per_node=1, ray_actor_options=actor
            )
            serve.run(deployment.bind(), name=name, route_prefix=f"/{name}")
        yield
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
