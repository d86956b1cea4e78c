"""Files that are written and read back: a specimen of each is read for ever, or refused with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from dira_dist.config import RequestError
from dira_dist.data.ingest.sources import SOURCES_FORMAT
from dira_dist.data.shards import parse_index
from dira_dist.data.store import open_store
from dira_dist.formats import FileFormat, FormatError
from dira_dist.models import model_files
from dira_dist.runs import evaluations, folder, lease, run, search
from dira_dist.tracking import deliveries
from dira_dist.training import state
from dira_dist.training.state import BrokenCheckpointError, read_manifest

SPECIMENS = Path(__file__).parent / "specimens"
FORMATS: dict[str, FileFormat[Any]] = {
    folder.RUN: run.FORMAT,
    folder.EVALUATIONS: evaluations.FORMAT,
    folder.SEARCH: search.FORMAT,
    folder.DRIVER: lease.FORMAT,
    folder.MANIFEST: state.FORMAT,
    model_files.FACTS: model_files.FORMAT,
    "delivery.json": deliveries.FORMAT,
    "sources.json": SOURCES_FORMAT,
}


def specimen(name: str, version: str | None = None) -> bytes:
    """As a version of dira-dist wrote it: the newest that changed its format where none is named."""
    return (SPECIMENS / (version or max(file.parent.name for file in SPECIMENS.glob(f"*/{name}"))) / name).read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_a_specimen_is_read_and_written_as_it_is(name: str) -> None:
    content = specimen(name)
    assert FORMATS[name].dump(FORMATS[name].load(content, name)) == content.rstrip(b"\n")


@pytest.mark.parametrize("name", [folder.RUN, folder.SEARCH])
def test_runs_and_searches_of_0_1_0_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write_bytes(name, specimen(name, "0.1.0"))
    read = run.read_run if name == folder.RUN else search.read_search
    with pytest.raises(RequestError) as caught:
        read(store)
    message = str(caught.value)
    assert message.startswith(
        f"{store.address}/{name}: format version missing; this version of dira-dist reads version "
    )
    assert "finish it with that version (pip install dira-dist==0.1.0)" in message
    assert "under another name, with model.init its pulled weights" in message


def test_checkpoints_and_models_of_0_1_0_are_read() -> None:
    assert state.FORMAT.load(specimen(folder.MANIFEST, "0.1.0"), "m").position.step == 7
    model = model_files.FORMAT.load(specimen(model_files.FACTS, "0.1.0"), "m")
    assert model.encoder == "resnet18" and model.decoder


def test_a_run_of_0_2_0_began_with_the_only_generation_there_was() -> None:
    assert run.FORMAT.load(specimen(folder.RUN, "0.2.0"), "r").generations == {"train": 1}


def test_an_index_of_before_generations_is_the_first_and_says_what_it_said() -> None:
    index = parse_index(specimen("index.json", "0.2.0"), "s")
    assert index.is_intact and index.index_sha256 and (index.number, index.version) == (1, 1)
    assert index.to_json().encode() == specimen("index.json", "0.2.0").rstrip(b"\n")


def test_an_index_that_has_changed_is_of_the_second_version() -> None:
    index = parse_index(specimen("index.json", "0.3.0"), "s")
    assert index.is_intact and (index.number, index.version, len(index.withdrawals or ())) == (4, 2, 1)
    for changes in ({"version": 1}, {"generation": 1}, {"generation": None}):
        values = {**json.loads(specimen("index.json", "0.3.0")), **changes}
        with pytest.raises(RequestError, match=r"index\.json is not a shard set's index"):
            parse_index(json.dumps(values).encode(), "s")


def test_a_driver_of_0_2_0_is_read_and_its_heartbeats_are_watched() -> None:
    driver = lease.FORMAT.load(specimen(folder.DRIVER, "0.2.0"), "d")
    assert driver.pid == 42 and driver.is_alive is None


def test_a_model_of_0_2_0_does_not_say_how_its_images_were_made() -> None:
    model = model_files.FORMAT.load(specimen(model_files.FACTS, "0.2.0"), "m")
    assert model.decoder and model.fed == {}


@pytest.mark.parametrize(
    ("trained", "decoder"),
    [
        (["discriminative"], False),
        (["discriminative", "restorative"], True),
        (["adversarial"], True),
        (["discriminative", "another"], False),
    ],
)
def test_a_model_of_version_1_tells_its_decoder_by_its_parts(trained: list[str], decoder: bool) -> None:
    values = {**json.loads(specimen(model_files.FACTS)), "version": 1, "trained": trained}
    del values["decoder"]
    assert model_files.FORMAT.load(json.dumps(values).encode(), "m").decoder is decoder


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("version", [99, "2", None, True, 1.5])
def test_another_version_is_refused_by_name(name: str, version: object) -> None:
    values = {**json.loads(specimen(name)), "version": version}
    with pytest.raises(FormatError, match="format version") as caught:
        FORMATS[name].load(json.dumps(values).encode(), "s3://runs/a/file.json")
    assert str(caught.value).startswith("s3://runs/a/file.json: ")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b"\xff", b"[" * 200_000])
def test_what_is_no_mapping_is_damaged(name: str, content: bytes) -> None:
    with pytest.raises(FormatError, match="damaged"):
        FORMATS[name].load(content, name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_key_too_many_too_few_or_of_another_type_is_named(name: str) -> None:
    values = json.loads(specimen(name))
    key = next(key for key, value in values.items() if key != "version" and value)
    without = {each: value for each, value in values.items() if each != key}
    for damaged in ({**values, "surplus": 1}, {**values, key: None}, without):
        with pytest.raises(FormatError, match=rf"{name}: (surplus|{key})"):
            FORMATS[name].load(json.dumps(damaged).encode(), name)


def _manifest(**changes: object) -> bytes:
    return json.dumps({**json.loads(specimen(folder.MANIFEST)), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        _manifest(position=None),
        _manifest(position={"stage": -1, "step_in_stage": 0, "step": 0, "samples": 0}),
        _manifest(position={"stage": 0}),
        _manifest(position={"stage": 0, "step_in_stage": 0, "step": 0, "samples": 0, "more": 1}),
        _manifest(files={}),
        _manifest(files={"../state.pt": {"bytes": 1, "sha256": "0" * 64}}),
        _manifest(files={"state.pt": {"bytes": "1", "sha256": "0" * 64}}),
        _manifest(pending_metrics="none"),
    ],
)
def test_a_manifest_that_lies_makes_no_checkpoint(content: bytes) -> None:
    with pytest.raises(BrokenCheckpointError, match=r"runs/a/step-1/manifest\.json"):
        read_manifest(content, "runs/a/step-1")
