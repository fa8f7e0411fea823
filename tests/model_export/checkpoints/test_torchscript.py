"""TorchScript archives are read for their weights; their code is neither run nor read."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch
from support.checkpoints import State, UpstreamNames, without_counters
from torch import Tensor, nn

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.checkpoints.safe_load import read_checkpoint, read_state
from model_export.checkpoints.torchscript import MAX_NAME_CHARACTERS, MAX_NAMES
from model_export.cli import main
from model_export.errors import CheckpointError, CheckpointUnreadableError, CheckpointUnsafeError
from model_export.key_mappings.objects_as_points import to_checkpoint_key

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Lite Interpreter:DeprecationWarning"),
]


class _Detector(nn.Module):
    """A module around a network, with attributes that are not weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.names = ["circle", "square"]
        self.scales = {"x": 2.0}
        self.priors = {"size": torch.ones(2)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.network(images)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return ARCHITECTURES["res_18_slim"].build(box_head_channels(3)).eval()


@pytest.fixture(scope="module")
def traced(network: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.trace(UpstreamNames(network), torch.zeros(1, 3, 32, 32), strict=False)


@pytest.fixture(scope="module")
def saved(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> State:
    """Weights of the same network in a file of ``torch.save``."""
    path = tmp_path_factory.mktemp("saved") / "model.pth"
    torch.save(
        {to_checkpoint_key(name): weight for name, weight in network.state_dict().items()}, path
    )
    return read_state(path)


def _assert_same(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())


def test_a_traced_network_has_the_weights_of_its_checkpoint(
    traced: torch.jit.ScriptModule, saved: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "traced.pt"
    torch.jit.save(traced, path, _extra_files={"config.json": "{}"})
    checkpoint = read_checkpoint(path)
    assert (checkpoint.entry, checkpoint.prefix) == (None, "")
    _assert_same(checkpoint.state, saved)
    assert main(["inspect", str(path)]) == 0
    assert f"res_18_slim for boxes, {len(saved)} tensors" in capsys.readouterr().out


def test_a_scripted_module_has_the_weights_of_its_network(
    traced: torch.jit.ScriptModule, saved: State, tmp_path: Path
) -> None:
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(_Detector(traced)), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.prefix == "network."
    _assert_same(checkpoint.state, saved)


def test_a_file_for_the_lite_interpreter_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lite.ptl"
    module = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half())
    module._save_for_lite_interpreter(str(path))
    expected = without_counters(dict(module.state_dict()))
    _assert_same(read_state(path), {name: weight.float() for name, weight in expected.items()})


def test_a_module_with_two_names_has_its_weights_under_both(tmp_path: Path) -> None:
    path = tmp_path / "shared.pt"
    layer = nn.Conv2d(2, 2, 1)
    torch.jit.save(torch.jit.script(nn.Sequential(layer, nn.ReLU(), layer)), path)
    assert list(read_state(path)) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_frozen_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "frozen.pt"
    torch.jit.save(torch.jit.freeze(torch.jit.script(nn.Conv2d(2, 2, 1).eval())), path)
    with pytest.raises(CheckpointUnreadableError, match=r"torch\.jit\.freeze made them constants"):
        read_state(path)


def _text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


_MODULE = b"c__torch__\nM\n)\x81"
_TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK%btQK\x00(K%bt(K\x01t\x89ccollections\nOrderedDict\n)RtR"
)
_PLANTED = b"cos\nsystem\n(X\x0d\x00\x00\x00touch plantedtR"


def _module(*attributes: tuple[bytes, bytes]) -> bytes:
    """Return a module, memoized under 1 before its attributes are set."""
    return (
        _MODULE + b"q\x01}(" + b"".join(_text(name) + value for name, value in attributes) + b"ub"
    )


def _weights(count: int = 4) -> bytes:
    return _TENSOR % (bytes([count]), bytes([count]))


def _write(path: Path, data: bytes, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {
            "data.pkl": b"\x80\x02" + data + b".",
            "constants.pkl": b"\x80\x02).",
            "data/0": bytes(16),
            "version": b"3\n",
            **members,
        }.items():
            archive.writestr(f"archive/{name}", content)


def _doubled(levels: int) -> bytes:
    """Return modules that contain the same module twice, so that names double at each level."""
    inner = _module((b"w", _weights())) + b"q\x01"
    for _ in range(levels):
        inner += _MODULE + b"}(" + _text(b"a") + b"h\x01" + _text(b"b") + b"h\x01" + b"ubq\x01"
    return inner


def test_an_archive_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    _write(
        path, _module((b"a", _weights()), (b"b", _MODULE + b"}" + _text(b"w") + _weights() + b"sb"))
    )
    assert {name: tuple(weight.shape) for name, weight in read_state(path).items()} == {
        "a": (4,),
        "b.w": (4,),
    }


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (_module((b"w", _PLANTED)), CheckpointUnsafeError, "refers to 'os.system'"),
        (_PLANTED, CheckpointUnsafeError, "refers to 'os.system'"),
        (
            _module((b"w", b"c__torch__.torch.classes.quantized\nPacked\n)\x81")),
            CheckpointUnsafeError,
            r"refers to '__torch__\.torch\.classes\.quantized\.Packed'",
        ),
        (b"c__torch__\nM\n(K\x01tR", CheckpointUnreadableError, "damaged"),
        (_module((b"w", b"h\x01")), CheckpointUnreadableError, "a module contains itself"),
        (
            _module((b"w" * (MAX_NAME_CHARACTERS + 1), _weights())),
            CheckpointUnreadableError,
            f"a name has more than {MAX_NAME_CHARACTERS} characters",
        ),
        (_doubled(60), CheckpointUnreadableError, f"more than {MAX_NAMES} modules and tensors"),
        (_module((b"w", _weights(5))), CheckpointUnreadableError, "damaged"),
        (_module(), CheckpointUnreadableError, "its top-level keys are none"),
        (b"]", CheckpointUnreadableError, "it holds a list"),
        (_module((b"w", _weights())) + b"N" * 600_000, CheckpointUnreadableError, "500000 opcodes"),
    ],
    ids=[
        *("call in a module", "call", "packed", "class with arguments", "cycle", "name"),
        *("names", "storage", "empty", "list", "opcodes"),
    ],
)  # fmt: skip
def test_malicious_archives_are_refused_and_nothing_runs(
    tmp_path: Path,
    data: bytes,
    error: type[CheckpointError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    _write(path, data)
    with pytest.raises(error, match=message):
        read_state(path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_with_many_classes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    layers = [
        (
            b"layer%d" % index,
            b"c__torch__.mangle%d\nM\n)\x81}" % index + _text(b"w") + _weights() + b"sb",
        )
        for index in range(1000)
    ]
    _write(path, _module(*layers))
    assert len(read_state(path)) == 1000


def test_compressed_code_is_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    _write(path, _module((b"w", _weights())))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/code/__torch__.py", bytes(100_000_000))
    assert list(read_state(path)) == ["w"]
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/1", bytes(16))
    with pytest.raises(CheckpointUnreadableError, match="compressed or overlap"):
        read_state(path)
