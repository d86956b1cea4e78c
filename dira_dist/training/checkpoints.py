"""The checkpoints of one run in its storage, and the thread that writes them beside the training.

    {storage}/{name}/
        step-000000500-3fa9c1/
            state.pt
            manifest.json       uploaded last, removed first: a checkpoint without it does not exist

The training waits for one thing only: the copy of its tensors off the device. Writing, hashing and uploading happen in
a thread, and trouble with the storage is borne there for as long as the training lasts.
"""

import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dira_dist.data.retry import Backoff
from dira_dist.data.store import MissingObjectError, Store
from dira_dist.runs.folder import CHECKPOINT_PREFIX, MANIFEST
from dira_dist.training.scratch import writing_into
from dira_dist.training.state import (
    CHECKPOINT_FILES,
    BrokenCheckpointError,
    Checkpoint,
    Manifest,
    read_checkpoint,
    read_manifest,
    write_checkpoint,
)

_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 30.0


NONE_WHOLE = "no checkpoint of this run is whole"


class UnsavedError(TimeoutError):
    """The last checkpoint could not be written; to train again what cannot be saved would not help."""


class Labelled(NamedTuple):
    """A checkpoint that people ask about: its name, and its figures where they were known when it was saved."""

    name: str
    figures: dict[str, float] | None


