"""No name is one of those that were retired, so that who knows the field can guess what a thing is called.

Walked are the syntax trees (modules, classes, functions, arguments, variables, attributes), the keys of job files and
the names of metrics. Beside each retired word stands what it is called now.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dira_dist.config import RENAMED_KEYS, Section, flatten
from dira_dist.jobs.load import job_schema
from dira_dist.metrics import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]

# A word as it stands in names, in snake_case or CamelCase, and what it is called now.
RETIRED = {
    "board": "coordinator",
    "journal": "reporter",
    "silence": "null reporter",
    "lifeline": "heartbeat",
    "sign of life": "heartbeat",
    "laggard": "straggler",
    "wish": "stop request, requested",
    "wished": "requested",
    "desk": "search controller, search progress",
    "judge": "evaluator",
    "judging": "evaluations",
    "judgement": "evaluation",
    "judged": "evaluated",
    "told": "logged",
    "patience": "retry policy, timeout (in this field patience is early stopping's)",
    "patiently": "retried",
    "trouble": "failures",
    "foreign": "pretrained",
    "orphans": "orphaned groups",
    "discriminate restore fool": "set_trainable",
    "there back": "shuffle, unshuffle",
    "located": "resolve_paths",
    "bring": "download",
    "take up": "resume",
    "work off": "run_trials",
    "discreetly": "quiet_decoders",
    "passing bytes": "activation_bytes",
}
# Early stopping's own.
ALLOWED = {"patience_epochs"}


def words_of(name: str) -> list[str]:
    """``StopRequest``, ``stop_request`` and ``stop-request`` as ``["stop", "request"]``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]


def retired_in(name: str) -> str | None:
    """The retired word in a name, if any."""
    if name in ALLOWED:
        return None
    words = f" {' '.join(words_of(name))} "
    return next((word for word in RETIRED if f" {word} " in words), None)


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that a file gives, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.value.lineno, node.arg


def files() -> Iterator[Path]:
    for folder in ("dira_dist", "benchmarks", "docker", "k8s", "tests/support"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def sections(base: type[Section] = Section) -> Iterator[type[Section]]:
    for section in base.__subclasses__():
        yield section
        yield from sections(section)


def test_no_module_class_function_argument_or_attribute_has_a_retired_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} holds {word!r}, which is called {RETIRED[word]} now"
        for path in files()
        for line, name in [(1, path.stem), *names_in(ast.parse(path.read_text()))]
        if (word := retired_in(name))
    ]
    assert not found, "\n".join(found)


def test_no_key_of_a_job_and_no_metric_has_one() -> None:
    keys = {part for key in flatten(job_schema()) for part in key.split(".")}
    keys |= {field for section in sections() for field in section.model_fields}
    names = keys | {metric.name for metric in CATALOGUE} | {metric.prometheus for metric in CATALOGUE}
    assert {name for name in names if retired_in(name)} == set()


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_the_old_keys_stand_in_their_table_the_changelog_and_their_test_alone(old: str) -> None:
    key = old.rpartition(".")[2]
    folders = [ROOT / name for name in ("dira_dist", "benchmarks", "docker", "docs", "jobs", "k8s", "tests")]
    texts = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in {".py", ".md", ".yaml", ".json"}
    ]
    found = {path for path in (*texts, *ROOT.glob("*.md")) if re.search(rf"\b{key}\b", path.read_text())}
    kept = {ROOT / "dira_dist" / "config.py", ROOT / "CHANGELOG.md"}
    assert found - {ROOT / "tests" / "jobs" / "test_jobs.py"} == kept


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("JournalEntry", "journal"),
        ("_storage_patience_s", "patience"),
        ("HTTPBoard", "board"),
        ("SignOfLife", "sign of life"),
        ("passing_bytes", "passing bytes"),
        ("dashboard", None),
        ("keyboard_interrupt", None),
        ("patience_epochs", None),
    ],
)
def test_a_word_is_found_in_every_spelling(name: str, word: str | None) -> None:
    assert retired_in(name) == word
