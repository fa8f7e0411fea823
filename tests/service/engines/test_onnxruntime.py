"""ONNX Runtime on the CPU, with graphs small enough to calculate every output."""

from pathlib import Path

import numpy as np
import pytest
from support.engines import (
    check_concurrent_runs,
    half_precision_artifact,
    make_images,
    make_package,
)

from service.engines import EngineUnavailableError, open_engine


def test_flip_selects_the_other_artifact(tmp_path: Path) -> None:
    engine = open_engine(make_package(tmp_path, flips=(False, True)), "onnxruntime-cpu", threads=1)
    images = make_images(10, 20, height_px=8, width_px=6)
    assert engine.run(images)["scores"].tolist() == [[10], [20]]
    assert engine.run(images, flip=True)["scores"].tolist() == [[-10], [-20]]
    assert engine.run(images[:, :4])["centers"].shape == (2, 1, 2)
    assert {name: values.dtype for name, values in engine.run(images).items()}["class_ids"] == (
        np.int32
    )
    engine.close()


def test_accepts_a_sequence_of_images(tmp_path: Path) -> None:
    engine = open_engine(make_package(tmp_path), "onnxruntime-cpu", threads=1)
    assert engine.run(list(make_images(10, 20)))["scores"].tolist() == [[10], [20]]


def test_does_not_run_fp16_files(tmp_path: Path) -> None:
    package = make_package(tmp_path, [half_precision_artifact()])
    engine = open_engine(package, "onnxruntime-cpu", threads=1)
    assert engine.run(make_images(10))["scores"].tolist() == [[10]]
    assert engine.description.endswith("CPUExecutionProvider, fp32")


def test_concurrent_runs_return_their_own_rows(tmp_path: Path) -> None:
    engine = open_engine(make_package(tmp_path), "onnxruntime-cpu", threads=1, concurrency=3)
    assert engine.concurrency == 3
    check_concurrent_runs(engine)


def test_reports_a_file_that_cannot_be_loaded(tmp_path: Path) -> None:
    package = make_package(tmp_path, flips=(False, True))
    (package.directory / "model_flip.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineUnavailableError, match=r"model_flip\.onnx cannot be loaded"):
        open_engine(package, "onnxruntime-cpu", threads=1)


def test_rejects_a_package_that_has_a_variant_only_in_fp16(tmp_path: Path) -> None:
    package = make_package(tmp_path, [half_precision_artifact(flip=True)])
    with pytest.raises(EngineUnavailableError, match=r"fp32 for every variant.*half_flip\.onnx"):
        open_engine(package, "onnxruntime-cpu", threads=1)
