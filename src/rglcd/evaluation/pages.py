"""Draws reports and plots with the templates beside this file.

The page is one HTML file that needs nothing else: no script, no font, no picture from elsewhere. It opens from disk, from
an object store, and inside Kubeflow's sandboxed frame. Its content security policy forbids everything but its own styles
and its own pictures. Captions, arm names and scorer names are other people's text: the environments escape every value.
"""

from collections.abc import Sequence

from markupsafe import Markup

from rglcd.evaluation.plots import Panel, layout
from rglcd.evaluation.report_data import Report
from rglcd.evaluation.verdict import outcome_of
from rglcd.evaluation.wording import duration, interval_percent, percent
from rglcd.rendering import html_environment, markdown_environment


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"


_FILTERS = {"duration": duration, "fixed": _fixed, "interval_percent": interval_percent, "outcome": outcome_of, "percent": percent}

_HTML = html_environment("rglcd.evaluation")
_HTML.filters |= _FILTERS
_MARKDOWN = markdown_environment("rglcd.evaluation")
_MARKDOWN.filters |= _FILTERS


def html_page(template: str, **values: object) -> str:
    """The page that a template beside this file draws of ``values``, every one of them escaped."""
    return _HTML.get_template(template).render(**values)


def report_html(report: Report) -> str:
    """``index.html``: the whole report as one page."""
    return html_page("report.html", report=report)


def report_markdown(report: Report) -> str:
    """``report.md``: the verdict and the table."""
    return _MARKDOWN.get_template("report.md").render(report=report)


def figure_svg(panels: Sequence[Panel]) -> str:
    """``panels`` side by side as an SVG file with the report's style sheet in it."""
    return _HTML.get_template("figure.svg").render(layouts=[layout(panel) for panel in panels])


def stylesheet() -> Markup:
    """The report's style sheet, to be put into a ``<style>`` element as it is."""
    return Markup(_HTML.get_template("style.css").render())  # noqa: S704 (a template of this package without a value in it)
