"""Tables of text: in Markdown, and in columns for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], rule: str = " --- ") -> str:
    """A table in Markdown, without a line break at its end; rule: what stands below each heading."""
    first, *others = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (headings, *rows))
    return "\n".join([first, "|" + f"{rule}|" * len(headings), *others])


def columns(rows: Sequence[Sequence[str]], words: int | None = None) -> list[str]:
    """Rows of cells as lines of text, a column under the other.

    words: so many columns, all by default, stand on the left; those after them, of numbers, on the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    put = [str.ljust if words is None or place < words else str.rjust for place in range(len(widths))]
    return ["  ".join(each(cell, width) for each, cell, width in zip(put, row, widths)).rstrip() for row in rows]
