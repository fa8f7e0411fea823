"""``centernet-detect`` against real servers, and in the process."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from support.fake_service import Reply, detected, fake_service, problem
from support.heif import encode_heic
from support.images import encode, plain
from support.processes import free_port
from support.serving import FixedEngine, RunningServer, make_manifest, wait_until
from support.tasks import BOX_ROWS, BOXES_3D, BOXES_3D_ROWS, CANVAS_3D, POSE_ROWS, POSES

from client import retries
from client.command import backends
from client.command.arguments import DETECTION_OPTIONS, build_parser
from client.detect import main
from service.options import DetectParameters

Row = dict[str, Any]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encode(plain(8, 6)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of different colours, two of them in a folder below, and another file."""
    root = tmp_path / "images"
    (root / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.JPG", "below/a.png", "below/d.webp")):
        Image.fromarray(plain(40 * number, 20)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def run(*arguments: object, status: int = 0) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == status


def rows_of(text: str) -> list[Row]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_request_option_of_the_service_is_an_option_of_the_command() -> None:
    assert set(DETECTION_OPTIONS) == set(DetectParameters.model_fields)
    arguments = vars(build_parser().parse_args(["image.png"]))
    assert {name: arguments[name] for name in DETECTION_OPTIONS} == dict.fromkeys(DETECTION_OPTIONS)


def test_boxes_are_printed_and_drawn(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = image.with_name("drawn.png")
    run(image, "--url", server.url, "--top-k", 1, "--draw", output, "--format", "text")
    found = capsys.readouterr()
    assert found.out.split() == [str(image), "0.900", "28.00", "20.00", "36.00", "28.00", "red"]
    assert found.err.startswith("1 images in ")
    assert found.err.rstrip().endswith("1 detections, 0 images failed")
    with Image.open(output) as drawn:
        pixels = np.asarray(drawn)
    # The colour of class 0 is on the box's edge and not in its middle.
    assert tuple(pixels[27, 28]) == (0xD5, 0x5E, 0x00)
    assert tuple(pixels[25, 32]) == (8, 6, 0)


def test_a_folder_of_further_formats_is_drawn(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, drawn = tmp_path / "images", tmp_path / "drawn"
    folder.mkdir()
    colour = Image.new("RGB", (64, 64), (8, 6, 0))
    names = ["a.gif", "b.tif", "c.avif"]
    for name in names:
        colour.save(folder / name)
    if find_spec("pi_heif") and find_spec("pillow_heif"):
        (folder / "d.heic").write_bytes(encode_heic(colour))
        names.append("d.heic")
    run(folder, "--url", server.url, "--quiet", "--draw", drawn)
    rows = rows_of(capsys.readouterr().out)
    assert [Path(row["file"]).name for row in rows] == names
    assert all(len(row["detections"]) == 5 for row in rows)
    for name in names:
        path = next(drawn.glob(f"{name}*"))
        with Image.open(path) as image:
            assert image.size == (64, 64)


def test_a_folder_is_searched_recursively_and_each_image_is_processed_once(
    server: RunningServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = folder.with_name("drawn")
    inputs = [folder, folder / "*.png", folder / "b.png"]
    run(folder, *inputs, "--url", server.url, "--quiet", "--draw", drawn)
    captured = capsys.readouterr()
    assert captured.err == ""
    names = ["a.png", "b.png", "below/a.png", "below/d.webp", "c.JPG"]
    rows = rows_of(captured.out)
    assert [row["file"] for row in rows] == [str(folder / name) for name in names]
    centers = [row["detections"][0]["bbox"][0] + 4 for row in rows]
    assert centers == pytest.approx([0, 160, 480, 640, 320], abs=12), "of the mean red"
    assert sorted(path for path in drawn.rglob("*") if path.is_file()) == sorted(
        drawn / name for name in names
    )


def test_an_image_that_fails_is_a_row_and_the_others_are_processed(
    server: RunningServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.png").write_bytes(b"no image")
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to("missing")
    run(folder, "--url", server.url, status=1)
    captured = capsys.readouterr()
    unreadable, damaged, *others = rows_of(captured.out)
    assert "cannot be read: No such file" in unreadable["error"]["detail"]
    assert (damaged["error"]["status"], damaged["error"]["code"]) == (415, "unsupported_image")
    assert len(others) == 3
    assert all("detections" in row for row in others)
    assert "2 images failed" in captured.err
    assert "1 x 415 " in captured.err


def test_csv_has_a_row_per_detection(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(image, "--url", server.url, "--format", "csv", "--top-k", 2)
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first["file"] == str(image)
    assert [first[name] for name in ("class_name", "score", "x1", "y2")] == [
        *("red", "0.9", "28.0", "28.0")
    ]
    assert (second["class_id"], second["frame"], second["z_m"]) == ("1", "", "")


def test_coco_is_read_by_pycocotools(
    start_server: Callable[..., RunningServer], folder: Path
) -> None:
    from pycocotools.coco import COCO

    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    output = folder.with_name("coco.json")
    run(folder, "--url", server.url, "--format", "coco", "--output", output, "--quiet")
    coco = COCO(str(output))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        *("a.png", "b.png", "below/a.png", "below/d.webp", "c.JPG")
    ]
    assert [category["name"] for category in coco.cats.values()] == ["red", "green", "blue"]
    assert coco.cats[0]["skeleton"] == [[1, 2]]
    (best, _) = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert best["bbox"] == [24, 16, 16, 32]
    assert best["keypoints"] == [32, 20, 2, 32, 46, 2]
    assert best["score"] == pytest.approx(0.9)


def test_kitti_has_a_file_per_image(
    start_server: Callable[..., RunningServer], server: RunningServer, image: Path
) -> None:
    three_d = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    output = image.with_name("kitti")
    arguments = [image, "--format", "kitti", "--output", output, "--top-k", 1]
    run(*arguments, "--url", three_d.url)
    fields = (output / "image.txt").read_text().split()
    assert fields[:3] == ["green", "-1", "-1"]
    assert [float(field) for field in fields[8:11]] == [2, 3, 4]
    assert float(fields[13]) == 20
    assert float(fields[15]) == pytest.approx(0.9)
    run(*arguments, "--url", server.url)
    fields = (output / "image.txt").read_text().split()
    assert [float(field) for field in fields[3:]] == [
        *(-10, 28, 20, 36, 28, -1, -1, -1, -1000, -1000, -1000, -10, 0.9)
    ]


def test_standard_input_and_patterns(
    server: RunningServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encode(plain(8, 6)))))
    run("-", "--url", server.url, "--quiet")
    (row,) = rows_of(capfd.readouterr().out)
    assert (row["file"], row["detections"][0]["bbox"]) == ("-", [28, 20, 36, 28])
    run(folder / "**" / "*", "--url", server.url, "--quiet", "--classes", "red")
    files = [row["file"] for row in rows_of(capfd.readouterr().out)]
    assert sorted(files) == sorted(
        str(folder / name) for name in ("a.png", "b.png", "below/a.png", "below/d.webp", "c.JPG")
    )


def test_a_package_gives_the_detections_of_the_service(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from service.detector import load_detector
    from service.http.responses import to_json, to_response

    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    package, smear = project / "models/blood_cells", project / "docs/samples/blood_smear_1.jpg"
    run(smear, tmp_path, "--package", package, "--top-k", 3, "--quiet", status=1)
    row, damaged = rows_of(capsys.readouterr().out)
    with load_detector(package) as detector:
        prediction = detector.detect(smear.read_bytes(), top_k=3)
        expected = json.loads(to_json(to_response(detector.manifest, prediction, "")))
    assert row["detections"] == expected["detections"]
    assert len(row["detections"]) == 3
    assert damaged["error"]["status"] == 400
    run(smear, "--package", package, "--classes", "pink", status=2)
    assert "received 'pink'" in capsys.readouterr().err
    run(smear, "--package", tmp_path / "none", status=2)
    assert "--package" in capsys.readouterr().err


def test_an_api_key_is_sent(
    start_server: Callable[..., RunningServer],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, keys = "k" * 32, image.with_name("keys")
    keys.write_text(key)
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES), api_keys_file=keys)
    run(image, "--url", server.url, status=2)
    assert "401 The request has no API key" in capsys.readouterr().err
    run(image, "--url", server.url, "--api-key", key)
    monkeypatch.setenv("CENTERNET_API_KEY", key)
    run(image, "--url", server.url)
    start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))  # accepts the variable


# Errors that end the run.


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the last line that a failing command prints to stderr."""
    run(*arguments, status=2)
    out, error = capsys.readouterr()
    assert out == ""
    last: str = error.splitlines()[-1]
    assert last.startswith("centernet-detect: error: ")
    return last


def test_an_option_that_the_model_does_not_accept_ends_the_run(
    server: RunningServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, folder, "--url", server.url, "--classes", "red", "pink")
    assert "422 classes: received 'pink'" in error


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:1/prefix/"])
def test_reports_a_service_that_cannot_be_reached(
    url: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be reached" in error_of(capsys, image, "--url", url)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--draw", "o.xyz"], "expected a folder"),
        (["--draw", "no/o.png"], "there is no folder"),
        (["--draw", "o.mp4"], "for one video"),
        (["--draw", "."], "would overwrite the input"),
        (["--output", "o.png"], "use --draw"),
        (["--output", "no/o.jsonl"], "there is no folder"),
        (["--output", "notes.txt"], "exists: continue it with --resume"),
        (["--output", "notes.txt", "--resume"], "line 1 of notes.txt was not written by"),
        (["--resume"], "give it with --output"),
        (["--resume", "--output", "o", "--format", "csv"], "continues a JSON Lines file"),
        (["--format", "kitti"], "give a folder with --output"),
        (["--package", "p", "--model", "m"], "give one"),
        (["missing.png"], "there is no such file or folder"),
        (["*.txt"], "no image or video matches"),
        (["empty"], "no image"),
        (["camera:front"], "expected the number"),
        (["folder/image.png", "--draw", "drawn"], "2 inputs would be written to image.png"),
        (["folder/image.png", "--draw", "o.png"], "for one image"),
        (["folder/image.png", "--format", "kitti", "--output", "k"], "written to image."),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    arguments: list[str],
    reason: str,
    server: RunningServer,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(image.parent)
    Path("notes.txt").write_text("notes\n")
    Path("empty").mkdir()
    Path("folder").mkdir()
    Path("folder/image.png").write_bytes(image.read_bytes())
    assert reason in error_of(capsys, "image.png", *arguments, "--url", server.url)
    assert Path("notes.txt").read_text() == "notes\n"


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
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n{}", "404 No: is this"),
    ],
)
def test_reports_a_server_that_is_not_a_centernet_service(
    content: bytes, reason: str, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with single_response_server(content) as url:
        assert reason in error_of(capsys, image, "--url", url)


def test_reports_an_invalid_url(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a valid URL: " in error_of(capsys, image, "--url", "127.0.0.1")
    assert "Invalid port: 'x'" in error_of(capsys, image, "--url", "http://127.0.0.1:x")


def test_a_closed_output_pipe_prints_no_error(server: RunningServer, image: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [*COMMAND, str(image), "--url", server.url, "--quiet"],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.stderr == b""
    assert done.returncode == 2


# Interrupted runs. The handler is set because background processes of a shell ignore SIGINT.
COMMAND = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from client.detect import main; main()",
]


def many_images(folder: Path, count: int) -> list[bytes]:
    folder.mkdir()
    bodies = [f"image {number}".encode() for number in range(count)]
    for number, body in enumerate(bodies):
        (folder / f"{number:04}.jpg").write_bytes(body)
    return bodies


def check_rows(output: Path, folder: Path, bodies: Sequence[bytes]) -> None:
    """Check that there is one row per image, in order, with the detections of this image."""
    rows = rows_of(output.read_text())
    assert [row["file"] for row in rows] == [
        str(folder / f"{number:04}.jpg") for number in range(len(bodies))
    ]
    names = [row["detections"][0]["class_name"].encode() for row in rows]
    assert names == list(bodies)


def test_an_interrupted_run_is_resumed_without_a_gap_or_a_double(tmp_path: Path) -> None:
    folder, output = tmp_path / "images", tmp_path / "out.jsonl"
    bodies = many_images(folder, 200)
    blocked, released = set(bodies[120:]), threading.Event()

    def script(body: bytes, _: int) -> Reply:
        if body in blocked:
            released.wait(60)
        return detected(body.decode())

    with fake_service(script) as (url, service):
        command = [*COMMAND, str(folder), "--url", url, "--output", str(output)]
        interrupted = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            # The last one is taken when the row of the image 32 before it has been written.
            wait_until(lambda: bodies[140] in service.bodies, seconds=60)
            interrupted.send_signal(signal.SIGINT)
            _, error = interrupted.communicate(timeout=60)
        finally:
            interrupted.kill()
        assert interrupted.returncode == -signal.SIGINT
        before = rows_of(output.read_text())
        assert 100 <= len(before) <= 120
        # The signal may arrive when the last row is written, but not counted yet.
        counts = len(before), len(before) - 1
        assert error.startswith(tuple(f"{count} images in " for count in counts)), "the summary"
        assert "Traceback" not in error

        released.set()
        with output.open("a") as file:
            file.write('{"file":"cut o')
        sent_before = len(service.bodies)
        done = subprocess.run(
            [*command, "--resume"], stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
        resent = service.bodies[sent_before:]
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} skipped" in done.stderr
    check_rows(output, folder, bodies)
    assert sorted(resent) == sorted(bodies[len(before) :]), "nothing is detected again"


def test_a_service_that_ends_stops_the_run_and_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(backends, "_RUN", retries.RetryPolicy(deadline_s=60, retries=3))
    folder, output, port = tmp_path / "images", tmp_path / "out.jsonl", free_port()
    bodies = many_images(folder, 100)

    def script(body: bytes, _: int) -> Reply | None:
        return None if body in bodies[50:] else detected(body.decode())

    arguments = [folder, "--url", f"http://127.0.0.1:{port}", "--output", output]
    with fake_service(script, port):
        run(*arguments, status=2)
    assert "0050.jpg: " in capsys.readouterr().err
    check_rows(output, folder, bodies[:50])
    with fake_service(lambda body, _: detected(body.decode()), port):
        run(*arguments, "--resume")
        assert "50 skipped" in capsys.readouterr().err
        check_rows(output, folder, bodies)
        run(*arguments, "--resume")
    check_rows(output, folder, bodies)


def test_a_service_that_refuses_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.01)
    folder, output = tmp_path / "images", tmp_path / "out.jsonl"
    bodies = many_images(folder, 100)
    refusal = problem(429, "queue_full", retryable=True, retry_after="0")
    with fake_service(lambda body, n: refusal if n == 1 else detected(body.decode())) as (url, _):
        run(folder, "--url", url, "--output", output)
    check_rows(output, folder, bodies)


def test_detections_of_two_models_are_not_mixed(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = image.with_name("out.jsonl")
    row = {"file": "x.png", "model": {"name": "other", "version": "2"}, "detections": []}
    output.write_text(json.dumps(row) + "\n")
    error = error_of(capsys, image, "--url", server.url, "--output", output, "--resume")
    assert "detections of other 2, but the model is now painted 1" in error


# Poses, 3D boxes and videos.


def test_keypoints_are_connected_by_the_skeleton_of_the_model(
    start_server: Callable[..., RunningServer], image: Path
) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    output = image.with_name("drawn.png")
    run(image, "--url", server.url, "--top-k", 1, "--draw", output)
    with Image.open(output) as drawn:
        # Neither `nose` nor `tail` is on a side.
        assert drawn.getpixel((32, 33)) == (255, 255, 255)


def test_a_3d_box_is_computed_with_the_camera_of_the_request_and_drawn_from_above(
    start_server: Callable[..., RunningServer],
    image: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = start_server(FixedEngine(BOXES_3D_ROWS), make_manifest(BOXES_3D, CANVAS_3D))
    command = [image, "--url", server.url, "--top-k", 1, "--no-flip", "--format", "text"]
    output = image.with_name("drawn.png")
    drawing = ["--draw", output, "--birds-eye"]
    run(*command, *drawing, "--fx", 50, "--fy", 50, "--cx", -18, "--cy", 32)
    assert "2.00 x 3.00 x 4.00 m at 20.00 1.00 20.00" in capsys.readouterr().out
    with Image.open(output) as drawn:
        assert drawn.size == (64 + 43, 64)
    run(*command, "--projection", 50, 0, -18, 0, 0, 50, 32, 0, 0, 0, 1, 0)
    assert "m at 20.00 1.00 20.00" in capsys.readouterr().out
    run(*command, "--scales", 1, 2, status=2)
    assert "only the scale 1" in capsys.readouterr().err


FRAMES = 300


def make_video(path: Path, frames: int) -> None:
    """Write a video in which the brightness of a frame is twice its number modulo 100, plus 20."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (320, 240))
    for number in range(frames):
        writer.write(np.full((240, 320, 3), 20 + 2 * (number % 100), np.uint8))
    writer.release()


def read_video(path: Path) -> tuple[list[float], float]:
    """Return the brightness of the lower right corner of each frame, and the frames per second."""
    capture = cv2.VideoCapture(str(path))
    fps, brightness = capture.get(cv2.CAP_PROP_FPS), []
    while (read := capture.read())[0]:
        brightness.append(float(read[1][-8:, -8:].mean()))
    return brightness, fps


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_every_frame_of_a_video_is_in_the_annotated_video(
    suffix: str, start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server = start_server(FixedEngine(BOX_ROWS))
    video, drawn, output = tmp_path / "v.avi", tmp_path / f"drawn{suffix}", tmp_path / "out.jsonl"
    make_video(video, FRAMES)
    run(video, "--url", server.url, "--draw", drawn, "--output", output, "--top-k", 1)
    rows = rows_of(output.read_text())
    assert [row["frame"] for row in rows] == list(range(FRAMES))
    assert {row["file"] for row in rows} == {str(video)}
    brightness, fps = read_video(drawn)
    assert fps == 20
    assert brightness == pytest.approx([20 + 2 * (n % 100) for n in range(FRAMES)], abs=6)


def test_frames_that_fail_are_in_the_annotated_video(tmp_path: Path) -> None:
    video, drawn, output = tmp_path / "v.avi", tmp_path / "drawn.avi", tmp_path / "out.jsonl"
    make_video(video, 10)
    refusal = problem(400, "bad_image", retryable=False)
    with fake_service(lambda *_: refusal) as (url, _):
        run(video, "--url", url, "--draw", drawn, "--output", output, status=1)
    assert [row["frame"] for row in rows_of(output.read_text())] == list(range(10))
    assert len(read_video(drawn)[0]) == 10


def test_a_video_is_resumed_at_the_next_frame(server: RunningServer, tmp_path: Path) -> None:
    video, output = tmp_path / "v.avi", tmp_path / "out.jsonl"
    make_video(video, 20)
    arguments = [video, "--url", server.url, "--output", output]
    run(*arguments)
    complete = rows_of(output.read_text())
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:7]))
    run(*arguments, "--resume")
    found = rows_of(output.read_text())
    assert [row["frame"] for row in found] == list(range(20))
    assert [row["detections"] for row in found] == [row["detections"] for row in complete]


def test_a_video_that_cannot_be_read_is_a_row(
    server: RunningServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = image.with_name("broken.mp4")
    video.write_bytes(b"no video")
    run(video, image, "--url", server.url, status=1)
    broken, found = rows_of(capsys.readouterr().out)
    assert "OpenCV cannot decode it" in broken["error"]["detail"]
    assert found["file"] == str(image)
