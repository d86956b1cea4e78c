"""The options of ``dira-dist shard`` are the fields of its section: one place for name, default and description."""

import inspect
from typing import Any

import pytest
from typer.testing import CliRunner

from dira_dist import cli
from dira_dist.data.ingest.options import ShardOptions


def taken(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ShardOptions:
    """The options that a command line stands for."""
    found: list[ShardOptions] = []

    def shard(source: str, dest: str, options: ShardOptions, progress: Any) -> Any:
        found.append(options)
        raise SystemExit

    monkeypatch.setattr(cli.dira_dist, "shard", shard, raising=False)
    CliRunner().invoke(cli.app, ["shard", "src", "dest", *arguments])
    return found[0]


def test_every_field_is_an_option_and_has_a_description() -> None:
    names = set(inspect.signature(cli.shard).parameters)
    assert names == {"source", "dest", "verify", *ShardOptions.model_fields}
    assert all(field.description for field in ShardOptions.model_fields.values())


def test_without_options_the_section_has_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch) == ShardOptions()


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--image-size", "0"], "image_size", None),
        (["--image-size", "64"], "image_size", 64),
        (["--label-columns", "a, b"], "label_columns", ("a", "b")),
        (["--include", "dose,bmp"], "include", ("dose", "bmp")),
        (["--split", "train=0.9,val=0.1"], "split", {"train": 0.9, "val": 0.1}),
        (["--strict"], "strict", True),
        (["--mode", "I;16"], "mode", "I;16"),
        (["--max-raster-mpx", "20"], "max_raster_mpx", 20.0),
        (["--names", "keys"], "names", "keys"),
    ],
)
def test_an_option_reaches_its_field(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], field: str, value: object
) -> None:
    options = taken(monkeypatch, *arguments)
    assert options == ShardOptions(**{field: value})


def test_a_wrong_value_is_told_with_what_is_allowed() -> None:
    result = CliRunner().invoke(cli.app, ["shard", "src", "dest", "--side", "middle"])
    assert "side: found 'middle'; allowed: 'shortest' or 'longest'" in str(result.exception)
