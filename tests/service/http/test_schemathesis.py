"""The API against its own description: requests that schemathesis makes up from OpenAPI."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.serving import ColourEngine, RunningServer

KEY = "schemathesis-0123456789"


@pytest.mark.skipif(not os.environ.get("HEAVY_TESTS"), reason="takes minutes: set HEAVY_TESTS=1")
def test_schemathesis_finds_nothing(
    start_server: Callable[..., RunningServer], project: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(KEY)
    running = start_server(ColourEngine(), api_keys_file=tmp_path / "keys")
    support = project / "tests" / "support"
    result = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file"),
            *(support / "schemathesis.toml", "run", f"{running.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}", "--max-examples", "50", "--seed", "1"),
        ],
        cwd=tmp_path,  # it keeps what it found
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "support.schemathesis_hooks",
            "PYTHONPATH": f"{project}{os.pathsep}{support.parent}",
        },
        capture_output=True,
        text=True,
        timeout=1200,
    )
    print(result.stdout)
    assert result.returncode == 0
    paths = running.client.get("/openapi.json").json()["paths"]
    operations = sum(len(methods) for methods in paths.values())
    assert f"Tested: {operations}\n" in result.stdout
    for route in ("/detect", "/models/{name}", "/readyz"):
        method = "POST" if route == "/detect" else "GET"
        name = "centernet_http_requests_total"
        assert running.metric(name, route=route, method=method, status="200"), route
    for code in ("unauthorized", "bad_image", "unsupported_image", "invalid_option"):
        assert running.metric("centernet_request_errors_total", code=code), code
    assert not running.metric("centernet_request_errors_total", code="internal_error")
