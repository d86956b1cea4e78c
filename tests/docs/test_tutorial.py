"""The commands of the tutorial, in its order and in one folder; with fewer images and steps, and one Ray for all."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from page_blocks import blocks_of, commands_in

from dira_dist.cli import main
from dira_dist.cluster.session import embedded_ray
from dira_dist.jobs.base import ResourcesConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
# Done by whoever sets the machine up, and what would not end.
LEFT_OUT = ("python3", ".", "pip", "mlflow")
# A dozen fits or more, which tests/cluster and tests/quickstart run; its job file is checked here.
TOO_LONG = "dira-dist run compare.yaml"
ONE_CPU, TINY = ("resources.cpus_per_worker=1",), "{encoder: tu-test_resnet, decoder_channels: [16, 16, 8, 8, 8]}"
SHORTER = {
    "phantoms": ("--count", "96", "--size-px", "32"),
    "shard": ("--processes", "1"),
    "predict": ("--processes", "1"),
    "pretrain.yaml": (
        *ONE_CPU,
        f"model={TINY}",
        "stages=[{objective: dira, epochs: 1}]",
        "method.queue_size=64",
        "probe=null",
    ),
    "finetune.yaml": (*ONE_CPU, "epochs=1", "report.bootstrap=100", "data.global_batch=16"),
    "compare.yaml": (
        *(f"base.{change}" for change in (*ONE_CPU, "epochs=1", "report={bootstrap: 100, localization: null}")),
        "base.data.global_batch=16",
        "label_fractions=[1.0]",
        "learning_rates=[1.0e-3]",
        "seeds=2",
    ),
}

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all of the tutorial's commands have run."""
    place = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch, embedded_ray(ResourcesConfig(workers=1, cpus_per_worker=1)):
        patch.chdir(place)
        patch.setenv("PWD", str(place))
        patch.delenv("RAY_ADDRESS", raising=False)
        for command in tutorial():
            if command != TOO_LONG:
                follow(command, patch)
        yield place


def tutorial() -> list[str]:
    """Its commands in the order of the page."""
    return [command for block in blocks_of(PAGE) if block.language == "console" for command in commands_in(block)]


def follow(command: str, patch: pytest.MonkeyPatch) -> None:
    words = shlex.split(os.path.expandvars(command))
    if words[0] == "export":
        patch.setenv(*words[1].split("=", 1))
    elif words[0] not in LEFT_OUT:
        assert words[0] == "dira-dist", f"{command}: what is that?"
        patch.setattr(sys, "argv", shortened(words))
        try:
            main()
        except SystemExit as end:
            assert not end.code, f"{command} ended with {end.code}"


def shortened(words: list[str]) -> list[str]:
    """The same words, a phantom's count given once more, a job's keys set."""
    changes = SHORTER.get(words[2], ()) if words[1] in ("check", "run") else ()
    return [*words, *SHORTER.get(words[1], ()), *(word for change in changes for word in ("--set", change))]


def test_it_ends_with_a_model_that_was_located_and_can_be_compared(folder: Path) -> None:
    report = json.loads((folder / "runs" / "radiographs-finetune" / "report" / "report.json").read_text())
    assert {"test/auroc", "test/localization/hit_rate"} <= report["metrics"].keys()
    assert list((folder / "results" / "heatmaps").glob("*.png"))
    assert len((folder / "results" / "predictions.csv").read_text().splitlines()) == 97
    starts = yaml.safe_load((folder / "compare.yaml").read_text())["starts"]
    assert starts == {"random": "random", "pretrained": "models:/radiographs-dira@best"}
    assert list((folder / "weights").glob("*.safetensors"))


def test_the_files_that_the_page_names_are_there(folder: Path) -> None:
    text = PAGE.read_text()
    named = set(re.findall(r"`((?:runs|results|archive)/[\w./-]+|\w+\.yaml)`", text)) - {"my-job.yaml"}
    assert len(named) >= 4
    assert not [name for name in named if not (folder / name).exists()]
