"""``centernet-detect`` against a real server."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.pictures import encode, plain
from support.serving import FixedEngine, RunningServer, make_manifest
from support.tasks import CANVAS_3D, POSE_ROWS, POSES, SPACE, SPACE_ROWS

from service.detect import main


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(plain(8, 6)))
    return path


def test_boxes_are_printed_and_drawn(
    server: RunningServer, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = picture.with_name("drawn.png")
    main([str(picture), "--url", server.url, "--top-k", "1", "--output", str(output)])
    assert capsys.readouterr().out.split() == ["0.900", "28.00", "20.00", "36.00", "28.00", "red"]
    with Image.open(output) as drawn:
        pixels = np.asarray(drawn)
    # The colour of class 0 stands on the box's edge and not in its middle.
    assert tuple(pixels[27, 28]) == (0xD5, 0x5E, 0x00)
    assert tuple(pixels[25, 32]) == (8, 6, 0)


def test_the_service_s_words_reach_the_user(
    server: RunningServer, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(picture), "--url", server.url, "--classes", "red", "pink"])
    assert caught.value.code == 1
    assert "422 classes: received 'pink'" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:1/prefix/"])
def test_an_absent_service_is_said(
    url: str, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(picture), "--url", url])
    assert "cannot be reached" in capsys.readouterr().err


def test_joints_are_drawn_as_the_model_joins_them(
    start_server: Callable[..., RunningServer], picture: Path
) -> None:
    server = start_server(FixedEngine(POSE_ROWS), make_manifest(POSES))
    output = picture.with_name("drawn.png")
    main([str(picture), "--url", server.url, "--top-k", "1", "--output", str(output)])
    with Image.open(output) as drawn:
        assert drawn.getpixel((32, 33)) == (0xD5, 0x5E, 0x00)


def test_a_box_in_space_is_printed_with_the_camera_s_numbers(
    start_server: Callable[..., RunningServer],
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = start_server(FixedEngine(SPACE_ROWS), make_manifest(SPACE, CANVAS_3D))
    asked = [str(picture), "--url", server.url, "--top-k", "1", "--no-flip"]
    main([*asked, "--fx", "50", "--fy", "50", "--cx", "-18", "--cy", "32"])
    assert "2.00 x 3.00 x 4.00 m at 20.00 1.00 20.00" in capsys.readouterr().out
    matrix = (50, 0, -18, 0, 0, 50, 32, 0, 0, 0, 1, 0)
    main([*asked, "--projection", *map(str, matrix)])
    assert "m at 20.00 1.00 20.00" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*asked, "--scales", "1", "2"])
    assert "scale 1 only" in capsys.readouterr().err
