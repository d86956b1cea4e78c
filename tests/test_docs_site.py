"""What lies between the sources and the documentation site: `make docs` itself refuses broken links and pages."""

import re
from pathlib import Path

import griffe
import pages
from docstrings import DocstringsToMarkdown, to_markdown

SECTION = '''
class Settings(Section):
    """See :class:`~dira_dist.config.Section`."""

    side: Annotated[int, Field(ge=1, description="side in pixels")] = 224
    name: str = Field(default="a", description=f"one of {KNOWN}")
    silent: int = 3
'''


def test_sphinx_marks_become_markdown() -> None:
    text = "A :meth:`step` of ``dira``::\n\n    import dira_dist\n\n.. math:: a \\le b\n\nEnd::not a mark"
    found = to_markdown(text)
    assert found.startswith("A `step` of ``dira``:\n\n    import dira_dist\n\n<math") and "&#x02264;" in found
    assert found.endswith("End::not a mark")


def test_a_setting_is_told_by_its_description() -> None:
    extensions = griffe.load_extensions(DocstringsToMarkdown)
    with griffe.temporary_visited_module(SECTION, extensions=extensions) as module:
        settings = module["Settings"]
        assert settings.docstring.value == "See `dira_dist.config.Section`."
        assert settings["side"].docstring.value == "side in pixels"
        assert str(settings["side"].annotation) == "Annotated[int, Field(ge=1)]"
        assert settings["name"].docstring.value == "one of {KNOWN}"
        assert str(settings["name"].value) == "Field(default='a')"
        assert settings["name"].public and not settings["silent"].public


def test_every_module_has_its_place_in_the_contents() -> None:
    listed = re.findall(r"\((api/.+?)\)", "\n".join(pages._navigation(pages._by_floor(pages.ROOT / "dira_dist"))))
    sources = [each for each in (pages.ROOT / "dira_dist").rglob("*.py") if each.name != "__main__.py"]
    wanted = [pages._page(each.parent if each.name == "__init__.py" else each) for each in sources]
    assert sorted(listed) == sorted(map(str, [*wanted, Path("api/public.md")]))
