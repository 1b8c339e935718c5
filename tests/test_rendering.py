"""Templates: misspelt names are errors, every value is escaped, and commands that write no page do not load Jinja."""

import subprocess
import sys

import pytest
from jinja2 import UndefinedError

from rglcd.rendering import code_span, html_environment, markdown_environment, markdown_text, python_string, table_cell


def test_misspelt_name_in_a_template_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="misspelt"):
        html_environment("rglcd.sharding").from_string("{{ misspelt }}").render()


def test_html_and_markdown_values_are_escaped_by_default() -> None:
    assert html_environment("rglcd.sharding").from_string("<a>{{ x }}").render(x='"<b>') == "<a>&#34;&lt;b&gt;"
    assert markdown_environment("rglcd.models").from_string("| {{ x }} |").render(x="a|<b>\n*c*") == r"| a\|\<b\> \*c\* |"


@pytest.mark.parametrize("text", ["RG-LCM", "hps_v2.1", "95 %", "teacher’s 50", "(a, b)"])
def test_markdown_of_ordinary_text_is_the_text(text: str) -> None:
    assert markdown_text(text) == text


@pytest.mark.parametrize(("text", "span"), [("rg", "`rg`"), ("a`b", "`` a`b ``"), ("a|b", r"`a\|b`"), ("a\nb", "`a b`")])
def test_code_span_outlasts_backticks_pipes_and_line_breaks(text: str, span: str) -> None:
    assert code_span(text) == span


def test_python_string_is_one_literal() -> None:
    assert eval(python_string('a"); import os; ("\n')) == 'a"); import os; ("\n'


def test_table_cell_keeps_code_and_cannot_end_early() -> None:
    assert table_cell("`expert`, weight 1 | <b>\n") == r"`expert`, weight 1 \| \<b\> "


@pytest.mark.parametrize("module", ["rglcd.cli", "rglcd.config", "rglcd.launch.appdef", "pipelines"])
def test_commands_that_write_no_page_do_not_load_templates(module: str) -> None:
    code = f"import sys, {module}; assert 'rglcd.rendering' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
