"""``centernet-detect`` against a real server."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import encode, plain
from support.serving import FixedEngine, RunningServer, make_manifest
from support.tasks import BOXES_3D, BOXES_3D_ROWS, CANVAS_3D, POSE_ROWS, POSES

from client.detect import DETECTION_OPTIONS, build_parser, main
from service.options import DetectParameters


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encode(plain(8, 6)))
    return path


def test_every_request_option_of_the_service_is_an_option_of_the_command() -> None:
    assert set(DETECTION_OPTIONS) == set(DetectParameters.model_fields)
    arguments = vars(build_parser().parse_args(["image.png"]))
    assert {name: arguments[name] for name in DETECTION_OPTIONS} == dict.fromkeys(DETECTION_OPTIONS)


def test_boxes_are_printed_and_drawn(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = image.with_name("drawn.png")
    main([str(image), "--url", server.url, "--top-k", "1", "--output", str(output)])
    assert capsys.readouterr().out.split() == ["0.900", "28.00", "20.00", "36.00", "28.00", "red"]
    with Image.open(output) as drawn:
        pixels = np.asarray(drawn)
    # The colour of class 0 is on the box's edge and not in its middle.
    assert tuple(pixels[27, 28]) == (0xD5, 0x5E, 0x00)
    assert tuple(pixels[25, 32]) == (8, 6, 0)


def test_the_error_of_the_service_is_printed(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(image), "--url", server.url, "--classes", "red", "pink"])
    assert caught.value.code == 1
    assert "422 classes: received 'pink'" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:1/prefix/"])
def test_reports_a_service_that_cannot_be_reached(
    url: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(image), "--url", url])
    assert "cannot be reached" in capsys.readouterr().err


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a failing command prints to stderr."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("centernet-detect: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("name", "reason"), [("o.xyz", "must end in"), ("o", "must end in"), ("no/o.png", "directory")]
)
def test_an_output_that_cannot_be_written_is_refused_before_the_request(
    name: str, reason: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(image.parent / name)
    no_service = "http://127.0.0.1:1"
    assert reason in error_of(capsys, str(image), "--url", no_service, "--output", output)


@contextmanager
def single_response_server(content: bytes) -> Iterator[str]:
    """Run a server that sends ``content`` in response to its first request."""

    def respond() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=respond, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "invalid HTTP response: Server disconnected"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}",
            "invalid HTTP response: peer closed connection",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "is this a CenterNet service?"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "is this a CenterNet service?"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n{}", "404 No: is this"),
    ],
)
def test_reports_a_server_that_is_not_a_centernet_service(
    content: bytes, reason: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with single_response_server(content) as url:
        assert reason in error_of(capsys, str(image), "--url", url)


def test_reports_an_invalid_url(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a valid URL: " in error_of(capsys, str(image), "--url", "127.0.0.1")
    assert "Invalid port: 'x'" in error_of(capsys, str(image), "--url", "http://127.0.0.1:x")


def test_a_closed_output_pipe_prints_no_error(server: RunningServer, image: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = "from client.detect import main; main()"
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", command, str(image), "--url", server.url],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.stderr == b""
    assert done.returncode == 1


def test_keypoints_are_connected_by_the_skeleton_of_the_model(
    start_server: Callable[..., RunningServer], image: Path
) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    output = image.with_name("drawn.png")
    main([str(image), "--url", server.url, "--top-k", "1", "--output", str(output)])
    with Image.open(output) as drawn:
        assert drawn.getpixel((32, 33)) == (0xD5, 0x5E, 0x00)


def test_a_3d_box_is_computed_with_the_camera_of_the_request_and_printed(
    start_server: Callable[..., RunningServer],
    image: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    command = [str(image), "--url", server.url, "--top-k", "1", "--no-flip"]
    main([*command, "--fx", "50", "--fy", "50", "--cx", "-18", "--cy", "32"])
    assert "2.00 x 3.00 x 4.00 m at 20.00 1.00 20.00" in capsys.readouterr().out
    matrix = (50, 0, -18, 0, 0, 50, 32, 0, 0, 0, 1, 0)
    main([*command, "--projection", *map(str, matrix)])
    assert "m at 20.00 1.00 20.00" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--scales", "1", "2"])
    assert "only the scale 1" in capsys.readouterr().err
