"""Sets that grow and lose patients: generations, and what is read of each."""

import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dira_dist.config import RequestError
from dira_dist.data.generations import among, at_generation, generation_of, plain_address, without
from dira_dist.data.ingest import RemovalReport, ShardOptions, ShardReport, read_list, remove, shard
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import ShardInfo, read_index, read_recorded
from dira_dist.data.store import StoreError, open_store
from dira_dist.data.stream import ShardStream
from dira_dist.data.validation import ValidationStream
from dira_dist.data.verify import verify
from dira_dist.data.withdrawal import group_digest, rewrite, withdraw

PATIENTS = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def add_images(folder: Path, numbers: range) -> None:
    """Grey images of one value each, three to a patient: the folder is the patient's."""
    for number in numbers:
        file = folder / f"p{number // 3:02d}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16 + number % 3), number, dtype=np.uint8)).save(file)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    add_images(tmp_path / "src", range(3 * PATIENTS))
    (tmp_path / "salt").write_text("a secret of the tests")
    return tmp_path / "src"


def grow(source: Path, dest: object, *, told: Any = None, **options: Any) -> ShardReport:
    values = {"group_by": "folder", "samples_per_shard": 5, "processes": 1, "mode": "L", **options}
    return shard(source, str(dest), ShardOptions(salt_file=str(source.parent / "salt"), **values), told)


