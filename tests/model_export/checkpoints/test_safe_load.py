"""Untrusted checkpoints are read as plain data or rejected; no code in them runs."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_export.checkpoints import safe_load
from model_export.checkpoints.safe_load import read_state
from model_export.errors import CheckpointUnreadableError, CheckpointUnsafeError

WEIGHTS = {"conv1.weight": torch.arange(1000.0), "bn1.bias": torch.ones(3)}


class _Bomb:
    """Creates a file when unpickled with ``pickle.load``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def _assert_same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(state) == list(expected)
    for key, weight in expected.items():
        assert torch.equal(state[key], weight)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
@pytest.mark.parametrize("counters", [True, False], ids=["counters", "no counters"])
def test_every_file_format_gives_the_same_weights(
    tmp_path: Path, zipped: bool, prefix: str, wrapped: bool, counters: bool
) -> None:
    state = dict(WEIGHTS)
    if counters:
        state["bn1.num_batches_tracked"] = torch.tensor(7)
    state = {prefix + key: weight for key, weight in state.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    content = {"epoch": 140, "state_dict": state, "optimizer": optimizer} if wrapped else state
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    _assert_same(read_state(path), WEIGHTS)


def test_only_the_whole_prefix_is_stripped(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"module_list.weight": torch.ones(1), "module.bias": torch.ones(1)}, path)
    assert list(read_state(path)) == ["module_list.weight", "module.bias"]


def test_fp16_weights_are_converted_to_float32(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"conv1.weight": torch.ones(2, dtype=torch.float16)}, path)
    assert read_state(path)["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code_is_rejected_and_not_run(tmp_path: Path, zipped: bool) -> None:
    planted = tmp_path / "planted"
    path = tmp_path / "model.pth"
    torch.save(
        {"state_dict": WEIGHTS, "extra": _Bomb(planted)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointUnsafeError, match=r"refers to '_?io\.open'.*not run") as caught:
        read_state(path)
    assert caught.value.code == "checkpoint_unsafe"
    assert not planted.exists()


def test_a_plain_pickle_is_rejected_and_not_run(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(_Bomb(planted)))
    with pytest.raises(CheckpointUnreadableError):
        read_state(path)
    assert not planted.exists()


def test_a_pickled_module_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointUnsafeError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_state(path)


def _write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.unlink(missing_ok=True), "does not exist"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_text("<html>Quota exceeded</html>"), "is an HTML page"),
        (lambda path: path.write_text("hello, world"), "not a PyTorch checkpoint"),
        (lambda path: path.write_bytes(bytes(range(256)) * 20), "not a PyTorch checkpoint"),
        (lambda path: path.write_bytes(b"\x80\x02" + b"]" * 100_000 + b"."), "not a PyTorch"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 4)), "not a PyTorch checkpoint"),
        (_write_zip, "is a zip file that torch.save has not written"),
        (lambda path: torch.save([torch.ones(1)], path), "it holds a list"),
        (lambda path: torch.save(torch.ones(1), path), "it holds a Tensor"),
        (lambda path: torch.save({}, path), "its top-level keys are none"),
        (lambda path: torch.save({"epoch": 1, "optimizer": {}}, path), "are 'epoch', 'optimizer"),
        (lambda path: torch.save({"state_dict": {}}, path), "its top-level keys are 'state_dict'"),
        (lambda path: torch.save({"state_dict": [1]}, path), "its top-level keys are 'state_dict'"),
        (lambda path: torch.save({3: torch.ones(1)}, path), "a key is 3, not a string"),
        (lambda path: torch.save({"a": torch.ones(1).int()}, path), "'a' has the type torch.int32"),
        (lambda path: torch.save({"a": torch.tensor([1, torch.nan])}, path), "NaN or infinity"),
        (lambda path: torch.save({"a": torch.tensor([1e300]).double()}, path), "NaN or infinity"),
        (lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path), "not a dense CPU tensor"),
        (lambda path: torch.save({"a": torch.ones(9, device="meta")}, path), "not a dense CPU"),
        (
            lambda path: torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path),
            "but stores fewer values",
        ),
    ],
)  # fmt: skip
def test_invalid_checkpoints_are_rejected_with_a_reason(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(CheckpointUnreadableError, match=message) as caught:
        read_state(path)
    assert caught.value.code == "checkpoint_unreadable"
    assert "weights_only" not in str(caught.value)  # torch's advice to disable the safe mode


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_rejected(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(CheckpointUnreadableError, match="damaged"):
        read_state(path)


def test_a_huge_declared_size_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    thousand, huge = b"M\xe8\x03", b"\x8a\x06" + (10**13).to_bytes(6, "little")
    content = path.read_bytes()
    assert thousand in content
    path.write_bytes(content.replace(thousand, huge))
    with pytest.raises(CheckpointUnreadableError, match="damaged"):
        read_state(path)


def test_a_file_above_the_size_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS, path)
    monkeypatch.setattr(safe_load, "MAX_FILE_BYTES", 100)
    with pytest.raises(CheckpointUnreadableError, match="at most 100 are read"):
        read_state(path)


def test_a_compressed_file_is_rejected(tmp_path: Path) -> None:
    stored, path = tmp_path / "stored.pth", tmp_path / "model.pth"
    torch.save({"conv1.weight": torch.zeros(1_000_000)}, stored)
    with (
        zipfile.ZipFile(stored) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointUnreadableError, match="compressed or overlap"):
        read_state(path)


class _Call:
    """Calls ``function`` when unpickled, if the unpickler allows it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


_READ = """
import resource, sys
from pathlib import Path
from model_export.checkpoints.safe_load import read_state
from model_export.errors import CheckpointUnreadableError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_state(Path(sys.argv[1]))
except CheckpointUnreadableError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
_HALF = torch.ones(100_000, dtype=torch.float16)
_TO_DEVICE = torch._utils._rebuild_device_tensor_from_cpu_tensor


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"weight": torch.ones(3)}, "epoch": _Call(bytearray, 1_000_000_000)},
        {"weight": _Call(_TO_DEVICE, torch.zeros(1).expand(10**8), torch.float64, "cpu", False)},
        {f"view{index}": _HALF.view(1000, 100) for index in range(2000)},
    ],
    ids=["byte array", "expanded tensor", "views of one storage"],
)
def test_a_small_file_cannot_take_much_memory(
    tmp_path: Path, content: dict[str, object], zipped: bool
) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    run = subprocess.run([sys.executable, "-c", _READ, path], capture_output=True, text=True)
    assert run.stdout, run.stderr[-500:] or "the file was accepted"
    assert int(run.stdout) < 256


