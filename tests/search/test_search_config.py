"""What a search section may say, and what is refused with its reason."""

from pathlib import Path
from typing import Any

import pytest

from dira_dist.config import RequestError
from dira_dist.jobs.load import LoadedSearch, load_job

BASE: dict[str, Any] = {"data": {"train": "a", "val": "b"}, "loss_weights": {"restorative": 5}}
SPACE: dict[str, Any] = {"loss_weights.restorative": {"low": 1, "high": 100}}


def job(search: dict[str, Any] | None = None, base: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"kind": "tune", "name": "s", "search": {"space": SPACE} | (search or {}), "base": BASE | (base or {})}


def loaded(search: dict[str, Any] | None = None, base: dict[str, Any] | None = None) -> LoadedSearch:
    found = load_job(job(search, base))
    assert isinstance(found, LoadedSearch)
    return found


def refusal(search: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as caught:
        load_job(job(search))
    return str(caught.value)


def test_a_search_is_its_base_under_the_name_of_the_search() -> None:
    found = loaded()
    assert (found.job.name, found.winner_name) == ("s", "s-best")
    assert loaded(base={"name": "mine"}).winner_name == "mine"
    assert found.public["base"]["stages"][1]["loss_weights"]["restorative"] == 5, "the record is complete"
    assert load_job(found.public).public == found.public


def test_a_trial_is_the_base_with_other_values_that_reach_its_stages() -> None:
    trial = loaded().trial("s-007", {"loss_weights.restorative": 1e-05, "optimizer.lr": 0.5, "seed": 3})
    assert trial.job.name == "s-007"
    assert [stage.loss_weights.restorative for stage in trial.job.stages] == [1e-05] * 3
    assert [stage.optimizer.lr for stage in trial.job.stages] == [0.5] * 3
    assert trial.job.seed == 3
    assert loaded().job.stages[0].loss_weights.restorative == 5, "the base is as it was"


def test_mistakes_in_the_base_are_told_with_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        "kind: tune\nname: s\nsearch: {space: {loss_weights.restorative: {low: 1, high: 2}}}\n"
        "base:\n  data: {train: a}\n  modle: {}\n"
    )
    with pytest.raises(RequestError, match=r"t.yaml:6: base.modle: unknown key; did you mean 'model'"):
        load_job(file)
    with pytest.raises(RequestError, match=r"base.optimizer.lr: found 'fast'"):
        load_job(job(base={"optimizer": {"lr": "fast"}}))
    with pytest.raises(RequestError, match="base: this key is missing"):
        load_job({"kind": "tune", "name": "s", "search": {"space": SPACE}})


def test_a_secret_is_recorded_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKING", "https://user:secret@host")
    found = loaded(base={"tracking": {"uri": "${env:TRACKING}"}})
    assert found.public["base"]["tracking"]["uri"] == "${env:TRACKING}"
    assert "secret" not in str(found.trial("t", {}).public)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"space": {}}, ["search.space"]),
        ({"space": {"loss_weights.restorative": {"low": 10, "high": 1}}}, ["low 10 and high 1", "swap them"]),
        ({"space": {"loss_weights.restorative": {"low": 1, "high": 1}}}, ["a single value is no search"]),
        ({"space": {"loss_weights.restorative": {"low": 0, "high": 1}}}, ["log scale", "scale: linear"]),
        ({"space": {"loss_weights.restorative": {"low": 1}}}, ["either low and high, or choices"]),
        ({"space": {"method.name": {"choices": ["simsiam", "simsiam"]}}}, ["two different values"]),
        ({"space": {"seed": {"low": 1, "high": 2, "log": True}}}, ["unknown key", "scale"]),
        ({"metric": "train/loss/total"}, ["train/loss/total", "the weights rescale the total", "val/rankme"]),
        ({"metric": "train/weighted/restorative"}, ["smallest would win"]),
        ({"metric": "total"}, ["smallest would win"]),
        ({"metric": ["val/rankme", "val/rankme"]}, ["several different ones"]),
        ({"metric": ["val/rankme", "val/psnr"], "mode": "max"}, ["1 modes for 2 metrics"]),
        ({"metric": ["val/rankme", "val/psnr"], "scheduler": "asha"}, ["scheduler asha with several metrics"]),
        ({"trials": 1}, ["search.trials"]),
        ({"reduction_factor": 1}, ["search.reduction_factor"]),
        ({"max_concurrent": 0}, ["search.max_concurrent"]),
        ({"sampler": "grid"}, ["'optuna'", "'random'"]),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_remedy(search: dict[str, Any], words: list[str]) -> None:
    message = refusal(search)
    assert not [word for word in words if word not in message], message