def tars(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.tar"))}


def values_in(address: str, **options: Any) -> Counter[int]:
    """The grey values of a whole pass, one for each sample."""
    found: Counter[int] = Counter()
    with ValidationStream(address, batch_size=7, **options) as stream:
        for batch in stream:
            found.update(batch.images[batch.valid][:, 0, 0, 0].tolist())
    return found


# --------------------------------------------------------------------------- numberings


@given(st.sets(st.integers(0, 40)), st.integers(1, 60))
def test_places_are_counted_without_what_is_left_out_and_back(gone: set[int], count: int) -> None:
    left_out = sorted(gone)
    kept = [place for place in range(count) if place not in gone]
    assert without(kept, left_out).tolist() == list(range(len(kept)))
    assert among(range(len(kept)), left_out).tolist() == kept


@given(st.data())
def test_what_has_gone_from_a_tar_is_told_whatever_was_rewritten_when(data: st.DataObject) -> None:
    """Against sets of names: a tar loses samples in three steps, and is rewritten after some of them."""
    names = list(range(data.draw(st.integers(2, 12))))
    shard_now = ShardInfo(name="000000.tar", samples=len(names), bytes=1, sha256="0" * 64)
    held, gone = list(names), set[int]()
    generations = [(shard_now, list(names))]
    for step in range(3):
        gone |= data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
        if len(gone) == len(names):
            return
        places = tuple(place for place, name in enumerate(held) if name in gone) or None
        left = [name for name in names if name not in gone]
        shard_now = shard_now.model_copy(update={"samples": len(left), "withdrawn": places})
        if places and data.draw(st.booleans()):
            removed = tuple(shard_now.removed.tolist())
            assert removed == tuple(sorted(gone)), step
            shard_now = shard_now.model_copy(
                update={"name": f"000000-{step}.tar", "origin": "000000.tar", "left_out": removed, "withdrawn": None}
            )
            held = left
        generations.append((shard_now, left))
    for pinned, counted in generations:
        found = pinned.read_from(shard_now)
        assert found.samples == len(counted) and found.name == shard_now.name
        assert [counted[place] for place in found.gone] == [name for name in counted if name in gone]
        assert found.samples_in_tar == len(held)
    assert len(pinned.read_from(None).gone) == pinned.samples


@pytest.mark.parametrize("number", ["0", "-1", "x", "", "1.5", "01"])
def test_an_address_with_another_word_for_a_generation_is_refused(number: str) -> None:
    with pytest.raises(RequestError, match="no generation"):
        generation_of(f"s3://a/b#generation={number}")


def test_an_address_names_a_generation() -> None:
    pinned = at_generation(at_generation("s3://a/b", 2), 7)
    assert (pinned, plain_address(pinned), generation_of(pinned)) == ("s3://a/b#generation=7", "s3://a/b", 7)
    assert generation_of("s3://a/b") is None and plain_address("a#b") == "a#b"


# --------------------------------------------------------------------------- append


def test_what_is_new_is_added_and_what_was_there_stays(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    grow(source, dest)
    before = tars(dest)
    for generation in (2, 3, 4):
        add_images(source, range(36 + 4 * (generation - 2), 36 + 4 * (generation - 1)))
        report = grow(source, dest, append=True).parts["all"]
        assert (report.generation, report.samples, report.was_complete) == (generation, 32 + 4 * generation, False)
    for name, content in before.items():
        assert tars(dest)[name] == content
    assert grow(source, dest, append=True).parts["all"].was_complete
    for generation in (1, 2, 3, 4):
        address = at_generation(str(dest), generation)
        assert verify(address) == [] and read_index(address).is_intact
        assert values_in(address) == Counter(range(32 + 4 * generation))
    assert not (dest / "appends").exists() and read_index(str(dest)).image.width_px.max == 18


def test_a_set_of_an_older_version_grows_too(source: Path, tmp_path: Path) -> None:
    """It has no list of its files: the keys of its samples say what is there."""
    dest = tmp_path / "set"
    grow(source, dest)
    shutil.rmtree(dest / "sources")
    add_images(source, range(36, 39))
    assert grow(source, dest, append=True).samples == 39 and verify(str(dest)) == []


def groups_in(folder: Path) -> set[str]:
    return set(read_samples(str(folder), read_index(str(folder))).groups)


def test_patients_stay_in_their_part_and_a_part_without_news_keeps_its_generation(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    split: dict[str, Any] = {"split": {"train": 0.7, "val": 0.3}}
    grow(source, dest, **split)
    groups = {part: groups_in(dest / part) for part in ("train", "val")}
    Image.fromarray(np.full((16, 16), 200, dtype=np.uint8)).save(source / "p00" / "late.png")
    report = grow(source, dest, append=True, **split)
    assert sorted(part.generation for part in report.parts.values()) == [1, 2] and report.samples == 37
    for part, found in groups.items():
        assert groups_in(dest / part) == found


def test_changed_and_vanished_files_are_told_and_kept(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    grow(source, dest)
    Image.fromarray(np.full((16, 20), 7, dtype=np.uint8)).save(source / "p00" / "000.png")
    (source / "p01" / "003.png").unlink()
    report = grow(source, dest, append=True)
    assert report.parts["all"].was_complete and values_in(str(dest)) == Counter(range(36))
    assert [entry.file for entry in report.skipped if "changed" in entry.reason] == ["p00/000.png"]
    assert any("1 files that the set was made of are not in the source" in line for line in report.warnings)
    assert len(report.unmatched["files of the set"]) == 1


def test_an_interrupted_append_goes_on_and_one_that_nobody_ends_is_cleared_away(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    grow(source, dest)
    add_images(source, range(36, 48))

    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(source, dest, append=True, told=interrupt)
    assert values_in(str(dest)) == Counter(range(36)) and verify(str(dest)) == []
    shutil.copytree(dest, tmp_path / "other")
    assert grow(source, dest, append=True).parts["all"].resumed_shards == 1
    assert values_in(str(dest)) == Counter(range(48))
    add_images(source, range(48, 51))
    grow(source, tmp_path / "other", append=True)
    add_images(source, range(51, 54))
    grow(source, tmp_path / "other", append=True)
    assert verify(str(tmp_path / "other")) == [] and not (tmp_path / "other" / "appends").exists()
    assert len(tars(tmp_path / "other")) == len(read_index(str(tmp_path / "other")).shards)


def _append(source: Path, dest: str, barrier: Any, queue: Any) -> None:
    def meet(done: int, total: int) -> None:
        if done == 1:
            barrier.wait()

    try:
        queue.put(grow(source, dest, append=True, told=meet).samples)
    except RequestError as error:
        queue.put(str(error))


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_of_two_who_append_at_once_one_wins_and_the_other_can_repeat(
    source: Path, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    dest = str(tmp_path / "set") if place == "folder" else request.getfixturevalue("s3").address("set")
    grow(source, dest)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2, timeout=60), context.Queue()
    sources = []
    for number, numbers in enumerate((range(36, 42), range(42, 48))):
        each = shutil.copytree(source, tmp_path / f"at{number}" / "src")
        shutil.copy(tmp_path / "salt", tmp_path / f"at{number}" / "salt")
        add_images(each, numbers)
        sources.append(each)
    processes = [context.Process(target=_append, args=(each, dest, barrier, queue)) for each in sources]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert 42 in answers
    (refusal,) = [answer for answer in answers if answer != 42]
    assert "another command has made generation 2" in refusal and "Repeat the command" in refusal
    assert verify(dest) == []
    for each in sources:
        grow(each, dest, append=True)
    assert values_in(dest) == Counter(range(48)) and verify(dest) == [] and read_index(dest).number == 3
    assert verify(at_generation(dest, 1)) == [] and values_in(at_generation(dest, 1)) == Counter(range(36))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, r"made otherwise: image_size \(512 there, 8 now\)"),
        ({"coding": "jpeg"}, "coding"),
        ({"overwrite": True}, "say one of them"),
    ],
)
def test_an_append_with_other_options_is_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    grow(source, tmp_path / "set")
    add_images(source, range(36, 39))
    with pytest.raises(RequestError, match=message):
        grow(source, tmp_path / "set", append=True, **options)
    with pytest.raises(RequestError, match="no shard set at"):
        grow(source, tmp_path / "none", append=True)


# --------------------------------------------------------------------------- withdrawal


def group_of(address: str, number: int) -> str:
    """The group, as shards name it, of the patient whose image has this value."""
    samples = read_samples(address, read_index(address))
    return samples.groups[samples.keys.index(key_of(address, number))]


def key_of(address: str, number: int) -> str:
    """The key of the image that has this value."""
    with ValidationStream(address, batch_size=1) as stream:
        return next(batch.keys[0] for batch in stream if int(batch.images.flatten()[0]) == number)


def stream_of(address: str, *, steps: int, start: int = 0, **options: Any) -> list[Any]:
    values: dict[str, Any] = {"global_batch": 12, "seed": 3, "shuffle_window": 4, "start_sample": start, **options}
    with ShardStream(address, **values) as stream:
        return [next(stream) for _ in range(steps)]


def test_a_new_run_reads_nothing_of_a_withdrawn_patient(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest)
    group = group_of(dest, 4)
    removal = withdraw(dest, [group, "of nobody"], [])
    assert (removal.samples, removal.groups, removal.generation, removal.left) == (3, 1, 2, 33)
    assert removal.found == {group}
    left = Counter(set(range(36)) - {3, 4, 5})
    assert values_in(dest) == left and verify(dest) == [] and verify(at_generation(dest, 1)) == []
    epoch = stream_of(dest, steps=11, global_batch=3, lanes=3)
    assert Counter(int(image[0, 0, 0]) for batch in epoch for image in batch.images) == left
    assert not any(batch.withdrawn_samples or batch.bad_samples for batch in epoch)
    samples = read_samples(dest, read_index(dest))
    assert len(samples) == 33 and group not in samples.groups
    assert values_in(dest, ids=range(33), places=samples.places) == left
    again = withdraw(dest, [group], [])
    assert (again.samples, again.generation, again.found) == (0, 2, {group})


def test_a_run_on_an_older_generation_goes_on_and_counts_what_was_withdrawn(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest)
    pinned = at_generation(dest, 1)
    whole = stream_of(pinned, steps=6)
    group = group_of(dest, 4)
    for change in (lambda: withdraw(dest, [group], []), lambda: rewrite(dest)):
        change()
        add_images(source, range(36 + 3 * read_index(dest).number, 39 + 3 * read_index(dest).number))
        grow(source, dest, append=True)
        resumed = stream_of(pinned, steps=4, start=24)
        for before, now in zip(whole[2:], resumed, strict=True):
            gone = [place for place, key in enumerate(before.images[:, 0, 0, 0].tolist()) if key in (3, 4, 5)]
            assert now.withdrawn_samples == len(gone) and now.bad_samples == 0
            kept = [place for place in range(12) if place not in gone]
            assert (now.sample_ids[kept] == before.sample_ids[kept]).all()
            assert [now.keys[place] for place in kept] == [before.keys[place] for place in kept]
            assert not {3, 4, 5} & set(now.images[:, 0, 0, 0].tolist())
        assert sum(batch.withdrawn_samples for batch in resumed) > 0
        workers = [stream_of(pinned, steps=4, start=24, rank=rank, world_size=2) for rank in range(2)]
        for together, *parts in zip(resumed, *workers, strict=True):
            assert [key for part in parts for key in part.keys] == list(together.keys)
            assert sum(part.withdrawn_samples for part in parts) == together.withdrawn_samples
        assert values_in(pinned) == Counter(set(range(36)) - {3, 4, 5})
        assert verify(dest) == [] and verify(pinned) == []
        with pytest.raises(RequestError, match="3 samples were withdrawn since generation 1"):
            read_samples(pinned, read_index(pinned))
        assert read_recorded(pinned).digest == read_recorded(pinned).model_copy().digest != read_index(dest).digest


def test_after_rewriting_not_a_byte_of_a_withdrawn_patient_is_left(source: Path, tmp_path: Path) -> None:
    """The patient's pixels are noise, whose compressed bytes stand nowhere else."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    (source / "p77").mkdir()
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(source / "p77" / f"{number}.png")
    dest = tmp_path / "set"
    grow(source, dest, samples_per_shard=1)
    data, meant = b"".join(tars(dest).values()), _group_of_noise(dest)
    pieces = [member[-400:-200] for member in _members_of(str(dest), meant)]
    assert len(pieces) == 3 and all(piece in data for piece in pieces) and meant.encode() in data
    withdraw(str(dest), [meant], [])
    assert verify(str(dest)) == []
    index, written, deleted = rewrite(str(dest))
    assert (index.samples, written, deleted) == (36, 0, 3)
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and "src" not in file.parts)
    assert not any(piece in left for piece in pieces) and meant.encode() not in b"".join(tars(dest).values())
    assert rewrite(str(dest))[1:] == (0, 0) and verify(str(dest)) == []


def _members_of(address: str, group: str) -> Iterator[bytes]:
    index = read_index(address)
    samples = read_samples(address, index)
    starts = np.cumsum([0, *(shard.samples for shard in index.shards)])
    for place, found in enumerate(samples.groups):
        if found == group:
            number = int(np.searchsorted(starts, place, side="right")) - 1
            tar = open_store(address).read_bytes(index.shards[number].name)
            yield tar[int(samples.first_byte[place]) + 512 : int(samples.end_byte[place]) - 1024].rstrip(b"\0")


def _group_of_noise(dest: Path) -> str:
    with ValidationStream(str(dest), batch_size=1) as stream:
        return next(batch.groups[0] for batch in stream if batch.images.shape[-1] == 32)


def test_a_tar_is_rewritten_twice_and_an_interrupted_rewrite_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest, samples_per_shard=12)
    before = tars(tmp_path / "set")
    for number in (4, 20):
        withdraw(dest, [group_of(dest, number)], [])
        with monkeypatch.context() as patch:
            patch.setattr("dira_dist.data.withdrawal.publish_next", _killed)
            with pytest.raises(KeyboardInterrupt):
                rewrite(dest)
        assert set(before) <= set(tars(tmp_path / "set"))
        rewrite(dest)
        before = tars(tmp_path / "set")
        assert verify(dest) == [] and set(before) == {shard.name for shard in read_index(dest).shards}
    left = Counter(set(range(36)) - {3, 4, 5, 18, 19, 20})
    for generation in range(1, read_index(dest).number + 1):
        assert values_in(at_generation(dest, generation)) == left and verify(at_generation(dest, generation)) == []


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_samples_are_withdrawn_by_key_and_never_all(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest)
    samples = read_samples(dest, read_index(dest))
    assert withdraw(dest, [], samples.keys[:2]).samples == 2
    with pytest.raises(RequestError, match="nothing would be left"):
        withdraw(dest, samples.groups, [])
    assert read_index(dest).number == 2 and withdraw(dest, [], ["unknown"]).samples == 0


def test_who_was_withdrawn_does_not_come_back_with_new_files(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest)
    group = group_of(dest, 4)
    withdraw(dest, [group], [])
    Image.fromarray(np.full((16, 16), 99, dtype=np.uint8)).save(source / "p01" / "late.png")
    add_images(source, range(36, 39))
    report = grow(source, dest, append=True)
    assert values_in(dest) == Counter(set(range(39)) - {3, 4, 5})
    assert [entry.file for entry in report.skipped] == ["p01/late.png"]
    assert read_index(dest).withdrawals[0].groups == (group_digest(group),)  # type: ignore[index]


@pytest.mark.parametrize("sources_kept", [True, False], ids=["", "set of an older version"])
def test_a_file_that_was_withdrawn_by_its_key_stays_away_and_its_patient_does_not(
    source: Path, tmp_path: Path, sources_kept: bool
) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest)
    if not sources_kept:
        shutil.rmtree(tmp_path / "set" / "sources")
    assert withdraw(dest, [], [key_of(dest, 4)]).samples == 1
    Image.fromarray(np.full((16, 16), 99, dtype=np.uint8)).save(source / "p01" / "late.png")
    grow(source, dest, append=True)
    assert values_in(dest) == Counter({*range(36), 99} - {4})


def test_a_patient_who_is_gone_by_single_files_is_not_taken_for_one_who_was_named(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest)
    alone, named = group_of(dest, 4), group_of(dest, 7)
    withdraw(dest, [], [key_of(dest, number) for number in (3, 4, 5)])
    withdraw(dest, [named], [])
    assert withdraw(dest, [alone, named], []).found == {named}


def test_what_an_interrupted_rewrite_or_append_left_does_not_outlive_the_next_rewrite(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest, folder = str(tmp_path / "set"), tmp_path / "set"
    grow(source, dest)
    withdraw(dest, [group_of(dest, 4)], [])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dira_dist.data.withdrawal.publish_next", _killed)
        rewrite(dest)
    add_images(source, range(36, 42))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dira_dist.data.ingest.appending.publish_next", _killed)
        grow(source, dest, append=True)
    withdraw(dest, [group_of(dest, 1)], [])
    rewrite(dest)
    assert tars(folder).keys() == {shard.name for shard in read_index(dest).shards}
    assert list((folder / "appends").rglob("*.json")) == []
    assert verify(dest) == []


def test_a_damaged_tar_is_not_made_sound_by_rewriting_it(source: Path, tmp_path: Path) -> None:
    dest, folder = str(tmp_path / "set"), tmp_path / "set"
    grow(source, dest)
    withdraw(dest, [group_of(dest, 4)], [])
    damaged = next(shard for shard in read_index(dest).shards if shard.withdrawn)
    content = bytearray((folder / damaged.name).read_bytes())
    content[600] ^= 1
    (folder / damaged.name).write_bytes(content)
    before = tars(folder)
    with pytest.raises(StoreError, match="nothing was written anew or deleted"):
        rewrite(dest)
    assert tars(folder).items() >= before.items() and read_index(dest).number == 2


def test_a_generation_that_was_deleted_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    grow(source, dest)
    withdraw(dest, [group_of(dest, 4)], [])
    shutil.rmtree(tmp_path / "set" / "generations")
    for number in (1, 9):
        with pytest.raises(RequestError, match=rf"no generation {number}: the newest is 2"):
            read_index(at_generation(dest, number))
    assert read_index(at_generation(dest, 2)) == read_index(dest)
    for shard_ in read_index(dest).shards[:1]:
        (tmp_path / "set" / shard_.name).unlink()
    with pytest.raises(StoreError):
        values_in(dest)


# --------------------------------------------------------------------------- the command


def removed(source: Path, dest: object, **given: Any) -> RemovalReport:
    return remove(str(dest), salt_file=str(source.parent / "salt"), **given)


def test_patients_are_called_as_the_source_calls_them_in_any_part(source: Path, tmp_path: Path) -> None:
    grow(source, tmp_path / "set", split={"train": 0.7, "val": 0.3})
    report = removed(source, tmp_path / "set", groups=["p01", "nobody", "p02"], rewrite_tars=True)
    assert sum(removal.samples for removal in report.removals) == 6 and report.unknown == (2,)
    text = "\n".join(report.lines())
    assert "1 of 3 lines are of nobody in the set: 2." in text and "nobody," not in text and "p01" not in text
    left = sum((values_in(str(tmp_path / "set" / part)) for part in ("train", "val")), Counter[int]())
    assert left == Counter(set(range(36)) - set(range(3, 9)))
    assert verify(str(tmp_path / "set" / "train")) == verify(str(tmp_path / "set" / "val")) == []
    again = removed(source, tmp_path / "set", groups=["p01"])
    assert again.unknown == () and sum(removal.samples for removal in again.removals) == 0
    assert removed(source, tmp_path / "set", keys=["p03/009.png"]).unknown == ()


def test_what_cannot_be_removed_changes_nothing(source: Path, tmp_path: Path) -> None:
    split = {"train": 0.7, "val": 0.3}
    grow(source, tmp_path / "set", split=split)
    val = set(values_in(str(tmp_path / "set" / "val")))
    everybody = [f"p{number // 3:02d}" for number in sorted(val)]
    (tmp_path / "empty").write_text("\n \n")
    for asked, message in [
        (
            {"groups": [*everybody, f"p{min(set(range(36)) - val) // 3:02d}"]},
            "val: all of its .* nothing would be left",
        ),
        ({}, "whom"),
    ]:
        with pytest.raises(RequestError, match=message):
            removed(source, tmp_path / "set", **asked)
    for file in ("empty", "missing"):
        with pytest.raises(RequestError, match=file):
            read_list(str(tmp_path / file))
    with pytest.raises(RequestError, match="no shard set"):
        removed(source, tmp_path / "src", groups=["p01"])
    with pytest.raises(RequestError, match="leave the number out"):
        removed(source, at_generation(str(tmp_path / "set"), 1), groups=["p01"])
    for part in split:
        assert read_index(str(tmp_path / "set" / part)).number == 1
