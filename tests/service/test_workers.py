"""Several worker processes: requests, metrics and probes, and the end of a worker or of all."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from support.images import encode, plain
from support.processes import ServeProcess, serve_process, serving
from support.serving import wait_until

from service.cpu_cores import available_cores

pytestmark = pytest.mark.skipif(available_cores() < 2, reason="each worker needs a core")

IMAGE, RED = encode(plain(200, 40)), encode(plain(255, 0))

COLOUR = serving("    return one_model(ColourEngine())(settings, metrics)")


@pytest.fixture(autouse=True)
def temporary_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directory for temporary files, which a supervisor that is killed cannot remove.

    Not ``tmp_path``, because paths of Unix sockets are limited to 108 bytes.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def gated(gate: Path) -> str:
    """Return a program whose engine runs begin when the file ``gate`` exists."""
    return serving(
        f"""
    from pathlib import Path
    class FileGate(ColourEngine):
        def run(self, images, flip=False):
            while not Path({str(gate)!r}).exists():
                time.sleep(0.01)
            return super().run(images, flip)
    return one_model(FileGate())(settings, metrics)
"""
    )


def state_of(pid: int) -> str | None:
    """Return the state of a process, such as T (stopped) or Z (ended); None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return None


class Workers:
    """A service of two workers."""

    def __init__(self, service: ServeProcess) -> None:
        self.service = service
        self.process = service.process
        self.url = service.client.base_url

    def pids(self) -> dict[int, int]:
        """Return the process of each worker by index."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        workers = {}
        for pid in map(int, children.read_text().split()):
            with suppress(OSError):  # the process has just ended
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                for name, _, value in (item.partition(b"=") for item in variables):
                    if name == b"_CENTERNET_WORKER":
                        workers[json.loads(value)["index"]] = pid
        return workers

    def get(self, path: str) -> httpx.Response:
        """Send a request on a connection of its own, which any worker may accept."""
        return httpx.get(f"{self.url}{path}", timeout=30)

    def post(self, image: bytes = IMAGE) -> httpx.Response:
        """Detect on a connection of its own."""
        return httpx.post(f"{self.url}/detect", content=image, timeout=30)

    def metric(self, name: str) -> dict[int, float]:
        """Return the sum of the series of a metric for each worker."""
        values: dict[int, float] = {}
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(name + r'\{.*worker="(\d+)".*\} (\S+)', line)
            if match:
                worker = int(match[1])
                values[worker] = values.get(worker, 0.0) + float(match[2])
        return values

    @contextmanager
    def only(self, index: int) -> Iterator[None]:
        """Stop the other worker, so that this one accepts the connections of the block."""
        other = self.pids()[1 - index]
        os.kill(other, signal.SIGSTOP)
        wait_until(lambda: state_of(other) == "T")
        try:
            yield
        finally:
            os.kill(other, signal.SIGCONT)

    def wait_until_all_ready(self) -> None:
        wait_until(lambda: self.metric("centernet_model_ready") == {0: 1.0, 1: 1.0}, 30)

    def post_to_each(
        self, clients: ThreadPoolExecutor, count: int
    ) -> dict[int, list["Future[httpx.Response]"]]:
        """Send ``count`` requests to each worker; return when all are admitted."""
        sent = {}
        for index in (0, 1):
            with self.only(index):
                sent[index] = [clients.submit(self.post) for _ in range(count)]
                self.wait_until_admitted(index, count)
        return sent

    def wait_until_admitted(self, index: int, count: int) -> None:
        wait_until(lambda: self.metric("centernet_queue_inputs").get(index) == count)


@contextmanager
def two_workers(program: str, *options: str) -> Iterator[Workers]:
    options = ("--workers", "2", *options)
    with serve_process(program, *options, stderr=subprocess.PIPE) as service:
        service.wait_for("/readyz")
        workers = Workers(service)
        workers.wait_until_all_ready()
        yield workers
        # Workers end when their supervisor is killed, which the end of this block does.


def test_one_process_has_no_supervisor_and_no_label() -> None:
    with serve_process(COLOUR) as service:
        service.wait_for("/readyz")
        workers = Workers(service)
        assert workers.pids() == {}
        assert 'worker="' not in workers.get("/metrics").text


def test_the_address_is_logged_when_all_workers_are_ready() -> None:
    with two_workers(COLOUR) as workers:
        assert workers.process.stderr is not None
        timer = threading.Timer(60, workers.process.kill)  # ends the log, if the line is missing
        timer.start()
        lines: list[str] = []
        while not lines or (lines[-1] and "all 2 workers are ready" not in lines[-1]):
            lines.append(workers.process.stderr.readline().decode())
        timer.cancel()
    assert sum("CenterNet Serving" in line for line in lines) == 2, "of each worker"
    assert lines[-1].rstrip().endswith(f"all 2 workers are ready: {workers.url}".rstrip("/"))


def test_each_worker_serves_and_their_metrics_add_up() -> None:
    with two_workers(COLOUR) as workers:
        for index, count in ((0, 3), (1, 2)):
            with workers.only(index):
                assert [workers.post().status_code for _ in range(count)] == [200] * count
        assert workers.metric("centernet_images_total") == {0: 3, 1: 2}
        text = workers.get("/metrics").text
        assert text.count("# TYPE centernet_images_total counter") == 1
        cores = [os.sched_getaffinity(pid) for pid in workers.pids().values()]
        assert not cores[0] & cores[1]
        assert cores[0] | cores[1] == os.sched_getaffinity(0)


def test_a_killed_worker_loses_its_own_requests_only_and_is_replaced(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with two_workers(gated(gate)) as workers, ThreadPoolExecutor(8) as clients:
        sent = workers.post_to_each(clients, 4)
        killed = workers.pids()[0]
        os.kill(killed, signal.SIGKILL)
        for future in sent[0]:
            with pytest.raises(httpx.TransportError):
                future.result(30)
        gate.touch()
        assert [future.result(30).status_code for future in sent[1]] == [200] * 4
        # Until the replacement is ready, the other worker serves every request.
        assert [workers.post().status_code for _ in range(5)] == [200] * 5
        workers.wait_until_all_ready()
        assert workers.pids()[0] != killed
        with workers.only(0):
            assert workers.post().status_code == 200


def test_sigterm_loses_no_request_and_ends_all_workers(
    tmp_path: Path, temporary_directory: Path
) -> None:
    gate = tmp_path / "gate"
    with two_workers(gated(gate)) as workers, ThreadPoolExecutor(8) as clients:
        sent = workers.post_to_each(clients, 4)
        pids = workers.pids().values()
        workers.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(workers))
        gate.touch()
        responses = [future.result(30) for futures in sent.values() for future in futures]
        assert [response.status_code for response in responses] == [200] * 8
        assert workers.process.wait(30) == -signal.SIGTERM
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert not list(temporary_directory.iterdir()), "the directory of the sockets remains"


def is_refused(workers: Workers) -> bool:
    try:
        workers.get("/livez")
    except httpx.TransportError:
        return True
    return False


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    options = ("--shutdown-timeout-s", "600")
    with (
        two_workers(gated(tmp_path / "gate"), *options) as workers,
        ThreadPoolExecutor(2) as clients,
    ):
        workers.post_to_each(clients, 1)
        workers.process.send_signal(signal.SIGINT)
        wait_until(lambda: is_refused(workers))
        workers.process.send_signal(signal.SIGINT)
        assert workers.process.wait(30) == 128 + signal.SIGINT


def test_workers_end_with_their_supervisor() -> None:
    with two_workers(COLOUR) as workers:
        pids = workers.pids().values()
        workers.process.kill()
        wait_until(lambda: {state_of(pid) for pid in pids} <= {"Z", None})


def test_a_worker_that_cannot_start_ends_the_service() -> None:
    program = serving(
        """
    from model_package import PackageError
    raise PackageError("the package is damaged")
