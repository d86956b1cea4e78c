"""How busy the machine is: processor, memory, network and GPUs, measured on a thread, for the page's system tab."""

import importlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)
Record = Callable[[Mapping[str, float], int], None]


class SystemMonitor:
    """Measures this machine every so many seconds and hands the numbers to ``record``.

    Names are MLflow's own, with the node's in between: ``system/NODE/cpu_utilization_percentage``. The step is the
    time in whole seconds since 1970, which rises over restarts and means the same on every node.

    Args:
        record: takes the numbers and the step.
        every_s: seconds between two measurements; 0 measures nothing.
        node: the node's name; the host's where left out.
    """

    def __init__(self, record: Record, every_s: float, node: str | None = None) -> None:
        self._record = record
        self._every_s = every_s
        self._node = node or socket.gethostname()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to measure, on a thread that ends with the process."""
        if self._every_s > 0:
            threading.Thread(target=self._run, name="system-monitor", daemon=True).start()

    def stop(self) -> None:
        """End it. Returns at once."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            probes = [probe for probe in (_processor_probe(), _gpu_probe()) if probe is not None]
            while probes and not self._stopped.wait(self._every_s):
                numbers = [item for probe in probes for item in probe().items()]
                self._record({f"system/{self._node}/{name}": value for name, value in numbers}, int(time.time()))
        except Exception as error:
            log.warning("system metrics end here: %s", error)


def _processor_probe() -> Callable[[], dict[str, float]] | None:
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


def _gpu_probe() -> Callable[[], dict[str, float]] | None:
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:  # no package, no driver and no device are the same to a machine without GPU
        return None
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

    def measure() -> dict[str, float]:
        numbers: dict[str, float] = {}
        for index, device in enumerate(devices):
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            numbers[f"gpu_{index}_memory_usage_megabytes"] = memory.used / 1e6
            numbers[f"gpu_{index}_memory_usage_percentage"] = 100 * memory.used / memory.total
            numbers[f"gpu_{index}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(device).gpu
        return numbers

    return measure
