"""Private parts of other libraries are used in files named ``*_internals.py`` alone, where each has its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dira_dist"
NOT_PRIVATE = {"_asdict", "_replace", "_fields", "_exit"}  # documented: of named tuples, and os._exit


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in NOT_PRIVATE


def _defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a file of ours gives to its own attributes, functions and classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("dira_dist"):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))


def test_private_parts_of_other_libraries_have_one_place_each() -> None:
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for name in _defined(tree)}
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path, tree in trees.items()
        if not path.stem.endswith("_internals")
        for name in _used(tree)
        if _is_private(name) and name not in own
    }
    assert not found


def test_what_is_looked_for_is_found_where_it_may_be() -> None:
    files = list(PACKAGE.rglob("*_internals.py"))
    assert files
    for path in files:
        private = {name for name in _used(ast.parse(path.read_text())) if _is_private(name)}
        assert private, f"{path.name} uses nothing private: it needs no file of its own"
