"""Tries the installed wheel as a stranger does: from an empty folder, without a checkout beside it.

Run by the Python of an environment that holds the wheel. Ends with the first thing that is not as it should be.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("dira-dist")
# What a stranger's machine does not have.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
SHORT = (
    *("stages=[{objective: dira, epochs: 1}]", "method.queue_size=64", "probe=null"),
    *("model.encoder=tu-test_resnet", "model.decoder_channels=[16,16,8,8,8]"),
)


def main() -> None:
    """From the wheel to a job that has run."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        check_where_it_is()
        check_extras()
        check_files()
        run("phantoms", "archive", "--count", "48", "--size-px", "32")
        labels = ("--labels", "archive/labels.csv", "--label-columns", "finding", "--group-by", "patient")
        run("shard", "archive/images", "shards", *labels, "--split", "train=0.7,val=0.3", "--processes", "1")
        run("init", "shards")
        changes = [word for change in SHORT for word in ("--set", change)]
        run("check", "pretrain.yaml", *changes)
        assert "models:/shards-dira/1" in run("run", "pretrain.yaml", *changes)
    print("the wheel is sound")


def check_where_it_is() -> None:
    """The package that is tried is the wheel's."""
    found = python("import dira_dist; print(dira_dist.__file__)").strip()
    assert found.startswith(sys.prefix), f"{found} is not in {sys.prefix}"


def check_extras() -> None:
    """Whoever installs `dira-dist[local]` gets what the quickstart needs."""
    wanted = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    about = distribution("dira-dist")
    assert set(about.metadata.get_all("Provides-Extra") or ()) == wanted
    assert any("moto" in line and "local" in line for line in about.requires or ())
    python("from dira_dist.quickstart.embedded_s3 import embedded_s3\nwith embedded_s3('bucket'): pass")


def check_files() -> None:
    """Job files and schema are those of the repository."""
    names = [line.split()[0] for line in run("examples").splitlines()]
    assert sorted(names) == sorted(file.stem for file in (ROOT / "jobs").glob("*.yaml"))
    there = python("import dira_dist.jobs.draft as draft; print(draft.SCHEMA_FILE)").strip()
    assert Path(there).read_bytes() == (ROOT / "dira_dist" / "jobs" / "job.schema.json").read_bytes()
    assert Path(there).as_uri() in run("examples", "pretrain-ct")


def python(code: str) -> str:
    """What the environment's Python prints."""
    return _printed([sys.executable, "-c", code])


def run(*words: str) -> str:
    """What a command prints."""
    return _printed([str(PROGRAM), *words])


def _printed(command: list[str]) -> str:
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
    return ran.stdout


if __name__ == "__main__":
    main()
