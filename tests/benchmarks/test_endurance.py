"""Short runs of the endurance tests, and tests that their checks detect failures."""

import asyncio
import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from support.images import encode, plain
from support.serving import ColourEngine, one_model, run_server, wait_until

from benchmarks.endurance import model_replacement
from benchmarks.endurance.drain import Client, outcomes, summarize, terminate_under_load
from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import Metrics, run_service
from benchmarks.endurance.soak import EXPECTED_STATUSES, streams, write_hostile_files
from benchmarks.load import Target, open_loop
from service.engines import Images
from service.settings import Settings

with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def test_no_request_is_lost_on_sigterm_under_load() -> None:
    with run_service() as service:
        clients, signalled_at, exit_s = asyncio.run(terminate_under_load(service, 1.0))
    before, _ = outcomes(clients, signalled_at)
    completed, _, lost = summarize(before)
    assert completed > 0
    assert lost == 0, before
    assert sum(client.mismatched for client in clients) == 0
    assert sum(client.surplus_bytes for client in clients) == 0
    assert exit_s < float("inf")


@pytest.mark.parametrize(
    ("response", "statuses", "mismatched", "surplus"),
    [
        ("HTTP/1.1 200 OK\r\nX-Request-ID: {id}\r\nContent-Length: 0\r\n\r\n", [200], 0, 0),
        ("HTTP/1.1 200 OK\r\nX-Request-ID: other\r\nContent-Length: 0\r\n\r\n", [200], 1, 0),
        ("HTTP/1.1 200 OK\r\nX-Request-ID: {id}\r\nContent-Length: 0\r\n\r\nmore", [200], 0, 4),
        ("HTTP/1.1 200 OK\r\nX-Request", [None], 0, 0),
        ("", [None], 0, 0),
    ],
)
def test_clients_detect_missing_mismatched_and_surplus_responses(
    response: str, statuses: list[int | None], mismatched: int, surplus: int
) -> None:
    async def main() -> Client:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.close()  # accept no further connections
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await reader.readexactly(int(re.findall(r"Length: (\d+)", head)[0]))
            number = re.findall(r"X-Request-ID: (\S+)", head)[0]
            writer.write(response.format(id=number).encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Client(port, count(), keep_alive=False, valid_images=True)
        async with asyncio.timeout(20):
            await client.run()
        return client

    client = asyncio.run(main())
    assert [request.status for request in client.requests] == statuses
    assert (client.mismatched, client.surplus_bytes) == (mismatched, surplus)


class SlowEngine(ColourEngine):
    """An engine that takes 20 ms per image."""

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        time.sleep(0.02 * len(images))
        return super().run(images, flip)


@with_compiler
def test_overload_returns_200_or_429_and_disconnects_cost_no_engine_time(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(encode(plain(1, 2)))
    with run_server(one_model(SlowEngine()), Settings(target_latency_ms=200)) as server:
        target = Target(int(server.url.rsplit(":", 1)[1]), "/detect", [image])
        overload = open_loop(target, 3, 150)
        assert set(overload.statuses) == {200, 429}
        assert overload.sent == overload.completed
        rejected = overload.statuses[429]
        assert rejected.retry_after is not None
        assert rejected.retry_after.count == rejected.count

        def inputs_run() -> float:
            return server.metric("centernet_images_total", model="painted")

        assert overload.ok is not None
        assert inputs_run() == overload.ok.count
        disconnecting = open_loop(target, 3, 150, disconnect_fraction=0.5)
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 0)
        labels = {"model": "painted", "stage": "queue"}
        cancelled = server.metric("centernet_cancelled_inputs_total", **labels)
        assert cancelled > 0
        statuses = disconnecting.statuses
        rejections = statuses[429].count if 429 in statuses else 0
        assert inputs_run() - overload.ok.count + cancelled <= disconnecting.sent - rejections


@with_compiler
def test_no_thread_or_socket_leaks_after_valid_and_corrupted_images(tmp_path: Path) -> None:
    with run_service("--self-test-interval-s", "1") as service:
        hostile = write_hostile_files(tmp_path, per_kind=25)
        open_loop(Target(service.port, "/detect", hostile, ()), 2, 50)  # starts all threads
        first = service.state()
        with ThreadPoolExecutor(3) as threads:
            futures = [
                threads.submit(stream) for stream in streams(service, hostile, rate=8, seconds=4)
            ]
            loads = [future.result() for future in futures]
        assert {status for load in loads for status in load.statuses} <= EXPECTED_STATUSES
        assert sum(load.failures + load.timeouts for load in loads) == 0

        def has_settled() -> bool:
            last = service.state()
            return last.threads <= first.threads and last.sockets <= first.sockets

        wait_until(has_settled)


def test_a_failed_check_exits_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        exit_with_checks([Check("passed", 1, 1, 1), Check("lost", 1, max=0)])
    assert exit_info.value.code == 1
    assert "| lost | 1 | 0 | failed |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        exit_with_checks([Check("passed", 0.96, min=0.95)])
    assert exit_info.value.code == 0


def test_totals_sum_over_the_other_labels() -> None:
    scraped = Metrics({("a", 'model="x",stage="queue"'): 2, ("a", 'model="x",stage="infer"'): 3})
    assert scraped.total("a") == 5
    assert scraped.total("a", stage="infer") == 3
    assert scraped.total("b") == 0


def test_a_model_is_replaced_under_load_and_damaged_packages_are_refused(tmp_path: Path) -> None:
    model_replacement.write_package(tmp_path / "1", 1)
    options = ("--model-control", "explicit", "--max-batch-size", "1")
    with run_service(*options, package=tmp_path) as service:
        url = f"http://127.0.0.1:{service.port}"
        clients = model_replacement.Clients(url, model_replacement.expected_scores(url, 1))
        with clients.sending() as results:
            replacements = model_replacement.replace(service, url, tmp_path, 2)
    assert (replacements.not_replaced, replacements.not_refused) == (0, 0)
    assert len(replacements.states) == 2
    assert (results.lost, results.wrong, set(results.statuses)) == (0, 0, {200})
    assert set(results.versions) >= {"1", "2"}


def test_responses_with_the_detections_of_another_version_are_wrong() -> None:
    image = model_replacement.IMAGES[0]
    clients = model_replacement.Clients("", {image: [0.8, 0.4]})
    for version, scores, wrong in (
        ("2", [0.8, 0.4], 0),
        ("3", [0.4, 0.2], 0),
        ("3", [0.8, 0.4], 1),
        ("2", [0.8, 0.2], 1),
        ("2", [0.8], 1),
    ):
        results = model_replacement.Results()
        detections = [{"score": score} for score in scores]
        clients._check(results, image, {"model": {"version": version}, "detections": detections})
        assert results.wrong == wrong, (version, scores)
