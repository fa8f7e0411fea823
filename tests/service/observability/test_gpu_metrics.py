"""GPU metrics over an NVML that the tests control."""

import sys
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.observability import gpu_metrics as gpu
from service.observability.gpu_metrics import watch_gpus


class FakeNvml(ModuleType):
    """Two GPUs; the second does not tell its power."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.count = 2
        self.used = 100
        self.driver = True
        self.read = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def nvmlInit(self) -> None:  # noqa: N802 (their names)
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        assert self.gate.wait(20)
        return SimpleNamespace(gpu=50 + handle, memory=7)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=self.used + handle, total=1000, free=0)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        if handle == self.count - 1:
            self.read.release()  # the last value of a round
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return 71_500


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpu, "_INTERVAL_S", 0.001)
    yield fake
    fake.gate.set()


def after_a_reading(nvml: FakeNvml) -> None:
    """Of three readings that end from now on, the second began and is stored after this call."""
    while nvml.read.acquire(blocking=False):
        pass
    for _ in range(3):
        assert nvml.read.acquire(timeout=20)


def test_each_gpu_has_its_values(nvml: FakeNvml) -> None:
    registry = CollectorRegistry()
    collector = watch_gpus(registry)
    assert collector is not None
    after_a_reading(nvml)
    collector.stop()
    text = generate_latest(registry).decode()
    values = [line for line in text.splitlines() if not line.startswith("#")]
    assert sorted(values) == [
        'centernet_gpu_memory_total_bytes{gpu="0"} 1000.0',
        'centernet_gpu_memory_total_bytes{gpu="1"} 1000.0',
        'centernet_gpu_memory_used_bytes{gpu="0"} 100.0',
        'centernet_gpu_memory_used_bytes{gpu="1"} 101.0',
        'centernet_gpu_power_watts{gpu="0"} 71.5',
        'centernet_gpu_utilization_ratio{gpu="0"} 0.5',
        'centernet_gpu_utilization_ratio{gpu="1"} 0.51',
    ]


def test_values_are_renewed(nvml: FakeNvml) -> None:
    registry = CollectorRegistry()
    collector = watch_gpus(registry)
    assert collector is not None
    after_a_reading(nvml)
    nvml.used = 500
    after_a_reading(nvml)
    collector.stop()
    assert registry.get_sample_value("centernet_gpu_memory_used_bytes", {"gpu": "0"}) == 500


def test_a_driver_that_hangs_holds_up_no_scrape_and_its_old_values_go(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    collector = watch_gpus(registry)
    assert collector is not None
    after_a_reading(nvml)
    nvml.gate.clear()
    used = {"gpu": "0"}
    assert registry.get_sample_value("centernet_gpu_memory_used_bytes", used) == 100
    monkeypatch.setattr(gpu, "_OLD_AFTER_S", 0.0)
    assert registry.get_sample_value("centernet_gpu_memory_used_bytes", used) is None
    collector.stop()


@pytest.mark.parametrize("reason", ["no driver", "no GPU", "no library"])
def test_without_a_gpu_there_are_no_metrics(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    nvml.driver, nvml.count = reason != "no driver", 0
    if reason == "no library":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    registry = CollectorRegistry()
    assert watch_gpus(registry) is None
    assert generate_latest(registry) == b""


def test_the_library_has_what_is_called() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) == 7
    assert [name for name in names if not hasattr(pynvml, name)] == []
