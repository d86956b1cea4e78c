"""Every file and module that the documentation names is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dira_dist"
FOLDERS = {".ci", ".github", "benchmarks", "dira_dist", "docker", "docs", "jobs", "k8s", "tests"}
PLACES = ("*.md", "docs/**/*.md", "benchmarks/*.md", ".github/*.md")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))

_PATH = re.compile(r"(?<![\w./:-])[\w.*-]+(?:/[\w.*-]+)*")
_MODULE = re.compile(r"\bdira_dist(?:\.[a-z_0-9]+)*\.(?!py\b)[A-Za-z_0-9]+")


def _named_paths(text: str) -> Iterator[str]:
    """What looks like a file of this repository: a path from a folder of its top, or a Python file.

    Names that begin with ``my-`` are the reader's own, and ``jobs/...`` is the folder.
    """
    for path in (found.removesuffix("/...").rstrip(".") for found in _PATH.findall(text)):
        named = path.endswith(".py") or ("/" in path and path.partition("/")[0] in FOLDERS)
        if named and not Path(path).name.startswith("my-"):
            yield path


def _is_there(path: str) -> bool:
    """From the top or from the package. A bare name may stand in any folder of the code, as in the README's map."""
    places = [next(base.glob(path), None) for base in (ROOT, PACKAGE)]
    if "/" not in path:
        places += [next(base.rglob(path), None) for base in (PACKAGE, ROOT / "benchmarks", ROOT / "docs")]
    return any(places)


def _is_bound(name: str) -> bool:
    """A module, or a name that one binds; told from the source, so that nothing is imported."""
    module, _, attribute = name.rpartition(".")
    return _source(name) is not None or ((source := _source(module)) is not None and attribute in _names_in(source))


def _source(module: str) -> Path | None:
    base = ROOT / Path(*module.split("."))
    places = (base.with_suffix(".py"), base / "__init__.pyi", base / "__init__.py")  # a stub lists what comes lazily
    return next((each for each in places if each.exists()), None)


def _names_in(source: Path) -> set[str]:
    """Names that a module defines, assigns or imports, also under ``if TYPE_CHECKING``."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    missing = {path for path in _named_paths(text) if not _is_there(path)}
    missing |= {name for name in _MODULE.findall(text) if not _is_bound(name)}
    assert not missing, f"{page.relative_to(ROOT)} names what is not there: {', '.join(sorted(missing))}"


def test_a_missing_file_or_module_is_found() -> None:
    there = "`jobs/my-job.yaml` (`data/order.py`, `k8s/base/...`) k8s/*/*.example, dira_dist.config.Section"
    gone = "`dira_dist/gone.py`, tests/gone/, gone.py and `dira_dist.config.gone`"
    paths, modules = list(_named_paths(there + gone)), _MODULE.findall(there + gone)
    assert [path for path in paths if not _is_there(path)] == ["dira_dist/gone.py", "tests/gone", "gone.py"]
    assert [name for name in modules if not _is_bound(name)] == ["dira_dist.config.gone"]
    assert len(paths) == 6 and len(modules) == 2
