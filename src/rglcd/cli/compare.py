"""``rglcd compare``: two runs side by side, as a table or as a page."""

import argparse
from pathlib import Path
from typing import Any


def add_verb(verbs: Any) -> None:
    """``rglcd compare A B``."""
    compare = verbs.add_parser(
        "compare",
        help="two runs side by side: settings that differ, scores pair by pair with intervals over prompts",
        description="Compare the reports of two runs. A run is a project, its folder of artifacts, or a report, also a kept one "
        "(artifacts/.kept/report-KEY, see: rglcd runs). What was measured otherwise is named, not compared.",
    )
    for letter in ("a", "b"):
        compare.add_argument(letter, type=Path, metavar=letter.upper(), help=f"run {letter.upper()}")
    compare.add_argument("--page", type=Path, metavar="FILE", help="write it as a page with pictures too")
    compare.set_defaults(act=_compare)


def _compare(options: argparse.Namespace) -> None:
    from rglcd.evaluation.run_comparison_page import as_text, page_html
    from rglcd.stages.compare_runs import compared
    from rglcd.store.staging import write_text

    with compared(options.a, options.b) as comparison:
        print(as_text(comparison))
        if options.page is not None:
            options.page.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.page, page_html(comparison))
            print(f"\npage: {options.page}")
