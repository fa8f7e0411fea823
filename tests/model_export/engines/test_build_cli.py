"""``centernet-export build`` as a command: output, exit status and interruption."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builds import (
    contents,
    engines_of,
    start_build,
    tiny_graph,
    write_package,
)

from model_export.__main__ import main
from model_export.cli import main as main_with_torch
from model_package import load_package

ADA = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package with two ONNX files."""
    files = {"model.onnx": tiny_graph(), "model_flip.onnx": tiny_graph()}
    return write_package(tmp_path / "tiny", files).directory


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A package whose second engine takes a minute and ignores signals."""
    files = {"model.onnx": tiny_graph(), "model_flip.onnx": tiny_graph("slow")}
    return write_package(tmp_path / "slow", files).directory


def test_text_output_has_a_line_per_engine(small: Path) -> None:
    process = start_build(small, *ADA)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    first, second = engines_of(small)
    assert out.splitlines()[0].startswith(f"{first.file}: 0.0 MB, batches 1 to 8, built with ")
    assert out.splitlines()[1].startswith(f"{second.file}: ")
    target = "TensorRT-RTX 1.7.1.116, compute capability 8.9"
    assert re.findall(r"^(.*) \.\.\. \d+\.\d s$", err, re.M) == [
        f"[1/2] Build model.onnx for {target}",
        f"[2/2] Build model_flip.onnx for {target}",
    ]

    process = start_build(small, *ADA)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.findall(r"^\[(./2)\] .* \.\.\. already built$", err, re.M) == ["1/2", "2/2"]
    assert "built with" not in out


def test_json_output_has_progress_and_step(small: Path) -> None:
    process = start_build(small, *ADA, "--progress", "json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert all(set(line) == {"progress", "step"} for line in lines)
    fractions = [line["progress"] for line in lines]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert 0.5 in fractions  # the first of two is finished


def test_an_error_is_one_line(small: Path) -> None:
    before = contents(small)
    process = start_build(small, "--backend", "tensorrt-rtx", "--compute-capability", "9.0")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("centernet-export: error: TensorRT-RTX 1.7.1.116 does not build for")
    assert contents(small) == before


def test_rejects_a_directory_that_is_not_a_package(tmp_path: Path) -> None:
    process = start_build(tmp_path, *ADA)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is not a model package" in err
    assert list(tmp_path.iterdir()) == []


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.02)


def _has_ended(pid: int) -> bool:
    """Return whether a process ended; a zombie is still in the process table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _start_and_wait(package: Path) -> "tuple[subprocess.Popen[str], list[int]]":
    """Start a build and wait until its first engine is finished and its second is in progress."""
    process = start_build(package, *ADA, "--progress", "json")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["progress"] > 0.5:
            break
    else:
        pytest.fail(f"the build ended: {process.stderr and process.stderr.read()}")
    return process, _children(process.pid)


def _check_package(package: Path, hidden: int) -> None:
    """The package is valid and has the first engine and ``hidden`` hidden files."""
    (engine,) = engines_of(package)
    names = {*contents(package)}
    assert {"model.json", "model.onnx", "model_flip.onnx", engine.file} <= names
    other_files = names - {"model.json", "model.onnx", "model_flip.onnx", engine.file}
    assert all(name.startswith(".") for name in other_files)
    assert len(other_files) == hidden


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_no_files(slow: Path, number: int, status: int) -> None:
    process, children = _start_and_wait(slow)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert err == ""
    _wait(lambda: all(map(_has_ended, children)), "the child process is still running")
    _check_package(slow, hidden=0)


