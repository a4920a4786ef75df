"""Lists and tables of the documents."""

from __future__ import annotations

from collections.abc import Iterable


def bullets(sentences: Iterable[str]) -> str:
    """A sentence a line."""
    return "\n".join(f"- {text}" for text in sentences)


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of text; ``|`` within a cell is kept from ending it."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
