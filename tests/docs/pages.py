"""A page of the documentation and what is in it: headings, links, code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import checkout

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LANGUAGES = {"sh", "python", "toml", "text"}
"""What a block may say that it is; an indented one is sh."""


class Block(NamedTuple):
    """A block of code."""

    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """A page by its path and text."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def blocks(self) -> list[Block]:
        """Its blocks of code."""
        return [part for part in _parts(self.text) if isinstance(part, Block)]

    @property
    def prose(self) -> str:
        """All but the blocks."""
        return "\n".join(part for part in _parts(self.text) if isinstance(part, str))

    @property
    def spans(self) -> list[str]:
        """Code in the prose; where it goes over the end of a line, in one."""
        paragraphs = self.prose.split("\n\n")
        return [" ".join(span.split()) for each in paragraphs for span in _SPAN.findall(each)]

    @property
    def links(self) -> list[str]:
        """Where its links go."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """What its headings are called, by GitHub and by the site alike."""
        titles = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {_on_github(title) for title in titles} & {_on_the_site(title) for title in titles}

    def section(self, title: str) -> str:
        """The text below a heading, up to the next one of its rank or a higher one; empty if there
        is no such heading."""
        heading = re.search(rf"^(#+) {re.escape(title)}$", self.text, re.MULTILINE)
        if heading is None:
            return ""
        rest = self.text[heading.end() :]
        return re.split(rf"^#{{1,{len(heading[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def read(path: Path) -> Page:
    """The page in a file."""
    return Page(path, path.read_text())


def all_pages() -> list[Page]:
    """What people read."""
    top = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")]
    return [read(path) for path in (*top, *sorted(DOCS.glob("*.md")))]


@cache
def files() -> frozenset[str]:
    """The files of the repository, new ones too."""
    return frozenset(checkout.files())


def rows(text: str) -> list[list[str]]:
    """The cells of the lines of all tables, without their heads."""
    lines = re.findall(r"^\|(.+)\|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) == {"-"}]
    heads = {number - 1 for number in rules}
    return [row for number, row in enumerate(cells) if number not in {*rules, *heads}]


def _parts(text: str) -> Iterator[str | Block]:
    """Lines of prose, and blocks."""
    lines = iter(text.split("\n"))
    before = ""
    indented: list[str] = []
    for line in lines:
        # In a list four spaces may be a line that goes on.
        if line.startswith("    ") and (indented or not before):
            indented.append(line[4:])
            continue
        if indented:
            if not line:
                indented.append(line)
                continue
            yield Block("sh", "\n".join(indented))
            indented = []
        if line.startswith("```"):
            yield Block(line[3:], "\n".join(iter(lambda: next(lines, "```"), "```")))
        else:
            yield line
        before = line
    if indented:
        yield Block("sh", "\n".join(indented))


def _on_github(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _on_the_site(title: str) -> str:
    """As the extension toc of Python-Markdown does it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())
