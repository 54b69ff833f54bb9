"""What stands on a page of `rehrseg report`, with scripts off."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

SPACES = {"address", "h1", "h2", "h3", "p", "li", "dt", "dd", "td", "th", "tr", "figcaption"}


class Page(HTMLParser):
    """A page that was read.

    Attributes:
        text: all that is read, without scripts and styles.
        headings: h1, h2, h3.
        tables: rows of cells of every table, heads first.
        sources: of every picture.
        links: targets.
        ids: of elements.
    """

    def __init__(self, html: str):
        super().__init__()
        self.html, self.text = html, ""
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "img":
            assert attributes["alt"], "a picture without text"
            self.sources.append(attributes["src"])
        elif tag == "a":
            self.links.append(attributes["href"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag in ("img", "meta", "link", "br", "input"):
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} closes another element"
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] = self.tables[-1][-1][-1].strip()
        if tag in SPACES:
            self.text += "\n"

    def handle_data(self, data):
        if {"script", "style"} & set(self._open):
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        elif {"h1", "h2", "h3"} & set(self._open):
            self.headings[-1] += data

    @property
    def columns(self) -> list[str]:
        """Of the table of cases."""
        return self.tables[0][0]

    @property
    def cases(self) -> dict[str, dict[str, str]]:
        """Rows of the table of cases in their order, by case and column; none where the page has no such table."""
        if not any("worst first" in heading for heading in self.headings):
            return {}
        head, *rows = self.tables[0]
        return {row[0]: dict(zip(head, row, strict=True)) for row in rows}

    def pictures(self, kind: str) -> list[bytes]:
        """Bytes of the pictures of a kind: webp, png or svg+xml."""
        start = f"data:image/{kind};base64,"
        return [base64.b64decode(source.removeprefix(start)) for source in self.sources if source.startswith(start)]


def read_page(file: Path) -> Page:
    """A page, which must need nothing but itself."""
    page = Page(file.read_text(encoding="utf-8"))
    assert not page._open
    assert all(source.startswith("data:image/") for source in page.sources)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    return page
