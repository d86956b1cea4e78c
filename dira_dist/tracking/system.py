"""How busy the machine is: processor, memory, network and GPUs, measured on a thread, for the page's system tab."""

import importlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from dira_dist.background import Background
from dira_dist.metrics import MACHINE

log = logging.getLogger(__name__)
LogMetrics = Callable[[Mapping[str, float], int], None]
Probe = Callable[[], dict[str, float]]


class SystemMonitor(Background):
    """Measures this machine every so many seconds and hands the numbers to ``log_metrics``.

    Names are MLflow's own, with the node's in between: ``system/NODE/cpu_utilization_percentage``. The step is the
    time in whole seconds since 1970, which rises over restarts and means the same on every node.

    Args:
        log_metrics: takes the numbers and the step.
        every_s: seconds between two measurements; 0 measures nothing.
        node: the node's name; the host's where left out.
    """

    def __init__(self, log_metrics: LogMetrics, every_s: float, node: str | None = None) -> None:
        super().__init__("system-monitor", join_timeout_s=0)
        self._log_metrics = log_metrics
        self._every_s = every_s
        self._node = node or socket.gethostname()
        self._failing: set[Probe] = set()

    def start(self) -> None:
        """Begin to measure, on a thread that ends with the process."""
        if self._every_s > 0:
            super().start()

    def _run(self) -> None:
        try:
            probes = [probe for probe in (_processor_probe(), _gpu_probe()) if probe is not None]
            while probes and not self._ended.wait(self._every_s):
                numbers = [item for probe in probes for item in self._read(probe).items()]
                self._log_metrics(
                    {MACHINE.of(f"{self._node}/{name}"): value for name, value in numbers}, int(time.time())
                )
        except Exception as error:
            log.warning("system metrics end here: %s", error)

    def _read(self, probe: Probe) -> dict[str, float]:
        """What a probe measures; its failure is said once, and takes nothing from the others."""
        try:
            return probe()
        except Exception as error:  # whatever drivers and /proc have in store: figures of the machine end no training
            if probe not in self._failing:
                log.warning("some system metrics are missing: %s", error)
            self._failing.add(probe)
            return {}


def _processor_probe() -> Probe | None:
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        log.info("system metrics need psutil (pip install psutil)")
        return None
    start = psutil.net_io_counters()
    psutil.cpu_percent()  # the first call has nothing to compare with and returns 0

    def measure() -> dict[str, float]:
        memory, network = psutil.virtual_memory(), psutil.net_io_counters()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "network_receive_megabytes": (network.bytes_recv - start.bytes_recv) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - start.bytes_sent) / 1e6,
        }

    return measure


def _gpu_probe() -> Probe | None:
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver and no device are the same to a machine without GPU
        return None

    def memory(device: Any) -> dict[str, float]:
        found = pynvml.nvmlDeviceGetMemoryInfo(device)
        used, total = found.used, found.total
        return {"memory_usage_megabytes": used / 1e6, "memory_usage_percentage": 100 * used / total}

    def load(device: Any) -> dict[str, float]:
        return {"utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(device).gpu}

    def measure() -> dict[str, float]:
        numbers: dict[str, float] = {}
        for (index, device), reading in product(enumerate(devices), (memory, load)):
            try:
                numbers |= {f"gpu_{index}_{name}": value for name, value in reading(device).items()}
            except pynvml.NVMLError as error:  # under MIG a GPU has no utilisation, and some have no memory figure
                log.debug("GPU %d: %s", index, error)
        return numbers

    return measure
