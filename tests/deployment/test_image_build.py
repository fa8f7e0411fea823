"""The images, built from docker/Dockerfile and run as docker-compose.yml runs them.

What differs from a container engine: the base image is Debian 12 without Python (like NVIDIA's, it
gets Python from the distribution), and the GPU image is built with TensorRT-RTX in place of
TensorRT, whose libraries are not on PyPI. It then builds an engine, but nothing here has a GPU.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.checkpoints import save_slim_checkpoint
from support.compose import compose_config
from support.containers import Image, ImageStore, memory_group
from support.images import largest_images
from support.processes import free_port
from support.serving import wait_until

from model_package import load_package
from service.settings import Settings

pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(os.geteuid() != 0, reason="building images needs root"),
]
REQUESTS_IN_FLIGHT = 8


@pytest.fixture(scope="module")
def services(project: Path) -> dict[str, Any]:
    config: dict[str, Any] = compose_config(project, "cpu", "gpu", "jobs")["services"]
    return config


@pytest.fixture(scope="module")
def store() -> Iterator[ImageStore]:
    # Not a directory of pytest, which would keep several gigabytes after the tests.
    with tempfile.TemporaryDirectory(prefix="images-") as directory:
        store = ImageStore(Path(directory))
        try:
            store.make_base()
            yield store
        finally:
            store.unmount()


@pytest.fixture(scope="module")
def cpu_image(store: ImageStore, project: Path) -> Image:
    return store.build(project, {})


@pytest.fixture(scope="module")
def gpu_image(store: ImageStore, project: Path, services: dict[str, Any]) -> Image:
    extras = services["gpu"]["build"]["args"]["EXTRAS"].split(",")
    extras[extras.index("tensorrt")] = "tensorrt-rtx"
    return store.build(project, {"EXTRAS": ",".join(extras)})


@pytest.fixture(scope="module")
def export_image(store: ImageStore, project: Path, services: dict[str, Any]) -> Image:
    arguments = services["export"]["build"]["args"]
    return store.build(project, {name: arguments[name] for name in ("EXTRAS", "INDEX")})


@pytest.fixture
def volumes(tmp_path: Path, services: dict[str, Any]) -> dict[str, Path]:
    """Empty directories in place of the volumes of the jobs, owned by their user."""
    volumes = {"/models": tmp_path / "models", "/var/cache/centernet": tmp_path / "cache"}
    for directory in volumes.values():
        directory.mkdir()
        own(directory, services["build"]["user"])
    return volumes


def own(path: Path, user: str) -> None:
    """Make ``user``, as docker-compose.yml writes it, the owner of a directory and its files."""
    subprocess.run(["chown", "--recursive", user, path], check=True)


def run(command: list[str], status: int = 0) -> str:
    """Run a command and return its output, stderr included."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert result.returncode == status, result.stdout
    return result.stdout


@contextmanager
def serving(
    image: Image, service: Mapping[str, Any], group: Path | None = None
) -> Iterator[tuple["subprocess.Popen[bytes]", httpx.Client]]:
    """Start a service of docker-compose.yml on a free port; its process and a client of it."""
    port = free_port()
    # A busy machine can take minutes for the large images.
    environment = {"CENTERNET_PORT": str(port), "CENTERNET_REQUEST_TIMEOUT_S": "600"}
    process = subprocess.Popen(image.command(service, environment=environment, control_group=group))

    def ready() -> bool:
        assert process.poll() is None, "the service exited"
        with suppress(httpx.TransportError):
            return client.get("/readyz").is_success
        return False

    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            wait_until(ready, seconds=120)
            _, *healthcheck = image.config["Healthcheck"]["Test"]
            run(image.command({**service, "entrypoint": healthcheck}, environment=environment))
            yield process, client
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_the_service_detects_with_every_bundled_model(
    cpu_image: Image, services: dict[str, Any], project: Path
) -> None:
    with serving(cpu_image, services["cpu"]) as (process, client):
        body = (project / "docs/samples/blood_smear_1.jpg").read_bytes()
        assert client.post("/detect", content=body).json()["detections"][0]["class_name"] == "WBC"
        for package in sorted((project / "models").iterdir()):
            assert client.post(f"/models/{package.name}/detect", content=body).is_success
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^Uid:\s10001\s", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\s0+$", status, re.MULTILINE)
    assert process.returncode == -signal.SIGTERM