"""
    )
    with serve_process(program, "--workers", "2", stderr=subprocess.PIPE) as service:
        _, text = service.process.communicate(timeout=60)
    assert service.process.returncode == 2
    assert "centernet-serve: error: the package is damaged" in text.decode()
    assert "could not start (exit status 2); the service ends" in text.decode()
    assert "Traceback" not in text.decode()


def test_a_worker_with_a_broken_engine_is_replaced() -> None:
    program = serving(
        """
    from service.engines.errors import EngineBrokenError
    class Breaking(ColourEngine):
        def run(self, images, flip=False):
            if images[0][0, 0, 0] > 250:
                raise EngineBrokenError("broken by the test")
            return super().run(images, flip)
    return one_model(Breaking())(settings, metrics)
"""
    )
    with two_workers(program) as workers:
        before = workers.pids()
        with workers.only(0):
            assert workers.post(RED).status_code == 500
        wait_until(lambda: workers.pids().get(0) not in {None, before[0]}, 30)
        workers.wait_until_all_ready()
        assert workers.pids()[1] == before[1]
        assert [workers.post().status_code for _ in range(4)] == [200] * 4


def test_readiness_is_that_of_all_workers() -> None:
    program = serving(
        """
    import os
    from pathlib import Path
    from service.async_detector import AsyncDetector
    models = one_model(ColourEngine())(settings, metrics)
    if b'"index": 0' in Path("/proc/self/environ").read_bytes():
        AsyncDetector.problem = property(lambda self: "wrong detections")
    return models
"""
    )
    with serve_process(program, "--workers", "2", stderr=subprocess.DEVNULL) as service:
        workers = Workers(service)
        service.wait_for("/startupz")
        ready = "centernet_model_ready"
        wait_until(lambda: workers.metric(ready) == {0: 0.0, 1: 1.0}, 30)
        responses = [workers.get("/readyz") for _ in range(8)]
        assert {response.status_code for response in responses} == {503}
        assert {response.json()["detail"] for response in responses} == {
            "Model painted: wrong detections."
        }
