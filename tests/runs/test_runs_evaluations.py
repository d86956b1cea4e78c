"""The record of evaluations beside a run's checkpoints."""

from pathlib import Path

from dira_dist.data.store import LocalStore
from dira_dist.runs.evaluations import EvaluationEntry, add_evaluation, best, by_label, ranked_by, read_evaluations


def test_evaluations_are_kept_in_the_order_of_steps_one_per_label(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert read_evaluations(store) == []
    for label, step, value in (("2-dir", 20, 3.0), ("untrained", 0, 9.0), ("1-di", 10, 1.0), ("1-di", 10, 2.0)):
        add_evaluation(store, EvaluationEntry(label, step, f"step-{step}", {"val/rankme": value}))
    add_evaluation(store, EvaluationEntry("step-15", 15, "step-15"))
    found = read_evaluations(store)
    assert [each.label for each in found] == ["untrained", "1-di", "step-15", "2-dir"]
    assert by_label(found) == {
        "untrained": {"val/rankme": 9.0},
        "1-di": {"val/rankme": 2.0},
        "2-dir": {"val/rankme": 3.0},
    }


def test_the_best_is_of_a_trained_network_and_by_the_first_figure_that_there_is() -> None:
    evaluations = [
        EvaluationEntry("untrained", 0, "a", {"val/rankme": 99.0, "probe/auroc": 0.99}),
        EvaluationEntry("x", 5, "b", {"val/rankme": 50.0, "probe/auroc": 0.5}),
        EvaluationEntry("y", 9, "c", {"val/rankme": 10.0, "probe/auroc": 0.7}),
        EvaluationEntry("z", 12, "d", {}),
    ]
    found = best(evaluations)
    assert found is not None and found.checkpoint == "c"
    found = best(evaluations, ["val/rankme"])
    assert found is not None and found.checkpoint == "b"
    assert best(evaluations, ["val/nobody"]) is None
    assert best(evaluations[:1]) is None
    assert ranked_by({"val/rankme": 1.0, "val/psnr": 2.0}) == "val/rankme"
    assert ranked_by({"val/psnr": 2.0}) is None


def test_the_best_has_least_of_what_less_is_better_of() -> None:
    evaluations = [
        EvaluationEntry("untrained", 0, "a", {"val/uniformity": -9.0}),
        EvaluationEntry("x", 5, "b", {"val/uniformity": -3.0, "val/error": 0.1, "probe/auroc": 0.9}),
        EvaluationEntry("y", 9, "c", {"val/uniformity": -1.0, "val/error": 0.2, "probe/auroc": 0.5}),
        EvaluationEntry("z", 12, "d", {"val/uniformity": -3.0, "val/error": 0.3, "probe/auroc": 0.7}),
    ]
    found = best(evaluations, ["val/uniformity"])
    assert found is not None and found.checkpoint == "d", "the latest of equal ones"
    ranking = ["val/error", "probe/auroc"]
    found = best(evaluations, ranking, lambda name: "min")
    assert found is not None and found.checkpoint == "b"
    found = best(evaluations, ranking)
    assert found is not None and found.checkpoint == "d", "nobody says that less of it is better"
    assert ranked_by(evaluations[1].metrics, ranking) == "val/error"