def test_memory_stays_below_the_limit_while_the_largest_images_are_decoded(
    cpu_image: Image, services: dict[str, Any]
) -> None:
    limit_bytes = int(services["cpu"]["deploy"]["resources"]["limits"]["memory"])
    images = largest_images(Settings.model_fields["max_image_pixels"].default)
    with (
        memory_group(limit_bytes) as group,
        serving(cpu_image, services["cpu"], group.path) as (process, client),
        ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool,
    ):

        def send(body: bytes) -> int:
            return client.post("/detect", content=body).status_code

        print(f"\nMiB: limit {limit_bytes >> 20}, idle {peak_bytes(process.pid) >> 20}")
        batches = {name: [body] * REQUESTS_IN_FLIGHT for name, body in images.items()}
        for name, bodies in {**batches, "all kinds": [*images.values()] * 4}.items():
            assert set(pool.map(send, bodies)) == {200}, name
            print(
                f"{name}: resident {peak_bytes(process.pid) >> 20}, group {group.peak_bytes >> 20}"
            )
        assert group.killed == 0
        assert peak_bytes(process.pid) < limit_bytes


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])


def test_a_checkpoint_is_exported_without_a_network(
    export_image: Image, services: dict[str, Any], volumes: dict[str, Path]
) -> None:
    save_slim_checkpoint(volumes["/models"] / "slim.pth", classes=3)
    arguments = ["package", "--checkpoint", "/models/slim.pth", "--output", "/models/shapes"]
    arguments += ["--classes", "circle,square,triangle", "--input-size", "64x64"]
    run(export_image.command(services["export"], arguments, volumes=volumes))
    assert load_package(volumes["/models"] / "shapes").manifest.classes == (
        "circle",
        "square",
        "triangle",
    )


def test_the_engine_build_names_the_missing_library(
    gpu_image: Image, services: dict[str, Any], project: Path, volumes: dict[str, Path]
) -> None:
    shutil.copytree(project / "models/blood_cells", volumes["/models"] / "blood_cells")
    arguments = ["/models/blood_cells", "--backend", "tensorrt"]
    output = run(gpu_image.command(services["build"], arguments, volumes=volumes), status=2)
    assert "TensorRT is not installed" in output
    assert "centernet-serving[build,tensorrt]" in output


def test_an_engine_is_built_for_a_gpu_elsewhere(
    gpu_image: Image, services: dict[str, Any], project: Path, volumes: dict[str, Path]
) -> None:
    package = volumes["/models"] / "blood_cells"
    shutil.copytree(project / "models/blood_cells", package)
    own(package, services["build"]["user"])
    # TensorRT-RTX has no timing cache.
    service = services["build"] | {"entrypoint": ["centernet-export", "build"]}
    arguments = ["/models/blood_cells", "--precision", "fp32"]
    output = run(gpu_image.command(service, arguments, volumes=volumes), status=2)
    assert "there is no GPU here" in output
    arguments += ["--compute-capability", "8.9"]
    run(gpu_image.command(service, arguments, volumes=volumes))
    (engine,) = package.glob("*.engine")
    assert engine.stat().st_uid == int(services["build"]["user"].split(":")[0])


def test_the_gpu_image_reports_that_there_is_no_gpu(
    gpu_image: Image, services: dict[str, Any], volumes: dict[str, Path], project: Path
) -> None:
    volumes["/models"] = project / "models"
    environment = {"CENTERNET_PORT": "0"}
    command = gpu_image.command(services["gpu"], environment=environment, volumes=volumes)
    assert "there is no NVIDIA GPU here" in run(command, status=2)
