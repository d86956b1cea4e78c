"""The package's docstrings as the documentation site shows them: an extension of griffe, which reads the sources.

Docstrings are written for a reader of the source, with roles, formulas and literal blocks in Sphinx's manner; pages are
Markdown. And a setting's words stand in its ``Field``, not below it.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

import griffe
from latex2mathml.converter import convert

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")
_FORMULA = re.compile(r"^( *)\.\. math:: *(.+)$", re.MULTILINE)
_BLOCK = re.compile(r"(?<=\S)::$", re.MULTILINE)


class DocstringsToMarkdown(griffe.Extension):
    """Named in ``mkdocs.yml``; griffe calls it for each module, class, function and attribute."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring in place."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Makes the description of a pydantic field its docstring; an attribute without words is told by its class."""
        for call in (*_calls(attr.value), *_calls(attr.annotation)):
            for argument in call.arguments if str(call.function) == "Field" else ():
                if isinstance(argument, griffe.ExprKeyword) and argument.name == "description":
                    attr.docstring = griffe.Docstring(_text(str(argument.value)), parent=attr)
                    call.arguments = [each for each in call.arguments if each is not argument]
        attr.public = attr.docstring is not None


def to_markdown(text: str) -> str:
    """A docstring with its Sphinx markup replaced; formulas become MathML, which browsers draw by themselves."""
    text = _FORMULA.sub(lambda found: found[1] + convert(found[2], display="block"), text)
    return _BLOCK.sub(":", _ROLE.sub(r"`\1`", text))


def _calls(expression: Any) -> Iterator[griffe.ExprCall]:
    """All calls in an expression, inner ones too."""
    if isinstance(expression, griffe.ExprCall):
        yield expression
    if isinstance(expression, griffe.Expr):
        for part in expression.iterate(flat=False):
            if part is not expression:  # a name's only part is the name itself
                yield from _calls(part)


def _text(literal: str) -> str:
    """A string's words from its literal. The braces of an f-string stay.

    What griffe reads in an annotation has lost its quotes where it could be an expression: ``side in pixels``.
    """
    quoted = re.fullmatch(r"""f?(['"].*['"])""", literal, re.DOTALL)
    return str(ast.literal_eval(quoted[1])) if quoted else literal
