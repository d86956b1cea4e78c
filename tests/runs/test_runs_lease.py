"""Two drivers of one run: the second keeps away, unless the first is gone."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from dira_dist.config import RequestError
from dira_dist.data.store import Store, open_store
from dira_dist.runs import lease as lease_module
from dira_dist.runs.folder import DRIVER
from dira_dist.runs.lease import FORMAT, Driver, Lease
from tests.conftest import S3Server


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
    began_s = lease_module._began_s(other_process.pid)
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
    elsewhere = replace(Driver.here(), token="other", host="elsewhere.example", machine="another boot")
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


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_of_drivers_that_start_in_the_same_moment_one_drives(where: str, tmp_path: Path, s3: S3Server) -> None:
    for race in range(12):
        store = open_store(f"{tmp_path}/{race}" if where == "folder" else s3.address(f"run-{race}"))
        outcomes = raced(store, drivers=3)
        assert outcomes.count("drives") == 1, outcomes
        assert all(outcome == "drives" or "this run is being driven by process" in outcome for outcome in outcomes)


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_of_drivers_that_take_over_in_the_same_moment_one_drives(where: str, tmp_path: Path, s3: S3Server) -> None:
    gone = replace(Driver.here(), token="gone", began_s=1.0)
    for race in range(8):
        store = open_store(f"{tmp_path}/{race}" if where == "folder" else s3.address(f"run-{race}"))
        written(store, gone)
        assert raced(store, drivers=3).count("drives") == 1


def raced(store: Store, drivers: int) -> list[str]:
    """What becomes of so many drivers that enter at once; those that drive do so until all have been told."""
    at_once, told = threading.Barrier(drivers), threading.Barrier(drivers)
    outcomes: list[str] = []

    def drive() -> None:
        lease = leased(store)
        at_once.wait()
        try:
            with lease:
                outcomes.append("drives")
                told.wait()
        except RequestError as error:
            outcomes.append(str(error))
            told.wait()

    threads = [threading.Thread(target=drive) for _ in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_a_driver_in_another_space_of_process_numbers_is_heard_of_and_not_looked_for(store: Store) -> None:
    """Containers of one machine may share its name, and each has a process 1 of its own."""
    behind = replace(Driver.here(), token="other", pid=2**22 + 1, machine=f"{lease_module._machine()}-another")
    assert behind.is_alive is None
    assert replace(behind, machine=lease_module._machine()).is_alive is False
    assert replace(behind, machine="").is_alive is None, "a driver of an older version does not say"


def test_a_clock_that_is_set_ends_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Driver.here()
    true_s = time.time
    monkeypatch.setattr(time, "time", lambda: true_s() + 3600)
    assert here.is_alive


class Heedless:
    """A store that writes whatever the condition, as some servers that speak S3 do."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write_version(self, key: str, data: bytes, replaces: str | None) -> str:
        self._store.write_bytes(key, data)
        return self._store.read_version(key)[1]


def test_a_storage_that_obeys_no_condition_is_told(store: Store) -> None:
    said: list[str] = []
    with Lease(cast(Store, Heedless(store)), say=said.append, lost=lambda other: None):
        pass
    assert [line.partition(" obey ")[2].partition(",")[0] for line in said] == ["If-None-Match", "If-Match"]
    assert "start one at a time" in said[0]
    said.clear()
    with Lease(store, say=said.append, lost=lambda other: None):
        pass
    assert not said
