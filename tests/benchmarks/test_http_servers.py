"""The observations of the comparison of HTTP servers differ between servers."""

import pytest

from benchmarks.http_servers import attacks
from benchmarks.http_servers.servers import SERVERS, run

pytestmark = pytest.mark.slow

UNBOUNDED, BOUNDED = SERVERS[:2]
TRAILERS = attacks.FLOODS[0]


def test_a_flood_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "CLOSE_S", 0.5)
    kept = attacks.flood(UNBOUNDED, TRAILERS)
    assert kept.sent_mib >= 16
    assert kept.memory_mib > 16
    assert kept.ended == "open"
    refused = attacks.flood(BOUNDED, TRAILERS)
    assert refused.memory_mib < 16
    assert refused.ended == "closed"


def test_conversations_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "IDLE_CLOSE_S", 1.0)
    for server, body in ((UNBOUNDED, "lost"), (BOUNDED, "read")):
        with run(server) as running:
            assert attacks.upgrade_with_body(server, running) == body
            assert attacks.slow_head(server, running) == "open after 1 s"
            assert attacks.idle_after_error(server, running) == "open after 1 s"
            assert attacks.refused_while_sending(server, running, 2) in ("1 of 2", "2 of 2")
