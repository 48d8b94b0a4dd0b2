"""A page of results as its reader finds it: read by a parser that refuses what is not well-formed."""

import re
from html.parser import HTMLParser

VOID = {"br", "img", "input", "link", "meta", "wbr"}
# What a browser loads by itself, or goes to.
ADDRESSES = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class ReadPage(HTMLParser):
    """The tables, headings, pictures and addresses of a page; every tag must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> names an attribute twice"
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "br":
            self.handle_data(" ")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script", "title"} & set(self.open):
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.attributes if name == tag]

    def addresses(self) -> list[str]:
        """Everything that a browser could load or go to, from attributes and styles."""
        found = [value for _, attributes in self.attributes for name, value in attributes.items() if name in ADDRESSES]
        return found + [match for style in self.styles for match in re.findall(r"url\(([^)]*)|@import (.*)", style)]

    def rows(self, column: str) -> dict[str, list[str]]:
        """The rows of the one table with that column, by the first word of each: the other cells."""
        (found,) = (table for table in self.tables if column in table[0])
        return {row[0].split()[0]: [" ".join(cell.split()) for cell in row[1:]] for row in found[1:]}

    def row(self, start: str) -> list[str]:
        """The widest row whose first word it is: the other cells."""
        rows = [[" ".join(cell.split()) for cell in row] for table in self.tables for row in table]
        return max((row for row in rows if row[0].split(" ")[0] == start), key=len)[1:]


def assert_accessible(page: ReadPage) -> None:
    """A language, landmarks, one heading of the first kind, texts for pictures, headers for columns and rows."""
    assert page.of("html") == [{"lang": "en"}]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.of(landmark)) == 1, landmark
    names = {attributes["id"] for _, attributes in page.attributes if "id" in attributes}
    for section in page.of("section"):
        assert section["aria-labelledby"] in names
    for link in page.of("a"):
        assert link["href"].removeprefix("#") in names
    assert all(picture["alt"] for picture in page.of("img"))
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.of("svg"))
    assert all(header["scope"] in ("col", "row") for header in page.of("th"))
    for table in page.tables:
        assert len({len(row) for row in table}) == 1, table
