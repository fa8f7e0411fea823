"""The benchmarks of endurance, briefly, and that they would find what they look for."""

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

from benchmarks.endurance.drain import Client, columns, outcomes, signalled
from benchmarks.endurance.report import Check, conclude
from benchmarks.endurance.service import Metrics, running
from benchmarks.endurance.soak import MEANT, streams, write_mutants
from benchmarks.load import Target, open_loop
from service.engines import Images
from service.settings import Settings

with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the generator needs g++")


def test_sigterm_under_load_loses_no_request() -> None:
    with running() as service:
        clients, signalled_at, ended_s = asyncio.run(signalled(service, 1.0))
    before, _ = outcomes(clients, signalled_at)
    answered, _, lost = columns(before)
    assert answered > 0
    assert lost == 0, before
    assert sum(client.foreign for client in clients) == 0
    assert sum(client.surplus_bytes for client in clients) == 0
    assert ended_s < float("inf")


@pytest.mark.parametrize(
    ("answer", "statuses", "foreign", "surplus"),
    [
        ("HTTP/1.1 200 OK\r\nX-Request-ID: {id}\r\nContent-Length: 0\r\n\r\n", [200], 0, 0),
        ("HTTP/1.1 200 OK\r\nX-Request-ID: other\r\nContent-Length: 0\r\n\r\n", [200], 1, 0),
        ("HTTP/1.1 200 OK\r\nX-Request-ID: {id}\r\nContent-Length: 0\r\n\r\nmore", [200], 0, 4),
        ("HTTP/1.1 200 OK\r\nX-Request", [None], 0, 0),
        ("", [None], 0, 0),
    ],
)
def test_the_clients_notice_what_goes_wrong(
    answer: str, statuses: list[int | None], foreign: int, surplus: int
) -> None:
    async def main() -> Client:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.close()  # nobody else is taken
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await reader.readexactly(int(re.findall(r"Length: (\d+)", head)[0]))
            number = re.findall(r"X-Request-ID: (\S+)", head)[0]
            writer.write(answer.format(id=number).encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Client(port, count(), keeps_connection=False, sends_images=True)
        async with asyncio.timeout(20):
            await client.run()
        return client

    client = asyncio.run(main())
    assert [request.status for request in client.requests] == statuses
    assert (client.foreign, client.surplus_bytes) == (foreign, surplus)


class SleepyEngine(ColourEngine):
    """Takes 20 ms per image."""

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        time.sleep(0.02 * len(images))
        return super().run(images, flip)


@with_compiler
def test_overload_is_answered_or_refused_and_half_of_it_may_hang_up(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(encode(plain(1, 2)))
    with run_server(one_model(SleepyEngine()), Settings(target_latency_ms=200)) as server:
        target = Target(int(server.url.rsplit(":", 1)[1]), "/detect", [image])
        overload = open_loop(target, 3, 150)
        assert set(overload.statuses) == {200, 429}
        assert overload.sent == overload.answered
        refused = overload.statuses[429]
        assert refused.retry_after is not None
        assert refused.retry_after.count == refused.count

        def ran() -> float:
            return server.metric("centernet_images_total", model="painted")

        assert overload.good is not None
        assert ran() == overload.good.count
        hasty = open_loop(target, 3, 150, disconnect_fraction=0.5)
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 0)
        labels = {"model": "painted", "stage": "queue"}
        left_the_queue = server.metric("centernet_cancelled_inputs_total", **labels)
        assert left_the_queue > 0
        refused_now = hasty.statuses[429].count if 429 in hasty.statuses else 0
        assert ran() - overload.good.count + left_the_queue <= hasty.sent - refused_now


@with_compiler
def test_nothing_stays_open_after_good_and_bad_images(tmp_path: Path) -> None:
    with running("--self-test-interval-s", "1") as service:
        images = Target(service.port, "/detect", write_mutants(tmp_path), ())
        open_loop(images, 2, 50)  # all threads have begun
        first = service.state()
        with ThreadPoolExecutor(3) as threads:
            asked = streams(service, write_mutants(tmp_path), 20, 4)
            loads = [one.result() for one in [threads.submit(one) for one in asked]]
        assert {status for load in loads for status in load.statuses} <= MEANT
        assert sum(load.failures + load.timeouts for load in loads) == 0

        def has_settled() -> bool:
            last = service.state()
            return last.threads <= first.threads and last.sockets <= first.sockets

        wait_until(has_settled)


def test_a_bound_that_is_missed_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        conclude([Check("kept", 1, 1, 1), Check("lost", 1, most=0)])
    assert ended.value.code == 1
    assert "| lost | 1 | 0 | missed |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        conclude([Check("kept", 0.96, least=0.95)])
    assert ended.value.code == 0


def test_metrics_are_summed_over_their_labels() -> None:
    scraped = Metrics({("a", 'model="x",stage="queue"'): 2, ("a", 'model="x",stage="infer"'): 3})
    assert scraped.total("a") == 5
    assert scraped.total("a", stage="infer") == 3
    assert scraped.total("b") == 0
