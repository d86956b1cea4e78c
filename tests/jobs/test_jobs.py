"""The job file as a whole: what stages inherit, which combinations are refused, what may be written down."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dira_dist.config import RENAMED_KEYS, RequestError, flatten, mutable_keys
from dira_dist.jobs.draft import SCHEMA_FILE
from dira_dist.jobs.finetune import FinetuneJob
from dira_dist.jobs.load import dump_job, job_schema, load_job
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.training.optimizer import OptimizerConfig

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))
SHORTEST: dict[str, Any] = {"name": "a", "data": {"train": "shards"}}


def refusal(values: dict[str, Any], overrides: list[str] | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        load_job(values, overrides or [])
    return str(caught.value)


def test_the_shortest_file_is_a_whole_job() -> None:
    job = load_job(SHORTEST).job
    assert [stage.objective for stage in job.stages] == ["di", "dir", "dira"]
    assert job.method.name == "moco_v2"
    assert job.loss_weights.model_dump() == {"discriminative": 1, "restorative": 10, "adversarial": 0.001}


def test_stages_inherit_and_override() -> None:
    job = load_job(
        {
            "name": "a",
            "data": {"train": "x", "global_batch": 64},
            "optimizer": {"lr": 0.5, "momentum": 0.8},
            "loss_weights": {"restorative": 3},
            "stages": [
                {"objective": "di", "epochs": 1},
                {"objective": "dira", "steps": 2, "global_batch": 16, "optimizer": {"lr": 0.1}},
            ],
        }
    ).job
    first, second = job.stages
    assert (first.global_batch, first.optimizer.lr, first.loss_weights.restorative) == (64, 0.5, 3)
    assert (second.global_batch, second.optimizer.lr, second.optimizer.momentum) == (16, 0.1, 0.8)
    assert job.lanes == 16, "lanes divide every batch"


def test_a_method_brings_its_own_optimiser_unless_one_is_named() -> None:
    barlow = ["method={name: barlow_twins}"]
    own = load_job(SHORTEST, barlow).job
    published = {"lr": 0.2, "lr_batch": 256, "weight_decay": 1e-6, "warmup_epochs": 10}
    assert own.optimizer == OptimizerConfig(name="lars", bias_lr_factor=0.0048 / 0.2 / 32, **published)
    assert [stage.optimizer for stage in own.stages] == [own.optimizer] * 3
    slower = load_job(SHORTEST, [*barlow, "optimizer.lr=0.1"]).job
    assert slower.optimizer == own.optimizer.model_copy(update={"lr": 0.1})
    assert load_job(SHORTEST, [*barlow, "optimizer.name=sgd"]).job.optimizer == OptimizerConfig()
    assert load_job(SHORTEST, [*barlow, "optimizer.name=lars"]).job.optimizer == own.optimizer
    simsiam = load_job(SHORTEST, ["method={name: simsiam}"]).job.optimizer
    assert simsiam == OptimizerConfig(name="sgd", lr=0.05, lr_batch=256)


def test_a_stage_with_another_optimiser_takes_over_nothing_of_the_jobs() -> None:
    def stage(optimizer: dict[str, Any], *overrides: str) -> OptimizerConfig:
        values = {**SHORTEST, "stages": [{"objective": "di", "epochs": 1, "optimizer": optimizer}]}
        return load_job(values, overrides).job.stages[0].optimizer

    barlow, rate = "method={name: barlow_twins}", "optimizer.lr=0.07"
    assert stage({"name": "adamw"}, rate) == OptimizerConfig(name="adamw")
    assert stage({"name": "sgd"}, rate).lr == stage({}, rate).lr == 0.07, "the same, named or not"
    assert stage({"name": "sgd"}, barlow) == OptimizerConfig()
    assert stage({}, barlow, "optimizer={name: sgd, lr: 0.07}") == OptimizerConfig(lr=0.07)
    published = load_job(SHORTEST, [barlow]).job.optimizer
    assert stage({"name": "lars"}, barlow, "optimizer={name: sgd, lr: 0.07}") == published, "the method's own is known"
    assert stage({"name": "lars"}, rate) == OptimizerConfig(name="lars")


def test_each_optimiser_has_a_rate_of_its_own() -> None:
    sgd, adamw, lars = (OptimizerConfig(name=name) for name in ("sgd", "adamw", "lars"))
    assert (sgd.lr, sgd.lr_batch) == (0.03, None), "the published run's, with batches of 256 and of 16"
    assert (adamw.lr, adamw.lr_batch, lars.lr, lars.lr_batch) == (5e-4, 256, 0.2, 256)
    assert OptimizerConfig(name="lars", lr=0.1, lr_batch=None).lr_batch is None


def test_a_rate_is_scaled_from_its_batch_to_the_stages() -> None:
    job = load_job(SHORTEST, ["method={name: barlow_twins}", "data.global_batch=1024"]).job
    assert [stage.optimizer.for_batch(stage.global_batch).lr for stage in job.stages] == [0.8] * 3
    stages = [{"objective": "dir", "epochs": 1}, {"objective": "dira", "epochs": 1, "global_batch": 16}]
    moco = load_job({**SHORTEST, "stages": stages}).job
    rates = [stage.optimizer.for_batch(stage.global_batch).lr for stage in moco.stages]
    assert rates == [0.03, 0.03], "as published"


def test_a_recorded_job_is_the_same_job_again() -> None:
    loaded = load_job(SHORTEST, ["seed=3", "method={name: simsiam}"])
    assert load_job(yaml.safe_load(dump_job(loaded.public))) == loaded


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.global_bach=2"], ["data.global_bach", "did you mean 'global_batch'"]),
        (["data.global_batch=many"], ["data.global_batch", "found 'many'", "integer"]),
        (["data.image_size=96", "model.encoder=tu-swin_tiny_patch4_window7_224"], ["data.image_size is 96", "224 px"]),
        (["data.global_batch=30", "resources.workers=4"], ["resources.workers is 4", "workers: [1, 2, 3, 5"]),
        (["resources.workers=[4, 2]"], ["[4, 2]", "min at most max"]),
        (["data.lanes=7"], ["data.lanes is 7", "global batch 256"]),
        (["model.encoder=resnet5"], ["resnet5", "resnet50"]),
        (["loss_weights.adversarial=-1"], ["loss_weights.adversarial", "greater than or equal to 0"]),
        (["method={name: byol}"], ["method", "'moco_v2'", "'barlow_twins'", "'simsiam'"]),
        (["method={name: [a]}"], ["method", "'moco_v2'"]),
        (["method={name: simsiam, queue_size: 3}"], ["method.queue_size: this key goes with method.name: moco_v2"]),
        (["stages=[]"], ["stages"]),
        (["stages=[{objective: di}]"], ["stages.0", "exactly one of epochs and steps"]),
        (["tracking.uri=./mlruns"], ["tracking.uri", "sqlite:"]),
        (["kind=train"], ["kind", "pretrain"]),
        (["name=a/b"], ["name"]),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_remedy(overrides: list[str], words: list[str]) -> None:
    message = refusal(SHORTEST, overrides)
    assert not [word for word in words if word not in message], message


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_jobs_of_the_project_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    loaded = load_job(path)
    assert isinstance(loaded.job, FinetuneJob if "finetune" in path.stem or "compare" in path.stem else PretrainJob)
    jsonschema.validate(yaml.safe_load(path.read_text()), job_schema())
    assert path.stat().st_mode & 0o111, "job files are executable"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_editors_find_the_schema_by_the_second_line(path: Path) -> None:
    line = path.read_text().splitlines()[1]
    place = line.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / place).resolve() == SCHEMA_FILE


def test_the_schema_of_editors_is_the_jobs() -> None:
    # In a process of its own: other tests define kinds, tasks and methods, which the schema of theirs holds.
    command = [sys.executable, "-m", "dira_dist", "schema"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    same = json.loads(SCHEMA_FILE.read_text()) == json.loads(written)
    assert same, "write it anew: dira-dist schema > dira_dist/jobs/job.schema.json"


def test_the_schema_refuses_what_the_job_refuses() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SHORTEST, "sead": 1}, job_schema())
    jsonschema.validate(SHORTEST, job_schema())


@pytest.mark.parametrize("name", ["compare.yaml", "tune-loss-weights.yaml"])
def test_the_schema_lets_a_base_be_named_by_what_holds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    job = yaml.safe_load(next(path for path in JOBS if path.name == name).read_text())
    job["base"].pop("name", None)
    load_job(job)
    jsonschema.validate(job, job_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job["base"], job_schema())


def test_reading_a_job_needs_neither_ray_nor_mlflow() -> None:
    program = (
        "import sys; from dira_dist.jobs.load import load_job; load_job({'name': 'a', 'data': {'train': 'x'}});"
        "sys.exit(str(sorted({'ray', 'mlflow', 'boto3'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


# What may change between two starts of a run, by dotted key: where things are and who computes.
CHANGES_IN_A_RUN = (
    "checkpoint",
    "data.bad_sample_budget",
    "data.cache",
    "data.loader_workers",
    "data.sample_budget_px",
    "data.storage_timeout_s",
    "data.train",
    "data.val",
    "evaluation",
    "execution.compile",
    "guards",
    "model.gradient_checkpointing",
    "probe.train",
    "probe.val",
    "resources",
    "tracking",
)


def _leaves_below(keys: Iterable[str]) -> set[str]:
    values = {**SHORTEST, "probe": {"train": "a", "val": "b", "label": "c"}}
    leaves = flatten(load_job({**values, "data": {**SHORTEST["data"], "cache": {"dir": "x", "max_bytes": 1}}}).public)
    return {leaf for leaf in leaves if any(f"{leaf}.".startswith(f"{key}.") for key in keys)}


def test_what_may_change_between_two_starts_of_a_run() -> None:
    assert _leaves_below(mutable_keys(PretrainJob, "run")) == _leaves_below(CHANGES_IN_A_RUN)


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({"model": {"encoder": "tu-convnext_atto"}, "stages": [{"objective": "di", "steps": 1}]}, True),
        ({"model": {"encoder": "tu-convnext_atto"}, "stages": [{"objective": "re", "steps": 1}]}, False),
        ({"model": {"encoder": "resnet18"}, "stages": [{"objective": "di", "steps": 1}]}, False),
    ],
    ids=["layer norms", "batch norms of the decoder", "batch norms of the encoder"],
)
@pytest.mark.parametrize("method", ["moco_v2", "simsiam"])
def test_micro_batches_may_change_in_a_run_where_samples_pass_alone(
    settings: dict[str, Any], alone: bool, method: str
) -> None:
    job = load_job({**SHORTEST, "method": {"name": method}, **settings}).job
    assert job.keys_of_rounding() == (("execution.micro_batch",) if alone else ())


def test_a_search_goes_on_with_the_same_steps_of_evaluation() -> None:
    allowed = _leaves_below(CHANGES_IN_A_RUN) - {"evaluation.every_steps"}
    assert _leaves_below(mutable_keys(PretrainJob, "search")) == allowed


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_key_of_old_is_refused_with_its_new_name_and_line(old: str, new: str, tmp_path: Path) -> None:
    section, key = old.split(".")
    file = tmp_path / "old.yaml"
    file.write_text(f"name: a\n{section}:\n  {key}: 60.0\n")
    with pytest.raises(RequestError) as caught:
        load_job(file)
    told = f"{file}:3: {old}: this key is called {new} now, and means the same; rename it"
    assert told in str(caught.value).splitlines()


def test_a_renamed_key_of_a_search_is_named_below_its_base() -> None:
    search = {"space": {"optimizer.lr": {"low": 0.1, "high": 1.0}}}
    base = {"data": {"train": "x"}, "checkpoint": {"patience_s": 9.0}}
    told = refusal({"kind": "tune", "name": "s", "search": search, "base": base})
    assert "base.checkpoint.patience_s: this key is called base.checkpoint.storage_timeout_s now" in told


def test_the_changelog_names_each_renamed_key() -> None:
    changes = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    assert all(f"| `{old}` | `{new}` |" in changes for old, new in RENAMED_KEYS.items())
