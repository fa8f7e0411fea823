"""The bounds of the load test with hostile clients, and its smallest file."""

from dataclasses import replace

import pytest

from benchmarks.decoding_cost import uniform_webp
from benchmarks.hostile_load import Measured, Phase, checks, latency_ms
from benchmarks.load import Latency, Load, LoadError, Responses
from service.imaging.image_decoding import open_image


def load(p99_ms: float, status: int = 200, sent: int = 200) -> Load:
    latency = Latency(*[p99_ms] * 7)
    return Load(
        *(40.0, sent, 200, {status: Responses(200, latency, None)}),
        *(0, 0, 0, 0, 1, 0.0, 0.0),
    )


MEASURED = Measured(
    name="a file",
    file_bytes=38,
    decode_s=1.0,
    alone=Phase(load(100), 0.01),
    beside=Phase(load(1200), 0.05),
    hostile=load(9, 429),
    over_idle_bytes=1280 * 2**20,
)


def test_accepts_values_at_the_bounds() -> None:
    assert all(check.passed for check in checks(MEASURED))


@pytest.mark.parametrize(
    ("measured", "failed"),
    [
        (replace(MEASURED, beside=Phase(load(1201), 0.0)), "ordinary p99, s"),
        (replace(MEASURED, beside=Phase(load(1, sent=201), 0.0)), "requests without status 200"),
        (replace(MEASURED, beside=Phase(load(1), 0.051)), "event-loop lag, s"),
        (replace(MEASURED, over_idle_bytes=1281 * 2**20), "memory over idle, MiB"),
    ],
)
def test_rejects_values_beyond_the_bounds(measured: Measured, failed: str) -> None:
    names = [check.name for check in checks(measured) if not check.passed]
    assert len(names) == 1
    assert names[0].endswith(failed)


def test_needs_a_response_with_status_200() -> None:
    with pytest.raises(LoadError):
        latency_ms(Phase(load(1, 429), 0.0))


def test_the_uniform_webp_is_accepted() -> None:
    body = uniform_webp(64, 32)
    pixels = open_image(body, 50_000_000).decode().pixels
    assert len(body) == 38
    assert pixels.shape == (32, 64, 3)
