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

from client.detect import main


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encode(plain(8, 6)))
    return path


def test_boxes_are_printed_and_drawn(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = image.with_name("drawn.png")
    main([str(image), "--url", server.url, "--top-k", "1", "--output", str(output)])
    assert capsys.readouterr().out.split() == ["0.900", "28.00", "20.00", "36.00", "28.00", "red"]
    with Image.open(output) as drawn:
        pixels = np.asarray(drawn)
    # The colour of class 0 stands on the box's edge and not in its middle.
    assert tuple(pixels[27, 28]) == (0xD5, 0x5E, 0x00)
    assert tuple(pixels[25, 32]) == (8, 6, 0)


def test_the_service_s_words_reach_the_user(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(image), "--url", server.url, "--classes", "red", "pink"])
    assert caught.value.code == 1
    assert "422 classes: received 'pink'" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:1/prefix/"])
def test_an_absent_service_is_said(
    url: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(image), "--url", url])
    assert "cannot be reached" in capsys.readouterr().err


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a failing command says."""
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
def test_an_output_that_cannot_be_written_is_said_before_the_request(
    name: str, reason: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(image.parent / name)
    nobody = "http://127.0.0.1:1"
    assert reason in error_of(capsys, str(image), "--url", nobody, "--output", output)


@contextmanager
def one_answer(content: bytes) -> Iterator[str]:
    """Something that answers one request with ``content``, whatever it was."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "broken answer: BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "broken answer: IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "is this a CenterNet service?"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "is this a CenterNet service?"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n{}", "404 No: is this"),
    ],
)
def test_answers_of_something_else_are_said(
    content: bytes, reason: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_answer(content) as url:
        assert reason in error_of(capsys, str(image), "--url", url)


def test_an_address_that_is_none_is_said(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown url type" in error_of(capsys, str(image), "--url", "127.0.0.1")
    assert "nonnumeric port" in error_of(capsys, str(image), "--url", "http://127.0.0.1:x")


def test_a_reader_that_has_seen_enough_is_no_error(server: RunningServer, image: Path) -> None:
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


def test_keypoints_are_drawn_as_the_model_joins_them(
    start_server: Callable[..., RunningServer], image: Path
) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    output = image.with_name("drawn.png")
    main([str(image), "--url", server.url, "--top-k", "1", "--output", str(output)])
    with Image.open(output) as drawn:
        assert drawn.getpixel((32, 33)) == (0xD5, 0x5E, 0x00)


def test_a_box_3d_is_printed_with_the_camera_s_numbers(
    start_server: Callable[..., RunningServer],
    image: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    asked = [str(image), "--url", server.url, "--top-k", "1", "--no-flip"]
    main([*asked, "--fx", "50", "--fy", "50", "--cx", "-18", "--cy", "32"])
    assert "2.00 x 3.00 x 4.00 m at 20.00 1.00 20.00" in capsys.readouterr().out
    matrix = (50, 0, -18, 0, 0, 50, 32, 0, 0, 0, 1, 0)
    main([*asked, "--projection", *map(str, matrix)])
    assert "m at 20.00 1.00 20.00" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*asked, "--scales", "1", "2"])
    assert "scale 1 only" in capsys.readouterr().err