class CheckpointFolder:
    """The checkpoints below an address.

    Args:
        store: of the run's folder.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def address(self, name: str) -> str:
        return f"{self._store.address.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """The finished checkpoints, oldest first."""
        return [name for name, files in self._found().items() if MANIFEST in files]

    def manifest(self, name: str) -> Manifest | None:
        """What a checkpoint says of itself, or none where it is gone.

        Raises:
            BrokenCheckpointError: it is damaged.
        """
        try:
            return read_manifest(self._store.read_bytes(f"{name}/{MANIFEST}"), self.address(name))
        except MissingObjectError:
            return None

    def labelled(self) -> dict[str, "Labelled"]:
        """The finished checkpoints that have a label, by label; those with a damaged manifest are left out."""
        found = {}
        for name in self.names():
            try:
                manifest = self.manifest(name)
            except BrokenCheckpointError:
                continue  # whoever resumes from it says so
            if manifest is not None and manifest.label:
                found[manifest.label] = Labelled(name, manifest.figures)
        return found

    def newest_manifest(self) -> Manifest | None:
        """What the newest checkpoint whose manifest is whole says of itself, or none where nothing was saved yet."""
        for name in reversed(self.names()):
            try:
                manifest = self.manifest(name)
            except BrokenCheckpointError:
                continue  # whoever resumes from it says so
            if manifest is not None:
                return manifest
        return None

    def newest_step(self) -> int:
        """The step of the newest finished checkpoint; 0 where there is none."""
        names = self.names()
        return step_of(names[-1]) if names else 0

    def fetch(self, name: str) -> Checkpoint:
        """A checkpoint with its tensors on the CPU.

        Raises:
            BrokenCheckpointError: it is not whole.
        """
        with tempfile.TemporaryDirectory() as scratch:
            for file in CHECKPOINT_FILES:
                try:
                    (Path(scratch) / file).write_bytes(self._store.read_bytes(f"{name}/{file}"))
                except MissingObjectError as error:
                    raise BrokenCheckpointError(f"{self.address(name)}: {file} is missing") from error
            return read_checkpoint(Path(scratch), self.address(name))

    def newest_whole(self, warn: Callable[[str], None]) -> tuple[str, Checkpoint] | None:
        """The newest checkpoint that is whole, or none where nothing was saved yet.

        Newer ones that are broken are removed, so that they count for nothing from here on.

        Raises:
            BrokenCheckpointError: checkpoints were saved, and none of them is whole.
        """
        broken: dict[str, str] = {}
        for name in reversed(self.names()):
            try:
                found = name, self.fetch(name)
            except BrokenCheckpointError as error:
                broken[name] = str(error)
                continue
            for newer, reason in broken.items():
                warn(f"a broken checkpoint gives way to the one before, {name}: {reason}")
                self.remove(newer)
            return found
        if broken:
            raise BrokenCheckpointError(
                f"{NONE_WHOLE}:\n  "
                + "\n  ".join(broken.values())
                + f"\nbring one of them back from a copy; or remove them all ({self.address(CHECKPOINT_PREFIX)}*), and "
                "the same command begins anew; or give the job another name"
            )
        return None

    def upload(self, name: str, folder: Path) -> None:
        """Commit the checkpoint in a local folder."""
        for file in CHECKPOINT_FILES:  # the manifest is the last of them
            self._store.upload(f"{name}/{file}", folder / file)

    def remove(self, name: str) -> None:
        for file in reversed(CHECKPOINT_FILES):
            self._store.delete(f"{name}/{file}")

    def remove_unfinished(self) -> None:
        """Remove what a writer that was killed left behind. Only for the one writer that there is."""
        for name, files in self._found().items():
            if MANIFEST not in files:
                self.remove(name)

    def keep(self, newest: int, others: Iterable[str]) -> list[str]:
        """Remove all finished checkpoints but the newest few and the ``others``; the names of the removed.

        What an outage left half removed goes too.
        """
        self.remove_unfinished()
        spared = set(others)
        removed = [name for name in self.names()[:-newest] if name not in spared]
        for name in removed:
            self.remove(name)
        return removed

    def _found(self) -> dict[str, set[str]]:
        """Files by checkpoint, in the order of their steps."""
        found: dict[str, set[str]] = {}
        for each in self._store.list(CHECKPOINT_PREFIX):
            name, _, file = each.key.partition("/")
            found.setdefault(name, set()).add(file)
        return found


class CheckpointWriter:
    """Writes checkpoints in a thread. One that still waits when a newer one comes gives way to it.

    One with a label, a moment that is to be evaluated, gives way only to another with a label: at most two wait.

    Args:
        folder: where they go. The caller sees to it that nobody else writes there.
        keep: newest checkpoints kept.
        spared: names of others that are kept too, asked after each one that is committed.
        committed: called in the thread with name and checkpoint once it is whole in the storage.
        removed: called in the thread with the step of one that was not to be kept.
        warn: takes a line for a person.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        keep: int,
        spared: Callable[[], Iterable[str]] = tuple,
        committed: Callable[[str, Checkpoint], None] = lambda name, checkpoint: None,
        removed: Callable[[int], None] = lambda step: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._folder, self._keep, self._spared = folder, keep, spared
        self._committed, self._removed, self._warn = committed, removed, warn
        # A step done again after a crash is saved under a name of its own: nothing that is committed is written over.
        self._attempt = secrets.token_hex(3)
        self._state = threading.Condition()
        self._waiting: list[Checkpoint] = []
        self._working = self._closed = False
        self._last_failure = ""
        self._failed_at_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, checkpoint: Checkpoint) -> None:
        """Take a copy of the checkpoint's tensors and return; they may change from then on."""
        copied = replace(checkpoint, tensors=copied_to_host(checkpoint.tensors))
        with self._state:
            for each in self._waiting:
                if _gives_way(each, copied):
                    self._tell_gave_way(each)
            self._waiting = [*(each for each in self._waiting if not _gives_way(each, copied)), copied]
            self._state.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Wait until everything is committed.

        Raises:
            UnsavedError: it is not, after so many seconds.
        """
        with self._state:
            if not self._state.wait_for(lambda: not self._waiting and not self._working, timeout_s):
                raise UnsavedError(
                    f"the storage did not take the last checkpoint within {timeout_s:g} s: "
                    f"{self._last_failure or 'slow'}"
                )

    def close(self) -> None:
        """End the thread; what is not committed yet is given up."""
        with self._state:
            self._closed = True
            self._waiting.clear()
            self._state.notify_all()

    def _run(self) -> None:
        while (checkpoint := self._next()) is not None:
            try:
                self._write(checkpoint)
            except Exception as error:  # what is said and kept of it may fail in any way; the next one is tried anew
                self._last_failure = f"{type(error).__name__}: {error}"
                self._warn(f"after the checkpoint of step {checkpoint.position.step}: {self._last_failure}")
            with self._state:
                self._working = False
                self._state.notify_all()

    def _next(self) -> Checkpoint | None:
        with self._state:
            self._state.wait_for(lambda: bool(self._waiting) or self._closed)
            checkpoint = self._waiting.pop(0) if self._waiting else None
            self._working = checkpoint is not None
            return checkpoint

    def _write(self, checkpoint: Checkpoint) -> None:
        """Write, upload and tell, until it is done or given up."""
        name = f"{CHECKPOINT_PREFIX}{checkpoint.position.step:09d}-{self._attempt}"
        backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
        while True:
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    with writing_into(Path(scratch)):
                        write_checkpoint(Path(scratch), checkpoint)
                    self._folder.upload(name, Path(scratch))
                break
            except OSError as error:
                self._report_failure(checkpoint, error)
            if self._given_up(checkpoint, backoff.delay_s()):
                self._tell_gave_way(checkpoint)
                return
        self._tell_back(name)
        self._committed(name, checkpoint)
        self._retain()

    def _report_failure(self, checkpoint: Checkpoint, error: Exception) -> None:
        """Once per outage."""
        self._last_failure = str(error)
        if self._failed_at_s is None:
            self._failed_at_s = time.monotonic()
            self._warn(f"the checkpoint of step {checkpoint.position.step} is not written yet: {error}")

    def _tell_back(self, name: str) -> None:
        if self._failed_at_s is not None:
            self._warn(f"the storage is back after {time.monotonic() - self._failed_at_s:.0f} s: {name} is written")
        self._failed_at_s, self._last_failure = None, ""

    def _tell_gave_way(self, checkpoint: Checkpoint) -> None:
        self._warn(
            f"the checkpoint of step {checkpoint.position.step} was not written in time, and gave way to a newer"
        )

    def _given_up(self, checkpoint: Checkpoint, delay_s: float) -> bool:
        """Whether, after a wait, a newer checkpoint is there to be written instead, or the end has come."""
        with self._state:
            return self._state.wait_for(
                lambda: self._closed or any(_gives_way(checkpoint, newer) for newer in self._waiting), delay_s
            )

    def _retain(self) -> None:
        try:
            for name in self._folder.keep(self._keep, self._spared()):
                self._removed(step_of(name))
        except OSError as error:  # the next checkpoint tries again
            self._warn(f"old checkpoints were not removed: {error}")


def _gives_way(older: Checkpoint, newer: Checkpoint) -> bool:
    return bool(newer.label) or not older.label


def step_of(name: str) -> int:
    """The step that a checkpoint of this name was taken at."""
    return int(name.removeprefix(CHECKPOINT_PREFIX).partition("-")[0])


def copied_to_host(value: Any) -> Any:
    """A nested mapping with every tensor copied to the CPU; numbers and text as they are."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.preserve_format)
    if isinstance(value, Mapping):
        return {key: copied_to_host(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied_to_host(each) for each in value)
    return value
