"""The images and job files of all that is done to running jobs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import BATCH, IMAGES, ChaosJob

import dira_dist
from dira_dist.quickstart.phantom import write_archive

METHODS = {
    "moco_v2": "{name: moco_v2, queue_size: 20}",
    "barlow_twins": "{name: barlow_twins, projector_width: 32}",
    "simsiam": "{name: simsiam, outputs: 32, bottleneck: 8}",
}


@pytest.fixture(scope="session")
def chaos_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos-shards")
    write_archive(folder / "archive", IMAGES, size_px=40)
    dira_dist.shard(
        folder / "archive" / "images", folder / "shards", dira_dist.ShardOptions(image_size=None, processes=1)
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def make_job(chaos_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ChaosJob]:
    folder = tmp_path_factory.mktemp("chaos")

    def make(
        name: str,
        *,
        steps: int = 40,
        method: str = "moco_v2",
        workers: str = "2",
        every_steps: int = 7,
        storage: str = "",
        more: str = "",
    ) -> ChaosJob:
        job = ChaosJob(folder, name, steps, storage or str(folder / "runs"))
        job.file.write_text(f"""
name: {name}
data: {{train: {chaos_shards}, image_size: 32, global_batch: {BATCH}, loader_workers: 0}}
model: {{encoder: tu-test_resnet}}
method: {METHODS[method]}
stages: [{{objective: di, steps: 10}}, {{objective: dira, steps: {steps - 10}}}]
precision: fp32
resources: {{workers: {workers}, resize_every_s: 5}}
checkpoint: {{storage: "{job.storage}", every_steps: {every_steps}, keep: 3}}
tracking: {{uri: "sqlite:///{folder}/{name}.db", log_every_steps: 1, system_metrics_every_s: 0}}
{more}
""")
        return job

    return make