def _long(value: int) -> bytes:
    return b"\x8a\x0b" + value.to_bytes(11, "little")


_DOUBLED_TUPLE = b")q\x01" + b"h\x01h\x01\x86q\x01" * 24
_DOUBLED_LIST = b"]q\x01" + b"](h\x01h\x01eq\x01" * 24
_MODULUS = (1 << 61) - 1  # of the hashes of integers


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("opcodes", "text"),
    [
        (_DOUBLED_TUPLE + b"}h\x01Ns.", "a tuple of more than 10000 items"),
        (_DOUBLED_TUPLE + b"cbuiltins\nset\n]h\x01a\x85R.", "a tuple of more than 10000 items"),
        (_DOUBLED_LIST + b")R.", "calls something that is not a function"),
        (_DOUBLED_LIST + b")\x81.", "calls something that is not a function"),
        (
            b"}(" + b"".join(_long(_MODULUS * i) + b"N" for i in range(5, 9000)) + b"u.",
            "an integer of more than 64 bits",
        ),
        (b"N" * 600_000 + b".", "more than 500000 opcodes"),
    ],
    ids=["key", "set", "function", "class", "equal hashes", "opcodes"],
)
def test_a_small_pickle_cannot_take_much_time(
    tmp_path: Path, opcodes: bytes, text: str, zipped: bool
) -> None:
    path = tmp_path / "model.pth"
    torch.save({}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as source:
            members = {name: source.read(name) for name in source.namelist()}
        with zipfile.ZipFile(path, "w") as target:
            for name, data in members.items():
                target.writestr(name, b"\x80\x02" + opcodes if name.endswith(".pkl") else data)
    else:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\x80\x02}q\x00.", b"\x80\x02" + opcodes))
    with pytest.raises(CheckpointUnreadableError, match=text):
        read_state(path)


def test_tuples_that_an_optimizer_shares_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    betas = (0.9, 0.999)
    groups = [{"betas": betas, "all": (betas, betas)} for _ in range(1000)]
    torch.save({"state_dict": WEIGHTS, "optimizer": {"param_groups": groups}}, path)
    _assert_same(read_state(path), WEIGHTS)


def test_a_damaged_zip_file_is_rejected_before_torch_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointUnreadableError, match="BadZipFile"):
        read_state(path)


def test_a_member_whose_name_is_not_utf_8_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:  # does not declare ASCII names as UTF-8
        for name, data in members.items():
            target.writestr(name, data)
    path.write_bytes(path.read_bytes().replace(b"/byteorder", b"/byteorde\xb3"))
    with pytest.raises(CheckpointUnreadableError, match="UnicodeDecodeError"):
        read_state(path)
