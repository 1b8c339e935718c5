"""Jinja environments for the templates of a package; every value is escaped unless a template says otherwise.

HTML and SVG are escaped as Jinja does it, Markdown by :func:`markdown_text`. A name that a template misspells is an error.
Importing this module imports Jinja, so only stages that write a page do.
"""

import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_MARKDOWN_SYNTAX = re.compile(r"[\\`*\[\]<>|&~$]|(?<!\w)_|_(?!\w)")
_TABLE_CELL_SYNTAX = re.compile(r"[\\<>|&]")


def html_environment(package: str) -> Environment:
    """For the HTML and SVG templates in ``package``'s folder ``templates``."""
    return _environment(package, autoescape=True)


def markdown_environment(package: str) -> Environment:
    """For the Markdown templates in ``package``'s folder ``templates``.

    Filters: ``code`` makes a code span, ``python_string`` a string literal for a code block, ``table_cell`` takes a line
    that is Markdown already.
    """
    environment = _environment(package, autoescape=False, finalize=markdown_text)
    environment.filters |= {"code": code_span, "python_string": python_string, "table_cell": table_cell}
    return environment


def _environment(package: str, **options: Any) -> Environment:
    return Environment(  # noqa: S701 - Markdown has its own escaping
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def markdown_text(value: object) -> str:
    """``value`` as Markdown that shows it literally, on one line: no emphasis, no HTML, no end of a table's cell."""
    if isinstance(value, Markup):
        return value
    return Markup(_MARKDOWN_SYNTAX.sub(r"\\\g<0>", _one_line(str(value))))  # noqa: S704 (escaped just here)


def code_span(value: object) -> Markup:
    """``value`` as inline code, also where it holds backticks or stands in a table."""
    text = _one_line(str(value))
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    padding = " " if "`" in text else ""
    return Markup(f"{fence}{padding}{text}{padding}{fence}".replace("|", r"\|"))  # noqa: S704 (the fence is longer than any in it)


def python_string(value: object) -> Markup:
    """``value`` as a Python string literal, for an example in a code block."""
    return Markup(json.dumps(str(value), ensure_ascii=False))  # noqa: S704 (a literal on one line)


def table_cell(markdown: str) -> Markup:
    """``markdown``, a line that may hold code spans, without what could end its cell or begin HTML."""
    return Markup(_TABLE_CELL_SYNTAX.sub(r"\\\g<0>", _one_line(markdown)))  # noqa: S704 (escaped just here)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
