"""The site stays readable: how much of it is prose, and what its pages may not say."""

import re

import pytest

from tests.docs.pages import ROOT, TUTORIAL, pages, text_of, without_blocks

APART = {"README.md", "CONTRIBUTING.md", TUTORIAL, "docs/glossary.md"}


def words_of(text: str) -> int:
    """Words outside of blocks, tables, pictures and comments."""
    kept = [line for line in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).splitlines() if not line.startswith(("|", "!["))]
    return len(" ".join(kept).split())


def test_the_prose_of_the_site_has_at_most_ten_thousand_words() -> None:
    """Written by hand, beside tutorial, glossary and decisions: who adds a page finds another that says the same."""
    plan = text_of("docs/plan.md").split("\n## ")[0]
    counts = {page: words_of(without_blocks(page)) for page in pages() if page not in APART} | {"docs/plan.md": words_of(plan)}
    assert sum(counts.values()) <= 10_000, sorted(counts.items(), key=lambda one: -one[1])


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_pages_beside_the_site_lead_somewhere(page: str) -> None:
    """mkdocs looks at those within it."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[\w-]+)?\)", text_of(page)):
        assert (ROOT / target).exists(), f"{page}: {target}"
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+\.md)#([\w-]+)\)", text_of(page)):
        headings = re.findall(r"^#+ (.+)$", text_of(target), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, f"{page}: {target}#{anchor}"
