"""README.md is short, and links between the pages lead somewhere; tests/test_pages.py runs what they say."""

import re

import pytest

from tests.pages import PAGES, ROOT


def anchors(page):
    """The names under which headings of a page are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)(.*?)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        other = page.parent / name if name else page
        assert other.is_file(), link
        assert not anchor or anchor in anchors(other), link
