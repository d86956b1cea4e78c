"""What lies in the folder of a run or a search, ``STORAGE/NAME/``: the names of its files.

run.json             the job, its MLflow run, and whether it is finished     (a run)
evaluations.json     the figures of its evaluated checkpoints
report/              what the chosen networks are worth, and how they answer (of a task that chooses)
step-000000500-3fa9c1/
    state.pt         networks and optimisers
    manifest.json    written last: a checkpoint without it does not exist
search.json          the job, its parent run in MLflow, and its trials       (a search, a comparison or folds)
best.yaml            the winner's job file
search.md            the table of trials
comparison.md        table and sentences, comparison.json the same as data   (a comparison)
learning-curves.png  every start's figure by the amount of labels
step-000000500-ensemble/, evaluations.json, report/: of the networks of all folds together     (folds)
driver.json          which process drives the run or the search; gone when it ends
outbox/              what its MLflow run has not taken yet; gone when it has
"""

from typing import TypeVar

from dira_dist.data.store import MissingObjectError, Store
from dira_dist.formats import FileFormat

FileT = TypeVar("FileT")

RUN, EVALUATIONS = "run.json", "evaluations.json"
CHECKPOINT_PREFIX, STATE, MANIFEST = "step-", "state.pt", "manifest.json"
REPORT = "report"
SEARCH, WINNER, TABLE = "search.json", "best.yaml", "search.md"
COMPARISON, COMPARISON_DATA, CURVES = "comparison.md", "comparison.json", "learning-curves.png"
DRIVER = "driver.json"
OUTBOX = "outbox"


def read_file(store: Store, name: str, form: FileFormat[FileT]) -> FileT | None:
    """A file of the folder in a store, or none where it is not there.

    Raises:
        FormatError: it is damaged, or of another version.
    """
    try:
        content = store.read_bytes(name)
    except MissingObjectError:
        return None
    return form.load(content, store.join(name))
