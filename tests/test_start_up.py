"""What a command or a process imports before it does anything: seconds of each start hang on it. No timings here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shard_sets import ShardWriter

from dira_dist.data.shards import Sample

SLOW = {
    "boto3", "matplotlib", "mlflow", "monai", "pandas", "ray", "scipy", "segmentation_models_pytorch",
    "sklearn", "sympy", "timm", "torch", "torch._dynamo", "torchvision",
}  # fmt: skip

TELL = "import json, sys\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))"


def slow_imports(code: str) -> set[str]:
    """Those of ``SLOW`` that a fresh interpreter has imported after this code."""
    done = subprocess.run([sys.executable, "-c", TELL.format(code=code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return SLOW & set(json.loads(done.stdout.splitlines()[-1]))


def command(*words: object, ends: int) -> str:
    """Code that runs a command line to its end, which has to have this exit code."""
    return f"""
sys.argv = {["dira-dist", *map(str, words)]!r}
from dira_dist.cli import main
try:
    main()
except SystemExit as end:
    assert (end.code or 0) == {ends}, end.code
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    with ShardWriter(str(tmp_path / "shards"), mode="L", encoding="png") as writer:
        for number in range(16):  # no image is read before a run
            writer.add(Sample(f"{number:02d}", b"image", "png", 40, 40, {}))
    file = tmp_path / "job.yaml"
    file.write_text(f"name: quick\ndata: {{train: {tmp_path}/shards, image_size: 32, global_batch: 8}}\n")
    return file


def test_the_command_line_itself_imports_nothing_slow() -> None:
    assert slow_imports("import dira_dist.cli") == set()


def test_a_job_is_refused_without_the_libraries_of_networks(job: Path) -> None:
    assert slow_imports(command("check", job, "--set", "unheard=1", ends=2)) <= {"torch"}


def test_a_job_on_a_resnet_is_checked_without_them_too(job: Path) -> None:
    assert slow_imports(command("check", job, ends=0)) <= {"torch"}


def test_processes_beside_the_workers_need_no_torch() -> None:
    assert slow_imports("import dira_dist.cluster.fit.coordinator") <= {"ray"}


def test_a_worker_imports_mlflow_and_drawing_only_where_it_records_and_draws() -> None:
    code = "import dira_dist.cluster.fit.worker, dira_dist.training.pretrain.task"
    assert not slow_imports(code) & {"matplotlib", "mlflow", "scipy", "sklearn", "timm"}
