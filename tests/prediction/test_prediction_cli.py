"""The three commands, and what the documentation says of their results."""

import re
import sys
from pathlib import Path

import pytest

from dira_dist.cli import main
from dira_dist.prediction.options import PredictOptions
from tests.prediction.conftest import MakeModel

DOCS = Path(__file__).parents[2] / "docs" / "prediction.md"


def dira_dist(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["dira-dist", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_predict_embed_and_evaluate(
    make_model: MakeModel,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model, images = make_model("segment"), labelled / "images"
    assert dira_dist(monkeypatch, "predict", model, images, "results", "--processes", "1", "--overlays") == 0
    printed = capsys.readouterr()
    assert "72 rows of 72 files or samples in results/predictions.parquet" in printed.out
    assert "which may hold a name; --names keys" in printed.out and "000000" not in printed.out + printed.err
    assert dira_dist(monkeypatch, "predict", model, images, "results", "--processes", "1", "--overlays") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert dira_dist(monkeypatch, "predict", model, images, "results", "--flips", "both") == 2
    assert "flips ('none' there, 'both' now)" in capsys.readouterr().err
    assert dira_dist(monkeypatch, "predict", model, images, "other", "--flips", "sometimes") == 2
    assert "flips: found 'sometimes'; allowed: 'none', 'horizontal' or 'both'" in capsys.readouterr().err
    assert dira_dist(monkeypatch, "evaluate", model, labelled / "shards" / "test", "--dest", "report") == 0
    assert "| heart |" in capsys.readouterr().out and (tmp_path / "report" / "report.json").is_file()
    assert dira_dist(monkeypatch, "evaluate", model, labelled / "shards" / "train") == 2
    assert "was trained on" in capsys.readouterr().err
    assert dira_dist(monkeypatch, "embed", model, images, "features", "--processes", "1") == 0
    capsys.readouterr()
    (snippet,) = re.findall(r"```python\n(.+?)```", DOCS.read_text(), re.DOTALL)
    exec(snippet, {})
    assert "000000.png" in capsys.readouterr().out, "the first image is nearest to itself"


def test_every_option_is_described_and_every_column_is_documented(make_model: MakeModel) -> None:
    assert all(field.description for field in PredictOptions.model_fields.values())
    text = DOCS.read_text()
    for name in ("reason", "note", "number", "group", "class", "mask", "probability C", "raw C", "highest C", "ml C"):
        assert f"`{name}`" in text, name
    for option in ("names", "masks", "overlays", "heatmaps", "flips", "pool", "processes", "content", "axis"):
        assert f"`--{option}" in text, option
