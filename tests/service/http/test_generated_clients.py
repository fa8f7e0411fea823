"""Clients that are generated from the OpenAPI document, without warnings, and their calls."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.images import encode, plain
from support.serving import RunningServer
from support.tools import find_tool

pytest.importorskip("openapi_python_client")

_NPM_PACKAGES = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3")
_TYPESCRIPT = """
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

// The endpoint has other formats as well, such as images.
type Media = "application/json" | "application/problem+json";
const client = createClient<paths, Media>({ baseUrl: process.argv[2] });
const send = (query: { top_k?: number }) =>
  client.POST("/detect", {
    params: { query },
    body: readFileSync(process.argv[3]) as unknown as string,
    bodySerializer: (body) => body as unknown as BodyInit,
    headers: { "Content-Type": "application/octet-stream" },
  });
const found = await send({ top_k: 1 });
const refused = await send({ top_k: 0 });
const first = found.data?.detections[0];
console.log(JSON.stringify([first?.class_name, first?.bbox.length, refused.error?.code]));
"""


@pytest.fixture(scope="module")
def python_client(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package that openapi-python-client generates."""
    folder = tmp_path_factory.mktemp("generated")
    document = folder / "openapi.json"
    document.write_bytes(server.client.get("/openapi.json").content)
    command = [
        *(sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"),
        *("--path", document, "--meta", "none", "--output-path", folder / "generated_client"),
    ]
    # The generator formats its output with ruff.
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, env=os.environ | {"PATH": search_path}, check=True)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("generated_client.api.detection")
    finally:
        sys.path.remove(str(folder))


def test_a_python_client_detects_and_reads_errors(
    python_client: ModuleType, server: RunningServer
) -> None:
    package = python_client.__name__.partition(".")[0]
    module = {
        name: importlib.import_module(f"{package}.{name}")
        for name in ("types", "client", "models", "api.detection.detect")
    }
    call, models = module["api.detection.detect"].sync, module["models"]
    image = encode(plain(1, 2))
    expected = server.client.post("/detect", content=image).json()["detections"]
    with module["client"].Client(server.url) as client:
        file = module["types"].File(payload=image)
        found = call(client=client, body=file, x_deadline_ms=20_000)
        assert [detection.to_dict() for detection in found.detections] == expected
        form = models.DetectFilesBody(image=module["types"].File(image, "image.png"))
        assert len(call(client=client, body=form, top_k=1).detections) == 1
        refused = call(client=client, body=module["types"].File(payload=b"not an image"))
    assert isinstance(refused, models.Problem)
    assert (refused.status, refused.code) == (415, "unsupported_image")


def test_a_typescript_client_detects_and_reads_errors(
    server: RunningServer, tmp_path: Path
) -> None:
    npm, node = find_tool("npm", "nodejs.org"), find_tool("node", "nodejs.org")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    command = [npm, "install", "--no-audit", "--no-fund", *_NPM_PACKAGES, "@types/node@20"]
    if subprocess.run(command, cwd=tmp_path, check=False).returncode:
        pytest.skip("the registry of npm cannot be reached")
    (tmp_path / "openapi.json").write_bytes(server.client.get("/openapi.json").content)
    (tmp_path / "client.ts").write_text(_TYPESCRIPT)
    (tmp_path / "image.png").write_bytes(encode(plain(1, 2)))

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [node, program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    generator = "node_modules/openapi-typescript/bin/cli.js"
    assert "warn" not in run(generator, "openapi.json", "--output", "schema.ts").lower()
    options = ["--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck"]
    run("node_modules/typescript/bin/tsc", *options, "client.ts")
    output = json.loads(run("client.js", server.url, "image.png"))
    first = server.client.post("/detect", content=encode(plain(1, 2))).json()["detections"][0]
    assert output == [first["class_name"], 4, "invalid_option"]
