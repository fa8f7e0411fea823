"""Packages: atomic publication, digests and validation of manifests."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_package import (
    CenterBoxesDecoder,
    CenterPosesDecoder,
    InputSpec,
    ModelManifest,
    ModelPackage,
    PackageDraft,
    PackageExistsError,
    PackageInvalidError,
    PackageNotFoundError,
    Provenance,
    Verification,
    draft_package,
    load_package,
)

EMPTY_MODEL = b"\x08\x0a"
"""An ONNX file without a graph: only the field ``ir_version``."""


def manifest_for(draft: PackageDraft) -> ModelManifest:
    return ModelManifest(
        name="cells",
        version="1",
        description="",
        classes=("a", "b"),
        input=InputSpec(width_px=64, height_px=32),
        decoder=CenterBoxesDecoder(output_stride=4, top_k=10, score_threshold=0.3),
        artifacts=(draft.describe_artifact("model.onnx"),),
        provenance=Provenance(
            architecture="res_18",
            checkpoint_sha256="0" * 64,
            source="tests",
            license="none",
            normalization="coco",
            tools={"torch": "2"},
        ),
        verification=Verification(
            reference="torch",
            inputs=3,
            tolerances={"score": 1e-4},
            worst_errors={"score": 1e-6},
            matched_fraction=1.0,
        ),
    )


def write_package(output: Path) -> ModelPackage:
    with draft_package(output) as draft:
        (draft.directory / "model.onnx").write_bytes(EMPTY_MODEL)
        return draft.publish(manifest_for(draft))


def change(package: Path, **fields: Any) -> None:
    path = package / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_published_package_can_be_loaded(tmp_path: Path) -> None:
    written = write_package(tmp_path / "deep" / "cells")
    loaded = load_package(tmp_path / "deep" / "cells")
    assert loaded == written
    (artifact,) = loaded.manifest.artifacts
    assert loaded.path_of(artifact).read_bytes() == EMPTY_MODEL
    assert sorted(path.name for path in loaded.directory.iterdir()) == ["model.json", "model.onnx"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cells"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_draft_leaves_no_files(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    def interrupted() -> None:
        with draft_package(tmp_path / "cells") as draft:
            (draft.directory / "model.onnx").write_bytes(EMPTY_MODEL)
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_package_is_not_modified(tmp_path: Path) -> None:
    write_package(tmp_path / "cells")
    with pytest.raises(PackageExistsError, match="another --output"):
        write_package(tmp_path / "cells")
    load_package(tmp_path / "cells")


def test_a_package_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def race() -> None:
        with draft_package(tmp_path / "cells") as draft:
            (draft.directory / "model.onnx").write_bytes(EMPTY_MODEL)
            write_package(tmp_path / "cells")
            draft.publish(manifest_for(draft))

    with pytest.raises(PackageExistsError):
        race()
    assert (tmp_path / "cells" / "model.onnx").read_bytes() == EMPTY_MODEL
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_a_draft_with_a_modified_artifact_is_not_published(tmp_path: Path) -> None:
    def publish() -> None:
        with draft_package(tmp_path / "cells") as draft:
            (draft.directory / "model.onnx").write_bytes(EMPTY_MODEL)
            manifest = manifest_for(draft)
            (draft.directory / "model.onnx").write_bytes(b"\x08\x0b")
            draft.publish(manifest)

    with pytest.raises(PackageInvalidError, match="SHA-256"):
        publish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"grapf", b"grap", b"graphs"])
def test_a_modified_artifact_is_detected(tmp_path: Path, content: bytes) -> None:
    package = write_package(tmp_path / "cells")
    (package.directory / "model.onnx").write_bytes(content)
    with pytest.raises(PackageInvalidError, match=r"damaged or was modified"):
        load_package(package.directory)


def test_a_missing_artifact_is_detected(tmp_path: Path) -> None:
    package = write_package(tmp_path / "cells")
    (package.directory / "model.onnx").unlink()
    with pytest.raises(PackageInvalidError, match=r"model\.onnx cannot be read"):
        load_package(package.directory)


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_directory_without_manifest_is_not_a_package(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageNotFoundError, match="centernet-export"):
        load_package(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"format_version": 2}, "format_version"),
        ({"colour": "blue"}, "colour"),
        ({"name": "../cells"}, "name"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a"]}, r"unique.*\['a'\]"),
        ({"decoder": {"kind": "magic"}}, "decoder"),
        (
            {
                "artifacts": [
                    {
                        "file": "../../etc/passwd",
                        "backend": "onnxruntime",
                        "precision": "fp32",
                        "sha256": "0" * 64,
                        "size_bytes": 1,
                    }
                ]
            },
            "file",
        ),
    ],
)
def test_invalid_manifests_are_rejected(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    package = write_package(tmp_path / "cells")
    change(package.directory, **fields)
    with pytest.raises(PackageInvalidError, match=text):
        load_package(package.directory)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b" " * (5 * 1024 * 1024)])
def test_a_manifest_that_is_not_json_is_rejected(tmp_path: Path, content: bytes) -> None:
    package = write_package(tmp_path / "cells")
    (package.directory / "model.json").write_bytes(content)
    with pytest.raises(PackageInvalidError, match=r"model\.json"):
        load_package(package.directory)


@pytest.mark.parametrize("name", ["keypoints", "joints"])
def test_pose_decoder_reads_the_old_name_of_keypoints(tmp_path: Path, name: str) -> None:
    package = write_package(tmp_path / "people")
    decoder = {
        "kind": "center_poses",
        "output_stride": 4,
        "top_k": 10,
        "score_threshold": 0.3,
        name: ["nose", "tail"],
        "skeleton": [[0, 1]],
    }
    change(package.directory, decoder=decoder)
    loaded = load_package(package.directory).manifest.decoder
    assert isinstance(loaded, CenterPosesDecoder)
    assert loaded.keypoints == ("nose", "tail")
    written = json.loads(loaded.model_dump_json())
    assert written["keypoints"] == ["nose", "tail"]
    assert "joints" not in written


def test_the_output_stride_of_corner_models_is_required(tmp_path: Path) -> None:
    package = write_package(tmp_path / "corners")
    decoder = {"kind": "corner_pairs", "pairs": 1000, "top_k": 100, "score_threshold": 0.3}
    change(package.directory, decoder=decoder)
    with pytest.raises(PackageInvalidError, match="output_stride"):
        load_package(package.directory)
    change(package.directory, decoder={**decoder, "output_stride": 8})
    assert load_package(package.directory).manifest.decoder.output_stride == 8


def test_keypoint_classes_are_ids_of_classes(tmp_path: Path) -> None:
    package = write_package(tmp_path / "people")
    content = json.loads((package.directory / "model.json").read_text())
    count = len(content["classes"])
    decoder = {
        "kind": "center_poses",
        "output_stride": 4,
        "top_k": 10,
        "score_threshold": 0.3,
        "keypoints": ["nose", "tail"],
    }
    change(package.directory, decoder={**decoder, "keypoint_class_ids": [count - 1]})
    load_package(package.directory)
    change(package.directory, decoder={**decoder, "keypoint_class_ids": [0, count]})
    with pytest.raises(PackageInvalidError, match=rf"keypoint_class_ids: \[{count}\] are not ids"):
        load_package(package.directory)


def test_an_artifact_that_is_a_symbolic_link_is_rejected(tmp_path: Path) -> None:
    package = write_package(tmp_path / "cells")
    artifact = package.directory / "model.onnx"
    artifact.rename(tmp_path / "outside.onnx")
    artifact.symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(PackageInvalidError, match="symbolic link"):
        load_package(package.directory)
