"""Class names: built-in lists, files and comma-separated lists."""

from pathlib import Path

import pytest

from model_export.class_names import COCO, PASCAL, read_classes
from model_export.errors import ConfigError


def test_built_in_lists_have_the_upstream_order() -> None:
    assert len(set(COCO)) == len(COCO) == 80
    assert len(set(PASCAL)) == len(PASCAL) == 20
    # Positions in the contiguous order (COCO's category ids have gaps).
    assert (COCO[0], COCO[11], COCO[12], COCO[79]) == (
        "person", "stop sign", "parking meter", "toothbrush",
    )  # fmt: skip
    assert (PASCAL[0], PASCAL[14], PASCAL[19]) == ("aeroplane", "person", "tvmonitor")
    assert read_classes("coco") == COCO
    assert read_classes("pascal") == PASCAL


@pytest.mark.parametrize(
    ("text", "classes"),
    [("cat,dog", ("cat", "dog")), (" cat , big dog ", ("cat", "big dog")), ("cat,", ("cat",))],
)
def test_reads_names_separated_by_commas(text: str, classes: tuple[str, ...]) -> None:
    assert read_classes(text) == classes


def test_reads_a_file_with_one_name_per_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffcat\r\n\r\n hot dog \nStraße\n".encode())
    assert read_classes(str(path)) == ("cat", "hot dog", "Straße")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "holds no names"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"x" * (1024 * 1024 + 1), "has more than"),
    ],
)
def test_invalid_files_are_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_classes(str(path))


@pytest.mark.parametrize("text", ["", ",", "cocoo", "/"])
def test_empty_lists_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError):
        read_classes(text)
