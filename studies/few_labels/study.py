"""Few labels, with and without a DiRA pretraining on the same archive: findings of radiographs, and lung masks.

    dira-dist shard KERMANY/images shards/kermany --image-size 96 --labels KERMANY/labels.csv \\
        --split train=0.7,val=0.1,test=0.2 --group-by patient
    dira-dist shard LUNGS/images shards/lungs --image-size 128 --masks LUNGS/masks \\
        --split train=0.66666,val=0.13334,test=0.2
    python studies/few_labels/study.py [--start a run's folder, checkpoint or models:/NAME/VERSION]

Each cell is one fine-tuning; what is finished already is not done again. The table is printed at the end, and kept in
`runs/few-labels/table.md`. Every start has the same rate, epochs and augmentation; the labels drawn and the seed differ
from draw to draw, and are the same for all starts of a draw. What counts was fixed before any run: mean AUROC over the
three classes, and Dice, on the test set.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dira_dist import load_job, run

HERE, STORAGE = Path(__file__).parent, Path("runs/few-labels")
PRETRAINED = STORAGE / "few-labels-pretrain"


@dataclass(frozen=True)
class Task:
    """A task and its amounts of labels.

    Attributes:
        file: the job file.
        figure: that counts.
        amounts: share of the training set's labels, epochs, and epochs from one validation to the next; a similar
            number of steps for all but the whole.
        draws: of the labels, for each share below 1.
    """

    file: str
    figure: str
    amounts: tuple[tuple[float, int, int], ...]
    draws: int


TASKS = {
    "findings": Task("findings.yaml", "test/auroc", ((0.01, 40, 8), (0.1, 10, 2), (1.0, 3, 1)), draws=3),
    "lungs": Task("lungs.yaml", "test/dice", ((0.143, 80, 16), (0.43, 27, 5), (1.0, 12, 3)), draws=3),
}


def cells(task: str, starts: dict[str, str]) -> Iterator[tuple[str, str, float, int, list[str]]]:
    """Name, start, share, draw and overrides of each fine-tuning."""
    settings = TASKS[task]
    for share, epochs, every in settings.amounts:
        for draw in range(settings.draws):
            for start, address in starts.items():
                name = f"{task}-{start}-{share:g}-{draw}"
                changes = {
                    "name": name,
                    "seed": draw,
                    "start.from": address,
                    "data.label_fraction": share,
                    "data.fraction_seed": draw,
                    "epochs": epochs,
                    "early_stopping.every_epochs": every,
                }
                yield name, start, share, draw, [f"{key}={value}" for key, value in changes.items()]


def measured(name: str) -> dict[str, Any]:
    """The figures of a finished fine-tuning."""
    metrics: dict[str, Any] = json.loads((STORAGE / name / "report" / "report.json").read_text())["metrics"]
    return metrics


def table(task: str, starts: dict[str, str]) -> Iterator[str]:
    """Mean and range over the draws for each start, and how the first start's figures are beaten, draw by draw."""
    settings, (base, *others) = TASKS[task], list(starts)
    yield f"\n## {task}: {settings.figure}, mean (lowest to highest) over {settings.draws} draws\n"
    columns = [*starts, *(f"{other} - {base}" for other in others)]
    yield "| labels | " + " | ".join(columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for share, _, _ in settings.amounts:
        of = {
            start: [measured(f"{task}-{start}-{share:g}-{draw}")[settings.figure] for draw in range(settings.draws)]
            for start in starts
        }
        words = [_words(of[start]) for start in starts]
        words += [_words([a - b for a, b in zip(of[other], of[base], strict=True)], "+") for other in others]
        yield f"| {share:.1%} | " + " | ".join(words) + " |"


def _words(values: list[float], sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.3f} ({min(values):{sign}.3f} to {max(values):{sign}.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", help="what to start from in place of this study's own pretraining")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    asked = parser.parse_args()
    if asked.start is None:
        run(load_job(HERE / "pretrain.yaml"))
    starts = {"random": "random", "dira": asked.start or str(PRETRAINED)}
    for task in asked.tasks:
        for *_, overrides in cells(task, starts):
            run(load_job(HERE / TASKS[task].file, overrides))
    lines = [line for task in asked.tasks for line in table(task, starts)]
    (STORAGE / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
