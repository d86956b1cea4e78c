"""A classifier's probabilities pooled over the images of a patient, study, folder or file."""

from collections.abc import Sequence

import numpy as np

from dira_dist.data.store import Store
from dira_dist.evaluation.classification import Floats
from dira_dist.prediction.answers import ClassAnswers, Row
from dira_dist.prediction.tables import PARTS, merge, read_rows, schema_of, write_part

_PART = f"{PARTS}/pooled.parquet"


def write_pooled(store: Store, keys: Sequence[str], name: str, answers: ClassAnswers) -> None:
    """Mean and largest calibrated probability of each group, and what the thresholds say of both.

    An image that names no group is one of its own, under its own name. Memory grows with the groups.

    Args:
        store: where parts lie and the table goes.
        keys: of the parts of the table.
        name: of the pooled one.
        answers: of the classifier.
    """
    sums: dict[str, tuple[int, Floats, Floats]] = {}
    for table in read_rows(store, keys):
        for row in table.to_pylist():
            if row["reason"]:
                continue
            group = row["group"] or str(next(iter(row.values())))
            chances = np.array([row[f"probability {each}"] for each in answers.classes])
            images, total, most = sums.get(group, (0, np.zeros_like(chances), chances))
            sums[group] = (images + 1, total + chances, np.maximum(most, chances))
    rows = [_row(answers, group, *sums[group]) for group in sorted(sums)]
    own = {column: kind for column, kind in answers.columns.items() if not column.startswith("raw ")}
    schema = schema_of(
        {"group": "text", "images": "count"}
        | {f"{how} {column}": kind for how in ("mean", "largest") for column, kind in own.items()}
    )
    write_part(store, _PART, rows, schema)
    merge(store, [_PART], name, schema, {}, as_csv=True)
    store.delete(_PART)


def _row(answers: ClassAnswers, group: str, images: int, total: Floats, most: Floats) -> Row:
    row: Row = {"group": group, "images": images}
    for how, chances in (("mean", total / images), ("largest", most)):
        row |= {f"{how} {column}": value for column, value in answers.row(None, chances).items()}
    return row
