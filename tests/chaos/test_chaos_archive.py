"""A set that grows, and loses a patient, under a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chaos import BATCH, IMAGES, ChaosJob, driver_of

import dira_dist
from dira_dist.data.order import Order
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store
from dira_dist.data.withdrawal import rewrite, withdraw
from dira_dist.jobs.load import load_job
from dira_dist.quickstart.phantom import write_archive
from dira_dist.runs.run import read_run

pytestmark = pytest.mark.timeout(600)

STEPS, WITHDRAWN = 40, 6


def test_a_run_goes_on_with_the_generation_it_began_with(
    make_job: Callable[..., ChaosJob], chaos_shards: Path, tmp_path: Path
) -> None:
    """Killed, and resumed on a set that has grown: as if nothing had happened. Killed again, and some are withdrawn."""
    shards = shutil.copytree(chaos_shards, tmp_path / "shards")
    unbroken, job = make_job("straight", steps=STEPS), make_job("grown", steps=STEPS)
    unbroken.run()
    job.file.write_text(job.file.read_text().replace(str(chaos_shards), str(shards)))
    with driver_of(job, lambda: job.has_reached(7)):
        pass
    write_archive(tmp_path / "archive", IMAGES + 8, size_px=40)
    options = dira_dist.ShardOptions(image_size=None, processes=1, append=True)
    assert dira_dist.shard(tmp_path / "archive" / "images", shards, options).samples == IMAGES + 8
    with driver_of(job, lambda: job.has_reached(21)):
        pass
    withdraw(str(shards), [], read_samples(str(shards), read_index(str(shards))).keys[:WITHDRAWN])
    rewrite(str(shards))
    resumed_at = int(job.checkpoints.names()[-1].split("-")[1])
    job.run()
    losses, undisturbed = (each.history("train/loss/total") for each in (job, unbroken))
    assert losses[:resumed_at] == undisturbed[:resumed_at] and len(losses) == len(undisturbed) == STEPS
    state = read_run(open_store(f"{job.storage}/{job.name}"))
    assert state is not None and state.generations == {"train": 1}
    assert job.history("train/withdrawn_samples") == [(step, _withdrawn(job, step, resumed_at)) for step, _ in losses]
    assert job.run().already_done


def _withdrawn(job: ChaosJob, step: int, resumed_at: int) -> float:
    """How many samples of a step were of those that were withdrawn: the first of the set."""
    loaded = load_job(job.file).job
    order = Order([IMAGES], lanes=loaded.lanes, window=loaded.data.shuffle_window, seed=loaded.seed)
    ids = order.local_ids(range(loaded.lanes), BATCH * (step - 1), BATCH)
    return float(np.count_nonzero(ids < WITHDRAWN)) if step > resumed_at else 0.0
