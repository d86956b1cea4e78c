"""The loop on real parts in one process: a resumed run is the unbroken one, and what is not finite ends in words."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dira_dist.data.batch import LocalBatch
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.data.order import Order, fingerprint
from dira_dist.data.stream import ShardStream
from dira_dist.jobs.load import load_job
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.quickstart.phantom import write_archive
from dira_dist.training.loop import InterruptedRunError, NonFiniteError, Training, train
from dira_dist.training.stages import Position, StageSpan
from dira_dist.training.state import Checkpoint, read_checkpoint, write_checkpoint
from dira_dist.views import Views


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    write_archive(folder / "archive", 20, size_px=40)
    shard(folder / "archive" / "images", folder / "shards", ShardOptions(image_size=None, processes=1))
    return folder / "shards"


SMALL = {
    "moco_v2": {"queue_size": 10},
    "barlow_twins": {"projector_width": 32},
    "simsiam": {"outputs": 32, "bottleneck": 8},
}


def job_on(shards: Path, method: str = "moco_v2", encoder: str = "resnet18", **more: Any) -> PretrainJob:
    return load_job(
        {
            "name": "loop",
            "data": {"train": str(shards), "image_size": 32, "global_batch": 4, "loader_workers": 0},
            "model": {"encoder": encoder},
            "method": {"name": method, **SMALL[method]},
            "stages": [
                {"objective": "di", "steps": 2},
                {"objective": "dir", "steps": 3},
                {"objective": "dira", "steps": 3},
            ],
            **more,
        }
    ).job


@dataclass
class Notebook:
    """Tracker, checkpointer and interruption at once: writes everything down."""

    every_steps: int = 1000
    figures: dict[int, dict[str, float]] = field(default_factory=dict)
    checkpoints: list[tuple[Position, dict[str, Any]]] = field(default_factory=list)
    labels: list[tuple[str, int]] = field(default_factory=list)
    interrupt_at_pause: int = 1000
    pauses: int = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        assert step not in self.figures
        self.figures[step] = dict(metrics)

    def requested(self) -> bool:
        self.pauses += 1
        return self.pauses >= self.interrupt_at_pause

    def due(self, position: Position) -> bool:
        return position.step % self.every_steps == 0

    def save(self, position: Position, tensors: Mapping[str, Any], label: str = "") -> None:
        if label:
            self.labels.append((label, position.step))
        self.checkpoints.append((position, copy.deepcopy(dict(tensors))))


def run(
    job: PretrainJob,
    notebook: Notebook,
    resumed: Checkpoint | None = None,
    *,
    spoil: bool = False,
    log_every_steps: int = 1,
) -> dict[str, Any]:
    """Train to the end; the networks' final state."""
    task = job.build_task()
    networks, device = task.build(), torch.device("cpu")

    def open_stream(span: StageSpan, position: Position) -> ShardStream:
        batch = span.config.global_batch
        return ShardStream.from_config(
            job.data, seed=job.seed, start_sample=position.samples, global_batch=batch, lanes=job.lanes
        )

    def views_of(batch: LocalBatch, span: StageSpan) -> Views:
        views = task.inputs(batch, span)
        if spoil:
            views.view_1[0, 0, 0, 0] = torch.nan
        return views

    training = Training(
        plan=job.plan(20),
        device=device,
        open_stream=open_stream,
        make_inputs=views_of,
        make_step=lambda span: task.step(networks, span, device),
        tracker=notebook,
        checkpointer=notebook,
        interruption=notebook,
        seed=0,
        log_every_steps=log_every_steps,
        max_nonfinite_steps=job.guards.max_nonfinite_steps,
    )
    position, tensors = (resumed.position, resumed.tensors) if resumed else (Position(), None)
    end = train(training, position, tensors)
    assert end == Position(stage=3, step_in_stage=0, step=8, samples=32)
    return {name: value.clone() for name, value in networks.state_dict().items() if isinstance(value, torch.Tensor)}


LOSSES = ("train/loss/discriminative", "train/loss/restorative", "train/loss/total", "train/grad_norm")


# efficientnet has dropout and drops whole paths at random
@pytest.mark.parametrize(
    ("method", "encoder"),
    [("moco_v2", "resnet18"), ("barlow_twins", "resnet18"), ("simsiam", "resnet18"), ("moco_v2", "efficientnet-b0")],
)
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(shards: Path, tmp_path: Path, method: str, encoder: str) -> None:
    _assert_resumed_bit_for_bit(job_on(shards, method, encoder), tmp_path)


def test_a_run_in_micro_batches_resumes_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    _assert_resumed_bit_for_bit(job_on(shards, encoder="efficientnet-b0", execution={"micro_batch": 3}), tmp_path)


