"""Every link and anchor leads somewhere; external ones have a form that can."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.documentation.blocks import ROOT, pages

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")


def _links(page: Path) -> list[str]:
    text = _CODE.sub("", _FENCED.sub("", page.read_text(encoding="utf-8")))
    return _LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip()
        name, number = plain.replace(" ", "-"), 1
        while name in found:
            name, number = f"{plain.replace(' ', '-')}-{number}", number + 1
        found.add(name)
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", f"{page}: {link}"
            assert "." in parts.netloc, f"{page}: {link}"
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.exists(), f"{page}: {link}"
        assert target.is_relative_to(ROOT), f"{page}: {link}"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{page}: {link}"


def test_every_page_of_docs_is_linked_from_the_readme_or_from_one_that_is() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [(page.parent / urlsplit(link).path).resolve() for link in _links(page) if not urlsplit(link).scheme]
    assert {page for page in (ROOT / "docs").rglob("*.md") if page not in reached} == set()


def test_images_are_images() -> None:
    for image in (ROOT / "docs" / "images").iterdir():
        assert image.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert image.stat().st_size < 300_000


def test_the_checker_sees_a_broken_link(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c!\n# A b c\n[one](nowhere.md) `[not](a-link)`\n```\n[nor](this)\n```\n[x](#a-b-c-1)\n")
    assert _links(page) == ["nowhere.md", "#a-b-c-1"]
    assert anchors(page) == {"a-b-c", "a-b-c-1"}
