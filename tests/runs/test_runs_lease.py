"""Two drivers of one run: the second keeps away, unless the first is gone."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dira_dist.config import RequestError
from dira_dist.data.store import Store, open_store
from dira_dist.runs import lease as lease_module
from dira_dist.runs.folder import DRIVER
from dira_dist.runs.lease import FORMAT, Driver, Lease


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.05)
    monkeypatch.setattr(lease_module, "GONE_AFTER_S", 1.0)
    monkeypatch.setattr(lease_module, "ENDS_WITHIN_S", 0.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def leased(store: Store, lost: list[Driver] | None = None) -> Lease:
    return Lease(store, say=lambda line: None, lost=(lost if lost is not None else []).append)


def written(store: Store, driver: Driver) -> None:
    store.write_bytes(DRIVER, FORMAT.dump(driver))


def test_a_driver_of_this_machine_counts_as_long_as_its_process(
    store: Store, other_process: subprocess.Popen[bytes]
) -> None:
    began_s = psutil.Process(other_process.pid).create_time()
    there = replace(Driver.here(), token="other", pid=other_process.pid, began_s=began_s)
    written(store, there)
    with pytest.raises(RequestError, match=f"is being driven by process {other_process.pid} on "), leased(store):
        pass
    written(store, replace(there, began_s=began_s - 5))  # the number belongs to another process now
    with leased(store):
        pass
    written(store, there)
    other_process.kill()  # and not waited for: what is left is a zombie
    with leased(store):
        assert store.stat(DRIVER) is not None
    assert store.stat(DRIVER) is None, "whoever ends in good order leaves no sign"


def test_a_driver_elsewhere_counts_as_long_as_it_is_heard_of(store: Store) -> None:
    elsewhere = replace(Driver.here(), token="other", host="elsewhere.example")
    written(store, elsewhere)
    silenced = threading.Event()

    def live() -> None:
        beats = 0
        while not silenced.wait(0.2):
            beats += 1
            written(store, replace(elsewhere, beats=beats))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(RequestError, match=r"on elsewhere\.example"), leased(store):
        pass
    silenced.set()
    thread.join()
    with leased(store):
        assert b"elsewhere" not in store.read_bytes(DRIVER)


def test_a_driver_that_stood_still_hears_that_it_lost_its_run(store: Store) -> None:
    lost: list[Driver] = []
    with leased(store, lost):
        time.sleep(0.3)
        assert json.loads(store.read_bytes(DRIVER))["beats"] > 1
        thief = replace(Driver.here(), token="thief")
        deadline = time.monotonic() + 30
        while not lost and time.monotonic() < deadline:
            written(store, thief)  # again and again, as its beats do: a beat of the first may come between
            time.sleep(0.05)
    assert lost == [thief]
    assert store.stat(DRIVER) is not None, "it is the other's now"