def _assert_resumed_bit_for_bit(job: PretrainJob, tmp_path: Path) -> None:
    unbroken = Notebook(every_steps=1)
    final = run(job, unbroken)
    # in the middle of a stage, and where one ends
    for position, tensors in (unbroken.checkpoints[4], next(c for c in unbroken.checkpoints if c[0].stage == 2)):
        folder = tmp_path / f"{position.step}-{position.stage}"
        write_checkpoint(folder, Checkpoint(position, {}, tensors=tensors))
        resumed = Notebook()
        again = run(job, resumed, read_checkpoint(folder))
        assert min(resumed.figures) == position.step + 1
        for step, figures in resumed.figures.items():
            for name in LOSSES:
                assert figures.get(name) == unbroken.figures[step].get(name), (step, name)
        assert [name for name in final if not torch.equal(final[name], again[name])] == []


def test_an_optimiser_may_start_anew_with_a_stage_and_goes_on_within_it(shards: Path) -> None:
    kept, notebook = run(job_on(shards), Notebook()), Notebook(every_steps=1)
    stages = [
        {"objective": "di", "steps": 2},
        {"objective": "dir", "steps": 3, "keep_optimizer": False},
        {"objective": "dira", "steps": 3},
    ]
    job = job_on(shards, stages=stages)
    anew = run(job, notebook)
    assert any(not torch.equal(anew[name], kept[name]) for name in kept)
    position, tensors = next(each for each in notebook.checkpoints if each[0].stage == 1 and each[0].step_in_stage == 2)
    again = run(job, Notebook(), Checkpoint(position, {}, tensors=tensors))
    assert [name for name in anew if not torch.equal(anew[name], again[name])] == []


def test_stages_evaluations_and_checkpoints_in_their_order(shards: Path) -> None:
    notebook = Notebook(every_steps=4)
    run(job_on(shards), notebook)
    assert notebook.labels == [("untrained", 0), ("1-di", 2), ("2-dir", 5), ("3-dira", 8)]
    saved = [(position.stage, position.step_in_stage, position.step) for position, _ in notebook.checkpoints]
    assert saved == [(0, 0, 0), (1, 0, 2), (1, 2, 4), (2, 0, 5), (3, 0, 8)]
    assert sorted(notebook.figures) == list(range(1, 9))
    assert "train/loss/restorative" not in notebook.figures[2]
    assert "train/loss/adversarial" not in notebook.figures[5]
    assert {"train/loss/adversarial", "train/loss/discriminator"} <= set(notebook.figures[8])


def test_an_interrupted_run_has_saved_its_last_step_and_loses_none(shards: Path, tmp_path: Path) -> None:
    job, unbroken, interrupted = job_on(shards), Notebook(), Notebook(interrupt_at_pause=3)
    final = run(job, unbroken)
    with pytest.raises(InterruptedRunError) as caught:
        run(job, interrupted)
    position, tensors = interrupted.checkpoints[-1]
    assert position == caught.value.position
    assert (position.step, position.stage, position.step_in_stage) == (4, 1, 2)
    again = run(job, Notebook(), Checkpoint(position, {}, tensors=tensors))
    assert [name for name in final if not torch.equal(final[name], again[name])] == []


def test_no_step_is_left_out_of_the_reports_of_an_interrupted_run(shards: Path) -> None:
    job, unbroken, broken = job_on(shards), Notebook(), Notebook(interrupt_at_pause=3)
    run(job, unbroken)
    with pytest.raises(InterruptedRunError):
        run(job, broken, log_every_steps=10)
    assert sorted(broken.figures) == [2, 4], "the end of a stage, and where it stopped"
    position, tensors = broken.checkpoints[-1]
    broken.interrupt_at_pause = 1000
    run(job, broken, Checkpoint(position, {}, tensors=tensors), log_every_steps=10)
    assert sorted(broken.figures) == [2, 4, 5, 8]
    seen = [sum(each.figures[step]["train/sample_fingerprint"] for step in each.figures) for each in (unbroken, broken)]
    assert seen[0] == seen[1]


def test_figures_tell_which_samples_were_seen(shards: Path) -> None:
    notebook = Notebook()
    run(job_on(shards), notebook)
    job = job_on(shards)
    order = Order([20], lanes=job.lanes, window=job.data.shuffle_window, seed=job.seed)
    for step, figures in notebook.figures.items():
        first = 4 * (step - 1)
        ids = order.local_ids(range(job.lanes), first, 4)
        epochs = np.full(4, first // 20, dtype=np.int64)
        assert figures["train/sample_fingerprint"] == fingerprint(ids, epochs), step
    assert fingerprint(ids, epochs) == fingerprint(ids[::-1], epochs) != fingerprint(ids, epochs + 1)


def test_steps_that_are_not_finite_are_skipped_and_in_a_row_end_the_job(shards: Path) -> None:
    notebook = Notebook()
    with pytest.raises(NonFiniteError, match="2 steps in a row") as caught:
        run(job_on(shards, guards={"max_nonfinite_steps": 2}), notebook, spoil=True)
    assert "step 1: " in str(caught.value)
    assert "optimizer.lr" in str(caught.value)
    assert notebook.figures[1]["train/skipped_steps"] == 1
    assert "train/loss/total" not in notebook.figures[1]
