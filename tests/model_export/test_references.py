"""References of a package: recorded by the export, and later with images of the user."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_export import pipeline
from model_export.cli import main
from model_export.config import ExportConfig
from model_export.errors import ImagesError
from model_export.pipeline import export_package
from model_export.verification.onnx_vs_torch import VerifiedImage, verify_images
from model_package import ModelPackage, PackageInvalidError, Verification, load_package
from model_package.directory import sha256_of
from service.engines import open_engine


def read(package: ModelPackage) -> dict[str, np.ndarray]:
    assert package.manifest.references is not None
    with np.load(package.directory / package.manifest.references.file) as file:
        return dict(file)


def test_an_export_records_the_outputs_of_its_fp32_file(slim_package: ModelPackage) -> None:
    recorded = read(slim_package)
    spec = slim_package.manifest.input
    images = recorded.pop("images")
    assert images.shape == (4, spec.height_px, spec.width_px, 3)
    assert images.std(axis=(1, 2, 3)).min() > 20, "none is black"
    expected = open_engine(slim_package, "onnxruntime-cpu", threads=1).run(images)
    assert recorded.keys() == expected.keys()
    for name, values in expected.items():
        assert np.allclose(recorded[name], values, atol=1e-4)


@pytest.mark.parametrize("left_out", [[0, 1], range(5)])
def test_images_that_the_verification_leaves_out_are_not_recorded(
    slim_config: ExportConfig,
    slim_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left_out: Sequence[int],
) -> None:
    """Photos 0, 1, ... are images 6, 7, ... of the verification, after the synthetic ones."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        Image.new("RGB", (90, 60), (40 * index, 99, 3)).save(photos / f"{index}.png")

    def verify(*arguments: Any) -> tuple[Verification, list[VerifiedImage]]:
        verification, verified = verify_images(*arguments)
        return verification, [one for one in verified if one.index - 6 not in left_out]

    monkeypatch.setattr(pipeline, "verify_images", verify)
    output = tmp_path / "package"
    if len(left_out) == 5:
        with pytest.raises(ImagesError, match="depend on rounding in all images"):
            export_package(slim_config, slim_checkpoint, output, print, photos)
        assert not output.exists()
    else:
        package = export_package(slim_config, slim_checkpoint, output, print, photos)
        assert read(package)["images"][:, 0, 0, 0].tolist() == [80, 120, 160]


def test_references_are_added_to_a_package(
    slim_package: ModelPackage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = slim_package.manifest
    directory = tmp_path / "package"
    directory.mkdir()
    without = json.loads(manifest.model_dump_json())
    del without["references"]
    (directory / "model.json").write_text(json.dumps(without))
    for artifact in manifest.artifacts:
        (directory / artifact.file).hardlink_to(slim_package.path_of(artifact))
    old = load_package(directory)
    assert old.manifest.references is None

    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        Image.new("RGB", (90, 60), (40 * index, 99, 3)).save(photos / f"{index}.png")
    assert main(["references", str(directory)]) == 0
    first = load_package(directory).manifest.references
    assert main(["references", str(directory), "--images", str(photos)]) == 0
    package = load_package(directory)
    second = package.manifest.references
    assert first is not None
    assert second is not None
    captured = capsys.readouterr()
    assert str(directory / second.file) in captured.out
    assert f"[1/1] Record the outputs of {directory} in ONNX Runtime ..." in captured.err
    assert first.file != second.file
    assert not (directory / first.file).exists()
    assert read(package)["images"][:, 0, 0, 0].tolist() == [0, 40, 80, 120], "the first four"
    assert package.manifest.model_copy(update={"references": None}) == old.manifest
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [second.file, "model.json", *(artifact.file for artifact in manifest.artifacts)]
    )


def test_a_directory_without_images_changes_nothing(
    slim_package: ModelPackage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: sha256_of(path) for path in slim_package.directory.iterdir()}
    assert main(["references", str(slim_package.directory), "--images", str(tmp_path)]) == 2
    assert "holds no images" in capsys.readouterr().err
    assert {path: sha256_of(path) for path in slim_package.directory.iterdir()} == before


def test_modified_references_are_detected(slim_package: ModelPackage, tmp_path: Path) -> None:
    assert slim_package.manifest.references is not None
    for path in slim_package.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / slim_package.manifest.references.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(PackageInvalidError, match=r"references\.[0-9a-f]{8}\.npz has the SHA-256"):
        load_package(tmp_path)
    path.unlink()
    with pytest.raises(PackageInvalidError, match="cannot be read"):
        load_package(tmp_path)
