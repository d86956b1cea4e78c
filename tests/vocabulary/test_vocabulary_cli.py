"""``dira-dist words`` with the model of a pretraining, from the command line to the set and the picture."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from dira_dist.cli import main
from dira_dist.config import dump_yaml
from dira_dist.data.shards import read_index
from dira_dist.jobs.load import load_job
from dira_dist.training.stages import Position
from dira_dist.training.task import About
from dira_dist.vocabulary.options import WordsOptions
from tests.vocabulary.test_vocabulary_words import write_volumes


def autoencoder(folder: Path) -> Path:
    """The model of a job with objective ``re``, as its run would leave it; nothing was trained."""
    loaded = load_job(
        {
            "name": "autoencoder",
            "data": {"train": "shards", "image_size": [16, 16, 16], "global_batch": 4},
            "model": {"name": "unet3d", "width": 2, "levels": 3},
            "stages": [{"objective": "re", "steps": 1}],
            "precision": "fp32",
        }
    )
    task = loaded.job.build_task()  # type: ignore[union-attr]
    about = About("autoencoder", job=dump_yaml(loaded.public))
    return task.package({"networks": task.build().state_dict()}, Position(stage=1), folder, about).folder


def dira_dist(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["dira-dist", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_words_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_volumes(Path("volumes"), 10)
    model = autoencoder(tmp_path / "model")
    asked = ("words", "volumes", "words", "--encoder", model, "--words", "4", "--cube", "10,8,8")
    options = ("--nearest", "3", "--sizes", "2", "--margin", "0.1,0,0", "--device", "cpu")
    assert dira_dist(monkeypatch, *asked, *options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("24 cubes in ") and "4 words, each of 3 of 8 patients" in printed
    assert "look at the words: words/words.png" in printed
    assert "method: {name: visual_words, label: word, words: 4}" in printed
    index = read_index("words")
    assert index.samples == 4 * 3 * 2 and [side.max for side in index.image.sides_px] == [10, 8, 8]
    height = Image.open("words/words.png").height
    assert height > 4 * 60, "a row for each word"
    assert dira_dist(monkeypatch, *asked, *options) == 0 and "nothing to do" in capsys.readouterr().out
    assert dira_dist(monkeypatch, *asked, *options, "--seed", "3") == 2
    assert "found otherwise (other seed)" in capsys.readouterr().err
    assert dira_dist(monkeypatch, *asked, "--nearest", "50") == 2
    assert "nearest 50: part all has 8 patients" in capsys.readouterr().err
    assert dira_dist(monkeypatch, "words", "volumes", "other", "--encoder", "nowhere") == 2
    assert not Path("other").exists()


def test_every_option_is_described() -> None:
    assert all(field.description for field in WordsOptions.model_fields.values())
