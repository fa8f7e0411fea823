"""Compare processes of ``centernet-serve`` with replicas in Ray Serve, one and two of each.

    python -m benchmarks.ray_serve models/blood_cells docs/samples/blood_smear_*.jpg

It needs the extras ``serve`` and ``ray`` (the environment of ``make test-ray``), and starts a
Ray instance of one node on this machine. Each process and each replica has one thread for images
and one for the engine; the two processes without Ray show what the cores allow.

Turns of all variants alternate. The CPU time for each image is that of the service, of the
processes of Ray (proxy, controller, node processes) and of the load generator, which all share the
cores.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
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
    """A service: its port and path, the number of its engines, and its processes."""

    name: str
    port: int
    path: str
    engines: int
    processes: Callable[[], Iterable[int]]


@dataclass(frozen=True)
class _Turn:
    images_per_second: float
    p50_ms: float
    p99_ms: float
    service_cpu_ms: float
    """CPU time of the service per image."""
    ray_cpu_ms: float
    """CPU time of the processes of Ray per image."""
    generator_cpu_ms: float
    """CPU time of the load generator per image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--engine", choices=CPU_ENGINES, default="onnxruntime-fp32")
    parser.add_argument("--connections", type=int, default=8, help="for each engine")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=5)
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
        stack.enter_context(_ray(settings, args.port, haproxy=args.haproxy))
        variants = [
            _Variant("1 replica", args.port, "/one/detect", 1, partial(_replicas, "one")),
            _Variant("2 replicas", args.port, "/two/detect", 2, partial(_replicas, "two")),
        ]
        for count, name in ((2, "2 processes, without Ray"), (1, "1 process, without Ray")):
            port = args.port + count
            process = stack.enter_context(_processes(settings, port, count))
            tree = partial(_with_descendants, process)
            variants.insert(0, _Variant(name, port, "/detect", count, tree))
        rounds = [[_measure(one, args) for one in variants] for _ in range(args.rounds)]
    proxy = "HAProxy" if args.haproxy else "Ray's proxy"
    print(f"{describe_cpu()}; {args.engine}; {proxy}; {args.connections} connections per engine")
    print(
        "| | images/s | ratio to 1 process | ratio to 1 replica | p50 ms | p99 ms "
        "| CPU ms per image: service | Ray | load generator | share of Ray |"
    )
    print("|---|---:|---|---|---:|---:|---:|---:|---:|---:|")
    for index, variant in enumerate(variants):
        turns = [row[index] for row in rounds]
        to_process, to_replica = (
            format_quartiles(
                [row[index].images_per_second / row[k].images_per_second for row in rounds]
            )
            for k in (0, 2)
        )
        middle = {
            field.name: median(getattr(turn, field.name) for turn in turns)
            for field in fields(_Turn)
        }
        service, ray_ms, generator = (
            middle[f"{name}_cpu_ms"] for name in ("service", "ray", "generator")
        )
        print(
            f"| {variant.name} | {middle['images_per_second']:.1f} | {to_process} | {to_replica} "
            f"| {middle['p50_ms']:.1f} | {middle['p99_ms']:.1f} | {service:.2f} | {ray_ms:.2f} "
            f"| {generator:.2f} | {ray_ms / (service + ray_ms):.2f} |"
        )


def _measure(variant: _Variant, args: argparse.Namespace) -> _Turn:
    target = Target(variant.port, variant.path, args.images, ())
    connections = variant.engines * args.connections
    closed_loop(target, 1, connections)
    before = _cpu_seconds(variant)
    load = closed_loop(target, args.seconds, connections)
    after = _cpu_seconds(variant)
    if load.ok is None or not load.all_ok:
        raise RuntimeError(f"some requests failed: {load.statuses}")
    seconds = (after[0] - before[0], after[1] - before[1], load.cpu_share * load.seconds)
    latency = load.ok.latency_ms
    return _Turn(
        *(load.images_per_second, latency.p50, latency.p99),
        *(1000 * used_s / load.completed for used_s in seconds),
    )


def _cpu_seconds(variant: _Variant) -> tuple[float, float]:
    """Return the CPU seconds of the processes of a service, and of those of Ray except replicas."""
    ray = filter(_is_ray, _with_descendants(os.getpid()))
    return sum(map(_used_s, variant.processes())), sum(map(_used_s, ray))


def _used_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def _is_ray(pid: int) -> bool:
    command = _command(pid)
    return not command.startswith(_REPLICA) and (
        command.startswith(b"ray::") or any(name in command for name in _RAY_PROGRAMS)
    )


def _replicas(application: str) -> list[int]:
    title = _REPLICA + f":{application}:".encode()
    return [pid for pid in _with_descendants(os.getpid()) if _command(pid).startswith(title)]


def _with_descendants(pid: int) -> Iterator[int]:
    """Yield a process, those that it has started, and those that they have started."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (thread / "children").read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield from _with_descendants(int(child))


_REPLICA = b"ray::ServeReplica"
_RAY_PROGRAMS = (b"/raylet", b"gcs_server", b"ray/dashboard", b"haproxy")


@contextmanager
def _processes(settings: dict[str, str], port: int, count: int) -> Iterator[int]:
    """Run ``centernet-serve`` with a number of workers; yields its process id."""
    command = [sys.executable, "-m", "service", "--port", str(port), "--workers", str(count)]
    process = subprocess.Popen(command, env=os.environ | settings)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield process.pid
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
def _ray(settings: dict[str, str], port: int, *, haproxy: bool) -> Iterator[None]:
    """Run a node of Ray with the applications ``one`` and ``two``, named after their replicas."""
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy)),
        # By default the replicas run after all others: the load generator, the process without Ray.
        "RAY_worker_niceness": "0",
    }
    import ray
    from ray import serve

    from service.ray_serve.application import CenterNet

    ray.init(
        *("local",),
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        http: dict[str, Any] = {"host": "127.0.0.1", "port": port}
        no_access_log = {
            "enable_access_log": False
        }  # neither has centernet-serve at this log level
        serve.start(http_options=http, logging_config=no_access_log)
        actor = {"num_cpus": 1, "runtime_env": {"env_vars": settings}}
        for name, replicas in {"one": 1, "two": 2}.items():
            deployment = CenterNet.options(
                num_replicas=replicas, ray_actor_options=actor, logging_config=no_access_log
            )
            serve.run(deployment.bind(), name=name, route_prefix=f"/{name}")
        yield
        serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
