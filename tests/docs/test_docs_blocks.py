"""Nothing that the pages show rots: commands are held against the programs' own options, job files and parts of such
against the kinds of job, Python against what it imports.
"""

import ast
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from page_blocks import Block, blocks_of, commands_in

from dira_dist import cli
from dira_dist.config import RequestError
from dira_dist.jobs.load import load_job

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")]
BLOCKS = [block for page in sorted(PAGES) for block in blocks_of(page)]
_PROGRAMS = "dira-dist|make|mlflow|ray|kubectl|pip|python"
_INLINE = re.compile(rf"(?<!`)`((?:{_PROGRAMS}) [^`]+)`(?!`)")
# Programs of others, which nobody here can ask.
ELSEWHERE = {"curl", "aws", "export", "base64", ".", "python3", ".venv/bin/pre-commit"}

DATA = {"train": "set", "val": "val", "test": "test", "image_size": 64, "global_batch": 8}
FINETUNE = {"kind": "finetune", "name": "a", "data": DATA, "task": {"name": "classify", "label": "finding"}}
VOLUMES = {"image_size": [64, 64, 32]}
PRETRAIN = {"kind": "pretrain", "name": "a", "data": {key: DATA[key] for key in ("train", "image_size")}}


def _of(language: str) -> list[Any]:
    return [pytest.param(each, id=f"{each.page.name}:{each.line}") for each in BLOCKS if each.language == language]


def commands() -> Iterator[Any]:
    """Of blocks, and those within a line."""
    for block in BLOCKS:
        known = block.language == "" and block.text.startswith("dira-dist ")
        for command in commands_in(block) if block.language == "console" or known else ():
            yield pytest.param(command, False, id=f"{block.page.name}:{block.line}:{command[:40]}")
    for page in sorted(PAGES):
        for command in sorted(set(_INLINE.findall(page.read_text()))):
            yield pytest.param(command, True, id=f"{page.name}:{command[:40]}")


@pytest.mark.parametrize(("command", "within_a_line"), commands())
def test_a_command_is_one(command: str, within_a_line: bool) -> None:
    for words in programs_of(command):
        wrong = mistake(words, named_only=within_a_line)
        assert wrong is None, f"{' '.join(words)}: {wrong}"


