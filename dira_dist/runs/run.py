"""Whose run it is: ``run.json`` beside a run's checkpoints names the job, its MLflow run and how far it came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dira_dist.config import RequestError, flatten
from dira_dist.data.store import Store
from dira_dist.formats import OF_0_1_0, FileFormat
from dira_dist.runs.folder import RUN, read_file

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class RunState:
    """The identity of a run.

    Attributes:
        job: the job as it may be written anywhere (no secrets).
        digests: of the shard sets, by the names that :meth:`PretrainJob.shard_sets` gives them.
        run_id: MLflow run, or an empty string without tracking.
        status: ``finished`` only when every stage is done and its model registered.
        outcome: what the finished run reported.
        precision: what `precision: auto` was settled on by the first workers; empty before, and of other jobs.
        generations: of the sets that the run began with and goes on with, by the same names; 1 of runs that were begun
            when sets had no generations.
    """

    job: dict[str, Any]
    digests: dict[str, str]
    run_id: str = ""
    status: Literal["started", "finished"] = "started"
    outcome: dict[str, Any] = field(default_factory=dict)
    precision: Precision | Literal[""] = ""
    generations: dict[str, int] = field(default_factory=dict)

    def write(self, store: Store) -> None:
        store.write_bytes(RUN, FORMAT.dump(self))

    def finished(self, outcome: dict[str, Any]) -> "RunState":
        return replace(self, status="finished", outcome=outcome)


def _from_2(values: dict[str, Any]) -> dict[str, Any]:
    """Sets did not grow then: each was what is called its first generation now."""
    return {**values, "generations": dict.fromkeys(values.get("digests", {}), 1)}


FORMAT = FileFormat(RunState, version=3, upgrades={2: _from_2}, remedies={None: OF_0_1_0})


def read_run(store: Store) -> RunState | None:
    """The state in a run's folder, or none where no run of the name was started.

    Raises:
        FormatError: it is damaged, or of another version.
    """
    return read_file(store, RUN, FORMAT)


def keep_precision(store: Store, found: Precision) -> Precision:
    """The precision that a run keeps: the recorded one, or ``found``, which is recorded where there is none yet.

    For the first of the workers, whose driver has recorded the run and writes no more until they have ended.
    """
    state = read_run(store)
    assert state is not None, "the driver records a run before it starts workers"
    if state.precision:
        return state.precision
    replace(state, precision=found).write(store)
    return found


def claim(store: Store, wanted: RunState, may_change: Sequence[str], stages_passed: int = 0) -> RunState:
    """The run this job goes on with: the one already there, or the wanted one as a new run.

    Nothing is written here.

    Args:
        store: of the run's folder.
        wanted: what is asked for now.
        may_change: keys of the job that may differ, see :func:`dira_dist.config.mutable_keys`.
        stages_passed: stages that the run has behind it, whose lengths nothing can change any more.

    Raises:
        RequestError: if a run of this name with another configuration or other images is there.
    """
    existing = read_run(store)
    if existing is None:
        return wanted
    differences = differing_keys(existing.job, wanted.job, may_change, stages_passed)
    differences += [
        f"the images of {name}: digest {there[:12]} there, {here[:12]} here"
        for name, there in existing.digests.items()
        if (here := wanted.digests.get(name, there)) != there
    ]
    if differences:
        raise RequestError(
            f"{store.address}: a run of this name with another configuration is there already:\n  "
            + "\n  ".join(differences)
            + "\ngive the job another name, or the same values to go on with that run"
        )
    # not every task has stages
    old_stages, new_stages = (flatten(state.job.get("stages")) for state in (existing, wanted))
    if existing.status == "finished" and old_stages != new_stages:
        raise RequestError(
            f"{store.address}: this run is finished, and a finished run's stages cannot be made longer; "
            "give the job another name, and model.init its pulled weights to start from them"
        )
    return replace(
        existing,
        job=wanted.job,
        digests={**existing.digests, **wanted.digests},
        generations={**existing.generations, **wanted.generations},
    )


def differing_keys(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    may_change: Sequence[str],
    stages_passed: int = 0,
) -> list[str]:
    """``key: X there, Y here`` for each key that differs and is none, nor below one, of those that may change."""
    old, new = flatten(dict(there)), flatten(dict(here))
    lines = []
    for key in sorted({*old, *new}):
        if old.get(key) == new.get(key) or any(f"{key}.".startswith(f"{each}.") for each in may_change):
            continue
        grew = _grew(key, old.get(key), new.get(key))
        if grew and int(key.split(".")[1]) >= stages_passed:
            continue
        passed = " (this stage has passed already)" if grew else ""
        lines.append(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here{passed}")
    return lines


def _grew(key: str, old: Any, new: Any) -> bool:
    """A stage may be made longer."""
    if not (key.startswith("stages.") and key.endswith((".epochs", ".steps"))):
        return False
    return isinstance(old, int | float) and isinstance(new, int | float) and new >= old
