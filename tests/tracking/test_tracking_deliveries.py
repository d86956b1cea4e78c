"""What MLflow has not taken yet lies in the run's folder: in order, once, and for the next start."""

import logging
from pathlib import Path

import pytest

from dira_dist.data.store import open_store
from dira_dist.tracking.deliveries import FORMAT, Delivery, DeliveryFolder, Kept


def test_the_next_process_gets_what_is_left_in_the_order_in_which_it_was_told(tmp_path: Path) -> None:
    first, second = (DeliveryFolder(str(tmp_path), "run") for _ in range(2))
    told = [first.keep(Delivery("removal", {"step": step})) for step in range(9)]
    told += [second.keep(Delivery.of_bytes("file", {"path": "a.bin"}, b"\0\xff"))]
    for kept in told[:4]:
        first.remove(kept)
    assert list(DeliveryFolder(str(tmp_path), "run").left_behind()) == told[4:]
    assert told[-1].delivery.content_bytes == b"\0\xff"
    assert list(second.left_behind()) == told[4:-1]  # its own are on their way


def test_what_a_run_left_that_is_gone_goes(tmp_path: Path) -> None:
    DeliveryFolder(str(tmp_path), "earlier").keep(Delivery("removal", {"step": 1}))
    assert list(DeliveryFolder(str(tmp_path), "run").left_behind()) == []
    assert not (tmp_path / "outbox").exists()


def test_a_damaged_one_is_said_and_keeps_nothing_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_store(str(tmp_path)).write_bytes("outbox/run/0-a.json", b"{}")
    kept = DeliveryFolder(str(tmp_path), "run").keep(Delivery("tags", {"a": "b"}))
    assert list(DeliveryFolder(str(tmp_path), "run").left_behind()) == [kept]
    assert "0-a.json" in caplog.text and "format version missing" in caplog.text


def test_a_storage_that_is_away_holds_no_delivery_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "dira_dist")
    (tmp_path / "outbox").write_text("no folder")
    folder, delivery = DeliveryFolder(str(tmp_path), "run"), Delivery("tags", {"a": "b"})
    assert [folder.keep(delivery) for _ in range(3)] == [Kept(delivery)] * 3
    assert len(caplog.records) == 1
    folder.remove(Kept(delivery))


def test_a_delivery_is_what_it_was() -> None:
    delivery = Delivery("checkpoint", {"address": "s3://a/b", "step": 3, "metrics": {"x": float("nan")}})
    again = FORMAT.load(FORMAT.dump(delivery), "a")
    assert repr(again) == repr(delivery)
