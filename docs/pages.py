"""Lays out the documentation site under ``build/docs``: project files and guides as they are, a page for each module.

The pages of modules follow the package's tree, in the order of the floors in ``pyproject.toml``, so that no module is
forgotten and no page outlives its module. Files keep their places relative to each other: a link that works in the
repository works in the site.
"""

import ast
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

from docstrings import to_markdown

import dira_dist

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build" / "docs"
BESIDE = ("LICENSE", "NOTICE", "docs/site.css")
# In reading order; others follow by name.
GUIDES = [
    "tutorial",
    "sharding",
    "archive",
    "dicom-and-volumes",
    "kubernetes",
    "operations",
    "recovery",
    "evaluation",
    "search",
    "recipes",
    "results",
    "restorative",
    "fine-tuning",
    "comparison",
    "prediction",
    "localisation",
    "models",
]


def main() -> None:
    """Writes all pages anew."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(ROOT / name for name in BESIDE)):
        _write(file.relative_to(ROOT), file.read_text())
    floors = _by_floor(ROOT / "dira_dist")
    for source in (ROOT / "dira_dist").rglob("*.py"):
        if source.name == "__init__.py":
            _write(_page(source.parent), _overview(source.parent))
        elif source.name != "__main__.py":
            _write(_page(source), f"::: {_dotted(source)}\n")
    _write(Path("api/public.md"), "\n".join(_public()))
    _write(Path("SUMMARY.md"), "\n".join(_navigation(floors)) + "\n")


def _navigation(floors: list[Path]) -> Iterator[str]:
    """The site's table of contents, as mkdocs-literate-nav reads it."""
    yield "- [Start](README.md)"
    yield "- Guides"
    guides = sorted(ROOT.glob("docs/*.md"), key=lambda guide: (_place(guide, GUIDES), guide))
    yield from (f"    {_link(guide)}" for guide in guides)
    yield "- Decisions"
    yield from (f"    {_link(file)}" for file in (ROOT / "docs/decisions/README.md", *_records()))
    yield "- Contributing"
    yield from (f"    {_link(ROOT / name)}" for name in ("CONTRIBUTING.md", "CHANGELOG.md"))
    yield "- API"
    yield f"    - [dira_dist]({_page(ROOT / 'dira_dist')})"
    yield "    - [Public names](api/public.md)"
    for floor in floors:
        yield from _branch(floor, depth=1)


def _records() -> list[Path]:
    """The decision records by number."""
    return sorted(ROOT.glob("docs/decisions/[0-9]*.md"))


def _branch(path: Path, depth: int) -> Iterator[str]:
    """A module, or a package with what it holds."""
    yield f"{'    ' * depth}- [{path.stem}]({_page(path)})"
    if path.is_dir():
        for child in _members(path):
            yield from _branch(child, depth + 1)


def _by_floor(package: Path) -> list[Path]:
    """Modules and packages of the top, in the order of the layers that `lint-imports` holds."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    floors = next(each for each in settings["tool"]["importlinter"]["contracts"] if each["id"] == "floors")
    order = re.findall(r"\w+", " ".join(floors["layers"]))
    return sorted(_members(package), key=lambda each: _place(each, order))


def _place(file: Path, order: list[str]) -> int:
    """The place of a file in an order of names; what the order does not name comes last."""
    return order.index(file.stem) if file.stem in order else len(order)


def _members(package: Path) -> list[Path]:
    """Modules and packages in a package: packages last, dunder modules not at all."""
    members = [each for each in package.iterdir() if each.suffix == ".py" or (each / "__init__.py").exists()]
    return sorted((each for each in members if not each.stem.startswith("__")), key=lambda each: (each.is_dir(), each))


def _public() -> Iterator[str]:
    """The page of what a program imports from the package itself."""
    yield "# Public names\n\nWhat `import dira_dist` offers: everything that the command line does, as calls.\n"
    for name in sorted({*dira_dist.__all__} - {"__version__"}, key=str.lower):
        yield f"::: dira_dist.{name}\n    options: {{heading_level: 2, show_if_no_docstring: false}}\n"


def _overview(package: Path) -> str:
    """The page of a package: what it says of itself, then its members in a word each."""
    lines = [f"::: {_dotted(package)}", "    options: {members: false}", "", "| | |", "| --- | --- |"]
    for each in _members(package):
        page = _page(each).relative_to(_page(package).parent)
        lines.append(f"| [{each.stem}]({page}) | {_summary(each)} |")
    return "\n".join(lines) + "\n"


def _summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    source = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return " ".join(to_markdown(text.split("\n\n")[0]).split())


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _page(path: Path) -> Path:
    inside = Path("api") / path.relative_to(ROOT / "dira_dist")
    return inside / "index.md" if path.is_dir() else inside.with_suffix(".md")


def _link(file: Path) -> str:
    """A file under the words of its first heading."""
    heading = re.search(r"^# (.+)$", file.read_text(), re.MULTILINE)
    return f"- [{heading[1] if heading else file.stem}]({file.relative_to(ROOT)})"


def _write(page: Path, text: str) -> None:
    target = PAGES / page
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


if __name__ == "__main__":
    main()
