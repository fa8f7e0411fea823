"""Metrics of the GPUs of this machine, through NVML; where there is none, there are none."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_INTERVAL_S = 1.0
_OLD_AFTER_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Gauge:
    name: str
    description: str
    read: Callable[[Any, Any], float]


# Each takes the module and a device handle.
_GAUGES = (
    _Gauge(
        "centernet_gpu_utilization_ratio",
        "Share of the last moments in which the GPU was computing.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    _Gauge(
        "centernet_gpu_memory_used_bytes",
        "Memory that is taken, by all processes.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    _Gauge(
        "centernet_gpu_memory_total_bytes",
        "Memory of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    _Gauge(
        "centernet_gpu_power_watts",
        "Power that the GPU draws.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
)


class GpuCollector(Collector):
    """Reads the GPUs in a thread of its own, so that a driver that hangs holds up no scrape.

    What a GPU does not tell is absent; so is everything once the readings are old.
    """

    def __init__(self, nvml: ModuleType, handles: list[Any]) -> None:
        self._nvml = nvml
        self._handles = handles
        self._values: dict[tuple[str, int], float] = {}
        self._read_at = -_OLD_AFTER_S
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read_on, name="gpu-metrics", daemon=True)
        self._thread.start()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metrics without values: registering must not depend on the driver."""
        for gauge in _GAUGES:
            yield GaugeMetricFamily(gauge.name, gauge.description, labels=["gpu"])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The newest values."""
        values = self._values if time.monotonic() - self._read_at < _OLD_AFTER_S else {}
        for family in self.describe():
            for index in range(len(self._handles)):
                if (family.name, index) in values:
                    family.add_metric([str(index)], values[family.name, index])
            yield family

    def stop(self) -> None:
        """End the thread; it is not waited for, since the driver may hang."""
        self._stopping.set()

    def _read_on(self) -> None:
        while True:
            self._values = dict(self._read())
            self._read_at = time.monotonic()
            if self._stopping.wait(_INTERVAL_S):
                return

    def _read(self) -> Iterator[tuple[tuple[str, int], float]]:
        for index, handle in enumerate(self._handles):
            for gauge in _GAUGES:
                try:
                    yield (gauge.name, index), float(gauge.read(self._nvml, handle))
                except self._nvml.NVMLError:
                    continue  # this GPU does not tell, or not now


def watch_gpus(registry: CollectorRegistry) -> GpuCollector | None:
    """Add the GPUs' metrics to ``registry`` if there are GPUs and ``nvidia-ml-py`` is installed."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    except pynvml.NVMLError as error:
        _log.info("no GPU metrics: %s", error)
        return None
    if not handles:
        return None
    collector = GpuCollector(pynvml, handles)
    registry.register(collector)
    return collector
