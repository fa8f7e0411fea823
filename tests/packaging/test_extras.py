"""Each extra of pyproject.toml, installed from the wheel into an environment of its own.

An extra is complete when its commands run in an environment that holds nothing else. The files of
its dependencies that the environment of the tests has, too, are linked from there, which takes a
fraction of the time; pip installs the others.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from support.checkpoints import save_slim_checkpoint
from support.heif import encode_heic
from support.images import encode, plain
from support.processes import free_port
from support.serving import RunningServer

SOURCES = (
    "bulk",
    "client",
    "command_line",
    "evaluation",
    "labels",
    "model_export",
    "model_package",
)
SOURCES += ("reports", "service", "training")
DISTRIBUTION = "centernet-serving"
NOT_INSTALLED = {
    "ray": "`make test-ray` installs it and runs its commands",
    "dev": "it is the environment that runs the tests",
    "tensorrt": "its libraries are not on PyPI but on https://pypi.nvidia.com",
}
TRAINING_CONFIG = """
architecture = "res_18_slim"
normalization = "coco"
classes = ["RBC", "WBC", "Platelets"]
input_width = 64
input_height = 64
train_crop = 64
image_width = 640
seed = 3
loader_workers = 0
[data]
images = "smears"
train = ["smears/blood_smears.json"]
validation = "smears/blood_smears.json"
[augmentation]
scale = [1.0, 1.2]
brightness = 0.1
contrast = 0.1
saturation = 0.1
hue_degrees = 5
blur_probability = 0.1
[schedule]
epochs = 1
batch_size = 2
learning_rate = 2e-3
weight_decay = 1e-3
warmup_steps = 2
average_decay = 0.9
gradient_clip = 10.0
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment for the wheel; commands run in ``directory``."""

    root: Path
    directory: Path
    wheel: Path
    constraints: Path

    def install(self, extra: str) -> None:
        link_distributions(f"{DISTRIBUTION}[{extra}]", self.root)
        pip(
            *("--python", self.root / "bin" / "python", "install", "--no-compile"),
            *("--constraint", self.constraints, f"{self.wheel}[{extra}]"),
        )

    def run(self, command: str, *arguments: object, status: int = 0) -> str:
        """Run a program of the environment and return its output, stderr included."""
        result = subprocess.run(
            self.command(command, *arguments),
            cwd=self.directory,
            env=clean_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert result.returncode == status, f"{command} {arguments}:\n{result.stdout}"
        return result.stdout

    def command(self, command: str, *arguments: object) -> list[str]:
        return [str(self.root / "bin" / command), *map(str, arguments)]


def clean_environ() -> dict[str, str]:
    """Return the variables of this process without those that lead Python to the checkout."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "CENTERNET_", "PYTEST_"))
    }


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: builds leave folders behind."""
    sources, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project / name, sources / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, sources)
    try:
        pip("wheel", "--no-deps", "--wheel-dir", output, sources)
    except AssertionError as error:
        if "No matching distribution found for setuptools" not in str(error):
            raise
        pytest.skip("pip cannot reach a package-index, which installing the extras needs")
    (built,) = output.glob("*.whl")
    return built


@pytest.fixture
def environment(project: Path, wheel: Path, tmp_path: Path) -> Iterator[Environment]:
    """An empty environment, deleted after the test: some take a gigabyte."""
    root, directory = tmp_path / "environment", tmp_path / "work"
    directory.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True, timeout=120)
    yield Environment(root, directory, wheel, project / "constraints.txt")
    shutil.rmtree(root)


def link_distributions(requirement: str, environment: Path) -> None:
    """Hard-link what a distribution with its extras requires from this environment into another."""
    (target,) = environment.glob("lib/python*/site-packages")
    waiting, seen = [Requirement(requirement)], set[str]()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        name = canonicalize_name(wanted.name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # pip installs it, or it is required on other platforms only
        extras = wanted.extras or {""}
        required = [Requirement(text) for text in found.requires or ()]
        waiting += [
            one
            for one in required
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
        ]
        if name != canonicalize_name(DISTRIBUTION):
            link_files(found, target)


def link_files(found: Distribution, target: Path) -> None:
    """Hard-link modules and metadata of a distribution; commands belong to one environment."""
    for file in found.files or ():
        source = Path(str(found.locate_file(file)))
        is_module = ".." not in file.parts and file.suffix != ".pyc" and source.is_file()
        if not is_module or (target / file).exists():
            continue
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target / file)
        except OSError:  # another file system
            shutil.copy(source, target / file)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encode(plain(8, 6)))
    return path


@contextmanager
def serving(environment: Environment, *options: object) -> Iterator[str]:
    """Run centernet-serve of the environment; its URL."""
    command = environment.command("centernet-serve", "--port", 0, *options)
    process = subprocess.Popen(
        command, cwd=environment.directory, env=clean_environ(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    log = []
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"ready after .* (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail(f"centernet-serve did not start: {''.join(log)}")
        url: str = found[1]
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def check_client(environment: Environment, server: RunningServer, image: Path) -> None:
    environment.run("centernet-detect", "--help")
    output = environment.directory / "drawn.png"
    found = environment.run("centernet-detect", image, "--url", server.url, "--draw", output)
    assert "red" in found
    assert output.is_file()
    program = f"from client import Client; print(Client({server.url!r}).detect({str(image)!r}))"
    assert "class_name='red'" in environment.run("python", "-c", program)


def check_client_alone(environment: Environment, server: RunningServer, image: Path) -> None:
    check_client(environment, server, image)
    output = environment.run("centernet-serve", status=1)
    assert "Install the extra 'serve'" in output


def check_video(environment: Environment, server: RunningServer, image: Path) -> None:
    check_client(environment, server, image)
    program = (
        "import cv2, numpy; file = cv2.VideoWriter('v.avi', cv2.VideoWriter.fourcc(*'MJPG'), 9, "
        "(64, 48)); [file.write(numpy.zeros((48, 64, 3), 'u1')) for _ in range(3)]; file.release()"
    )
    environment.run("python", "-c", program)
    environment.run("centernet-detect", "v.avi", "--url", server.url, "--draw", "drawn.mp4")
    assert (environment.directory / "drawn.mp4").stat().st_size > 0


def check_http(environment: Environment, server: RunningServer, image: Path) -> None:
    check_client(environment, server, image)
    environment.run("centernet-serve", "--help")
    environment.run("centernet-serve", "tune", "--help")


def check_serve(
    environment: Environment, server: RunningServer, image: Path, *, options: tuple[str, ...] = ()
) -> None:
    del server, image
    project = Path(__file__).parents[2]
    with serving(environment, "--models", project / "models/blood_cells", *options) as url:
        smear = project / "docs/samples/blood_smear_1.jpg"
        assert "WBC" in environment.run("centernet-detect", smear, "--url", url)
        for path in ("/", "/page/page.js", "/docs", "/docs/swagger-ui-bundle.js"):
            assert httpx.get(url + path).status_code == 200


def check_grpc(environment: Environment, server: RunningServer, image: Path) -> None:
    del server, image
    models = Path(__file__).parents[2] / "models/blood_cells"
    port = free_port()
    with serving(environment, "--models", models, "--grpc-port", port):
        program = (
            f"import grpc; channel = grpc.insecure_channel('127.0.0.1:{port}'); "
            "print(channel.unary_unary('/grpc.health.v1.Health/Check')(b'', timeout=20))"
        )
        assert environment.run("python", "-c", program).strip() == r"b'\x08\x01'"  # SERVING


def check_serve_alone(environment: Environment, server: RunningServer, image: Path) -> None:
    check_serve(environment, server, image)
    output = environment.run("centernet-serve", "--grpc-port", 0, status=2)
    assert "Install 'centernet-serving[grpc]'" in output


def check_eval(environment: Environment, server: RunningServer, image: Path) -> None:
    environment.run("centernet-eval", "--help")
    labels = image.with_suffix(".json")
    labels.write_text(json.dumps(coco_labels(image)))
    report = environment.directory / "report"
    environment.run(
        *("centernet-eval", "--url", server.url, "--annotations", labels),
        *("--images", image.parent, "--output", report),
    )
    assert (report / "report.html").is_file()


def coco_labels(image: Path) -> Mapping[str, object]:
    names = ("red", "green", "blue")
    return {
        "images": [{"id": 1, "file_name": image.name, "width": 8, "height": 6}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16}
            | {"iscrowd": 0}
        ],
    }


def check_heic(environment: Environment, server: RunningServer, image: Path) -> None:
    del server, image
    path = environment.directory / "image.heic"
    path.write_bytes(encode_heic(Image.new("RGB", (64, 48), (200, 30, 30))))
    program = (
        "from service.imaging.image_decoding import ACCEPTED_FORMATS, open_image; "
        f"image = open_image(open({str(path)!r}, 'rb').read(), 10_000); "
        "print(ACCEPTED_FORMATS, image.decode().pixels.shape)"
    )
    assert "HEIC (48, 64, 3)" in environment.run("python", "-c", program)


def check_build(environment: Environment, server: RunningServer, image: Path) -> None:
    del server, image
    environment.run("centernet-export", "build", "--help")
    package = Path(__file__).parents[2] / "models/blood_cells"
    refusal = environment.run("centernet-export", "build", package, status=2)
    assert "centernet-serving[build,tensorrt-rtx]" in refusal


def check_tensorrt_rtx(environment: Environment, server: RunningServer, image: Path) -> None:
    del server, image
    environment.run("centernet-export", "build", "--help")
    environment.run("python", "-c", "import tensorrt_rtx; tensorrt_rtx.Builder")


def check_export(environment: Environment, server: RunningServer, image: Path) -> None:
    del server, image
    environment.run("centernet-export", "--help")
    checkpoint = environment.directory / "slim.pth"
    save_slim_checkpoint(checkpoint, classes=3)
    assert "res_18_slim" in environment.run("centernet-export", "inspect", checkpoint)
    package = environment.directory / "shapes"
    environment.run(
        *("centernet-export", "package", "--checkpoint", checkpoint, "--output", package),
        *("--classes", "circle,square,triangle", "--input-size", "64x64", "--top-k", 50),
    )
    assert (package / "model.json").is_file()
    assert (package / "report.html").is_file()


def check_train(
    environment: Environment, server: RunningServer, image: Path, *, options: tuple[str, ...] = ()
) -> None:
    del server, image
    smears = ("--output", "smears", "--count", 2, "--seed", 1)
    environment.run("python", "-m", "training.synthetic.blood_smears", *smears)
    (environment.directory / "config.toml").write_text(TRAINING_CONFIG)
    run = f"run{len(options)}"
    training = ("config.toml", "--output", run, "--device", "cpu", *options)
    environment.run("centernet-train", *training)
    environment.run("centernet-export", "inspect", f"{run}/best.pth")
    assert bool(options) == (environment.directory / run / "tensorboard").is_dir()


def check_timm(environment: Environment, server: RunningServer, image: Path) -> None:
    del server, image
    output = environment.run(
        *("centernet-export", "package", "--checkpoint", environment.directory / "slim.pth"),
        *("--arch", "timm/mobilenet_v9", "--output", environment.directory / "unknown"),
        status=2,
    )
    # The second where PyTorch is a build for CPUs only and torchvision is not.
    assert "has no model 'mobilenet_v9'" in output or "built for the installed PyTorch" in output


Check = Callable[[Environment, RunningServer, Path], None]
CHECKS: Mapping[str, Check] = {
    "client": check_client_alone,
    "video": check_video,
    "http": check_http,
    "serve": check_serve_alone,
    "grpc": check_grpc,
    "heic": check_heic,
    "gpu": partial(check_serve, options=("--backend", "onnxruntime-cpu")),
    "otel": partial(check_serve, options=("--otlp-endpoint", "http://127.0.0.1:9")),
    "eval": check_eval,
    "build": check_build,
    "tensorrt-rtx": check_tensorrt_rtx,
    "export": check_export,
    "timm": check_timm,
    "train": check_train,
    "tensorboard": partial(check_train, options=("--tensorboard",)),
}
NEEDS: Mapping[str, str] = {
    "grpc": "serve",
    "heic": "serve",
    "otel": "serve",
    "tensorrt-rtx": "build",
    "tensorboard": "train",
    "timm": "export",
}
"""Extras that add to another one: they are installed into its environment after its own check."""


def test_every_extra_is_checked_here(project: Path) -> None:
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    missing = set(extras) - set(CHECKS) - set(NOT_INSTALLED)
    assert not missing, f"add a check of {missing} to CHECKS in tests/packaging/test_extras.py"
    assert set(CHECKS) <= set(extras)


def test_the_extra_tensorrt_installs_a_version_that_tests_run_with(project: Path) -> None:
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (requirement,) = map(Requirement, extras["tensorrt"])
    (version,) = requirement.specifier
    assert version.operator == "=="
    (versions,) = re.findall(
        r"^TENSORRT_VERSIONS := (.*)$", (project / "Makefile").read_text(), re.M
    )
    assert version.version in versions.split()


@pytest.mark.slow
@pytest.mark.parametrize("extra", [extra for extra in CHECKS if extra not in NEEDS])
def test_the_commands_of_an_extra_run_in_a_clean_environment(
    extra: str, environment: Environment, server: RunningServer, image: Path
) -> None:
    for name in (extra, *(added for added, needed in NEEDS.items() if needed == extra)):
        environment.install(name)
        CHECKS[name](environment, server, image)