def _processes_of_group(group: int) -> list[int]:
    """Return the processes of a process group that have not ended."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if _group_of(pid) == group and not _has_ended(pid)]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("num_children", [1, 2])
def test_a_signal_to_the_process_group_during_the_start_of_the_child_process(
    slow: Path, num_children: int, number: signal.Signals
) -> None:
    """As Ctrl-C in a terminal, while multiprocessing starts its tracker or the child process."""
    before = contents(slow)
    process = start_build(slow, *ADA)
    _wait(lambda: len(_children(process.pid)) >= num_children, "no child process")
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    _wait(lambda: not _processes_of_group(process.pid), "a process is still running")
    assert contents(slow) == before


def test_ctrl_c_in_the_process_group_during_a_build(slow: Path) -> None:
    process, children = _start_and_wait(slow)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == ""
    _wait(lambda: all(map(_has_ended, children)), "the child process is still running")
    assert _processes_of_group(process.pid) == []
    _check_package(slow, hidden=0)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_where_python_ignores_exceptions_ends_the_build(
    small: Path, name: str, status: int
) -> None:
    before = contents(small)
    process = start_build(small, *ADA, FAKE_SIGNAL=name)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Exception ignored" not in err
    assert contents(small) == before


def test_the_child_process_never_gets_signals_of_the_terminal(slow: Path) -> None:
    """They are blocked from its first instruction, also in the first child process."""
    process = start_build(slow, *ADA)
    _wait(lambda: bool(_build_processes(process.pid)), "no child process")
    (child,) = _build_processes(process.pid)
    status = Path(f"/proc/{child}/status").read_text()
    (blocked,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
    for number in (signal.SIGINT, signal.SIGTERM):
        assert int(blocked, 16) & 1 << number - 1
    process.terminate()
    process.communicate(timeout=30)


def _build_processes(parent: int) -> list[int]:
    """Return the child processes without the resource tracker of multiprocessing."""
    return [
        child
        for child in _children(parent)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_further_signals_do_not_interrupt_the_clean_up(slow: Path, number: signal.Signals) -> None:
    process, _ = _start_and_wait(slow)
    while (slow / ".build.lock").exists():
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    # A signal that arrives after the clean-up, while Python exits, ends the process itself.
    assert process.returncode in (128 + number, -number)
    assert err == "" or process.returncode == -number
    _check_package(slow, hidden=0)


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("model_export.engines.cli.main", interrupt)
    assert main(["build"]) == 130


def test_text_output_reports_ctrl_c(slow: Path) -> None:
    process = start_build(slow, *ADA)
    assert process.stderr is not None
    steps = ""
    while "[2/2]" not in steps:
        steps += process.stderr.read(1) or pytest.fail(f"the build ended: {steps}")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err


def test_a_killed_build_leaves_a_valid_package(slow: Path) -> None:
    process, children = _start_and_wait(slow)
    process.kill()
    process.communicate(timeout=20)
    _wait(lambda: all(map(_has_ended, children)), "the child process is still running")
    _check_package(slow, hidden=1)  # the lock file, which is not locked
    (slow / f".{'0' * 16}.partial").write_bytes(b"half an engine")
    (slow / f"model.sm89.tensorrt_rtx-1.{'0' * 8}.engine").write_bytes(b"not listed yet")
    (slow / "notes.engine").write_bytes(b"another file of the user")
    load_package(slow)

    process = start_build(slow, *ADA, "--precision", "fp16")  # has nothing to build, but cleans up
    _, err = process.communicate(timeout=60)
    assert "no ONNX file in fp16" in err
    assert (slow / "notes.engine").exists()
    (slow / "notes.engine").unlink()
    _check_package(slow, hidden=0)


def test_a_second_build_of_a_package_is_rejected(slow: Path) -> None:
    process, _ = _start_and_wait(slow)
    other = start_build(slow, *ADA)
    _, err = other.communicate(timeout=60)
    assert other.returncode == 2
    assert err == (
        f"centernet-export: error: another build is writing to {slow}. Wait for it, or stop it.\n"
    )
    load_package(slow)  # readers do not wait for the lock
    process.terminate()
    process.communicate(timeout=20)


def test_reports_a_package_that_cannot_be_written(small: Path) -> None:
    (small / ".build.lock").mkdir()  # unlike missing permissions, this affects root too
    process = start_build(small, *ADA)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"cannot write to the package {small}: " in err


def test_build_does_not_import_torch(project: Path, small: Path) -> None:
    code = (
        "import sys; from model_export.__main__ import main; "
        f"main(['build', {str(small)!r}, '--compute-capability', 'x']); "
        "print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=project
    )
    loaded = set(result.stdout.split())
    assert "model_export.engines.build" in loaded
    assert not loaded & {"torch", "onnxruntime", "onnxscript", "service"}


@pytest.mark.parametrize(
    ("command", "missing", "extras"),
    [
        ("build", "onnx", ["[build,tensorrt-rtx]", "[build,tensorrt]"]),
        ("build", "numpy", ["[build,tensorrt-rtx]", "[build,tensorrt]"]),
        ("package", "torch", ["[export]"]),
    ],
)
def test_reports_a_missing_extra_in_one_line(command: str, missing: str, extras: list[str]) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; "  # as if it were not installed
        f"from model_export.__main__ import main; sys.exit(main([{command!r}, 'package']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"centernet-export: error: {missing} is not installed. ")
    for extra in extras:
        assert f"pip install 'centernet-serving{extra}'" in line


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"    {command} " in text for command in ("package", "import", "inspect", "build"))
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    assert "--optimal-batch-size N" in capsys.readouterr().out


def test_other_commands_are_forwarded(tmp_path: Path) -> None:
    arguments = ["inspect", str(tmp_path / "absent.pth")]
    assert main(arguments) == main_with_torch(arguments) == 2