def programs_of(command: str) -> Iterator[list[str]]:
    """The words of each program of a line; what stands in brackets may be left out, and is given here."""
    plain = re.sub(r"\$\([^)]*\)|\$\w+", "VALUE", command)
    plain = re.sub(r"\[(--[^\]]*)\]", r"\1", plain).partition(" > ")[0]
    lexer = shlex.shlex(plain, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("&|;"):
            yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def mistake(words: list[str], *, named_only: bool) -> str | None:
    """What is wrong with a command, if anything.

    Args:
        words: of it.
        named_only: whether it may lack its arguments, as where a sentence names it.
    """
    program, *rest = words
    if program in CHECKS:
        return CHECKS[program](rest, named_only)
    return None if program in ELSEWHERE else f"{program} is no program that is known here"


def _of_ours(words: list[str], named_only: bool) -> str | None:
    return _parsed(typer.main.get_command(cli.app), words, named_only)


def _of_mlflow(words: list[str], named_only: bool) -> str | None:
    return _parsed(import_module("mlflow.cli").cli, words, named_only)


def _of_ray(words: list[str], named_only: bool) -> str | None:
    return _parsed(import_module("ray.scripts.scripts").cli, words, named_only)


def _parsed(command: Any, words: list[str], named_only: bool) -> str | None:
    """What the program's own parser says of its words; nothing is run."""
    context = None
    try:
        while hasattr(command, "resolve_command"):
            group = command.make_context("program", [], parent=context, resilient_parsing=True)
            name, found, rest = command.resolve_command(group, words)
            if found is None:
                return f"there is no command {words[0]}"
            words = rest
            context, command = group, found
        command.make_context(name, list(words), resilient_parsing=False)
    except Exception as error:  # click's, of which typer brings its own
        if named_only and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
            return None
        return f"{type(error).__name__}: {error}"
    return None


def _of_make(words: list[str], named_only: bool) -> str | None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return next((f"no target {word}" for word in words if word not in targets), None)


def _files_of(words: list[str], named_only: bool) -> str | None:
    """What `-f` and `-k` name is there."""
    named = [after for word, after in pairwise(words) if word in ("-f", "-k")]
    mine = [name for name in named if name.partition("/")[0] in ("k8s", "docker", "jobs") and "..." not in name]
    return next((f"there is no {name}" for name in mine if not (ROOT / name).exists()), None)


def _of_pip(words: list[str], named_only: bool) -> str | None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = {extra for word in words for found in re.findall(r"dira-dist\[(.*)\]", word) for extra in found.split(",")}
    return next((f"there is no extra {extra}" for extra in extras - known.keys()), None)


def _of_python(words: list[str], named_only: bool) -> str | None:
    """A file of ours, which knows the options."""
    if words[:2] == ["-m", "dira_dist"]:
        return _of_ours(words[2:], named_only)
    file = ROOT / words[0]
    if not file.is_file():
        return f"there is no {words[0]}"
    options = (word for word in words if word.startswith("--"))
    return next((f"{words[0]} has no {option}" for option in options if f'"{option}"' not in file.read_text()), None)


CHECKS: dict[str, Callable[[list[str], bool], str | None]] = {
    "dira-dist": _of_ours,
    "mlflow": _of_mlflow,
    "ray": _of_ray,
    "make": _of_make,
    "kubectl": _files_of,
    "docker": _files_of,
    "pip": _of_pip,
    "python": _of_python,
}


@pytest.mark.parametrize("block", _of("yaml"))
def test_a_job_file_or_a_part_of_one_is_accepted(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    values = yaml.safe_load(block.text.replace(", ...}", "}"))
    if isinstance(values.get("resources"), list):  # a kustomization
        assert set(values) <= {"resources", "images", "configMapGenerator"}
        return
    refusals = list(filter(None, (refusal(job) for job in jobs_of(values))))
    assert len(refusals) < len(jobs_of(values)), "\n".join(refusals)


def jobs_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The job that a block is, or those that it may be a part of."""
    if values.get("kind") == "compare":
        return [{**values, "base": FINETUNE | values["base"] | {"name": values["name"]}}]
    if "kind" in values:
        return [values]
    parts = [merged(start, values) for start in (PRETRAIN, FINETUNE, FINETUNE | {"data": DATA | VOLUMES})]
    return [*parts, merged({key: part for key, part in FINETUNE.items() if key != "data"}, values)]


def merged(start: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    sections = {
        key: {**start[key], **value} if isinstance(value, dict) and isinstance(start.get(key), dict) else value
        for key, value in values.items()
    }
    return {**start, **sections}


def refusal(job: dict[str, Any]) -> str | None:
    try:
        load_job(job)
    except RequestError as error:
        return str(error)
    return None


@pytest.mark.parametrize("block", _of("python"))
def test_python_compiles_and_imports_what_is_there(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                import_module(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = import_module(node.module)
            assert not [name.name for name in node.names if not hasattr(module, name.name)]


def test_the_nearest_samples_by_the_features_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    (tmp_path / "features").mkdir()
    columns = {"file": ["a", "b", "c"], "reason": ["", "", ""], "features": [[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]}
    pq.write_table(pa.table(columns), tmp_path / "features" / "features.parquet")
    (code,) = (block.text for block in blocks_of(ROOT / "docs" / "prediction.md") if block.language == "python")
    scope: dict[str, Any] = {"print": (printed := []).append}
    exec(code, scope)
    assert printed[0].to_pylist() == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("dira-dist shard SOURCE DEST --no-such-option 3", "no-such-option"),
        ("dira-dist reticulate", "reticulate"),
        ("make nothing", "no target nothing"),
        ("kubectl apply -k k8s/overlays/none", "there is no k8s/overlays/none"),
        ("pip install 'dira-dist[none]'", "no extra none"),
        ("python benchmarks/data.py --none", "has no --none"),
        ("mlflow nothing", "nothing"),
        ("true && frobnicate", "frobnicate"),
    ],
)
def test_what_is_wrong_is_found(command: str, told: str) -> None:
    found = [mistake(words, named_only=False) or "" for words in programs_of(command)]
    assert told in "".join(found)
