"""The state of a search, ``search.json``: written after each event, so that nothing is done twice."""

from dataclasses import dataclass, field, replace
from typing import Any

from dira_dist.data.store import Store
from dira_dist.formats import OF_0_1_0, FileFormat
from dira_dist.runs.folder import SEARCH, read_file
from dira_dist.search.trial import Trial


@dataclass(frozen=True)
class SearchState:
    """A search as it is kept in its folder.

    Attributes:
        job: the search's job file as it may be written anywhere (no secrets).
        train_digest: digest of the training shard set.
        run_id: parent run in MLflow; empty without tracking.
        trials: those of the search and the repetitions of the best, in the order in which they were begun.
        outcome: what the finished search reported; empty while it is not.
        evaluated_on: digests of the sets that trials are evaluated on, by the names that a job's ``shard_sets`` gives
            them.
    """

    job: dict[str, Any]
    train_digest: str
    run_id: str = ""
    trials: tuple[Trial, ...] = ()
    outcome: dict[str, Any] = field(default_factory=dict)
    evaluated_on: dict[str, str] = field(default_factory=dict)

    def write(self, store: Store) -> None:
        store.write_bytes(SEARCH, FORMAT.dump(self))

    def with_trial(self, trial: Trial) -> "SearchState":
        """With this trial in the place of the one of its name, or at the end."""
        known = {each.name: each for each in self.trials} | {trial.name: trial}
        return replace(self, trials=tuple(known.values()))


FORMAT = FileFormat(SearchState, version=2, remedies={None: OF_0_1_0})


def read_search(store: Store) -> SearchState | None:
    """The search in a store, or none where none was started.

    Raises:
        FormatError: it is damaged, or of another version.
    """
    return read_file(store, SEARCH, FORMAT)
