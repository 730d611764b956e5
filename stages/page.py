"""The report as one HTML page with embedded pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; white-space: nowrap; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
.text { white-space: normal; min-width: 16rem; }
th:first-child, td:first-child, .text { text-align: left; }
img { max-width: 100%; } .quiet { color: #666; font-size: .85rem; }
tr.floor td { background: #f3f3f3; color: #555; font-style: italic; } tr.floor.top td { border-top: 3px double #999; }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem; }
.plots img { max-width: 34rem; width: 100%; }
"""
LONG = 40  # characters of a cell from which on its column is one of texts, which wrap


@dataclass(frozen=True)
class Leaderboard:
    """The table of one protocol: methods, best first, then floors, and the notes on them."""

    metric: str
    headings: list[str]
    rows: list[list[str]]
    floors: list[list[str]]
    notes: list[str]


@dataclass(frozen=True)
class Section:
    """A section of the page about some of the methods: lines of text, a table, and the file names of plots."""

    title: str
    lines: list[str]
    headings: list[str]
    rows: list[list[str]]
    plots: list[str]


def picture(path: Path, alt: str) -> str:
    """A PNG file as an <img> with embedded data."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def table(headings: list[str], rows: list[list[str]], floors: Sequence[list[str]] = ()) -> str:
    """An HTML table of text cells, with floors at its foot."""
    texts = {column for row in rows for column, cell in enumerate(row) if len(cell) > LONG}

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="text"' if column in texts else "" for column in range(len(cells)))
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells))

    kinds = [""] * len(rows) + [' class="floor top"', *[' class="floor"'] * len(floors)][: len(floors)]
    cells = [line(row, "td") for row in [*rows, *floors]]
    body = "".join(f"<tr{kind}>{row}</tr>" for kind, row in zip(kinds, cells))
    return f'<div class="wide"><table><tr>{line(headings, "th")}</tr>{body}</table></div>'


def side_by_side(plots: list[Path]) -> str:
    """Plots in a row that wraps on narrow screens."""
    return f'<div class="plots">{"".join(picture(path, path.stem) for path in plots)}</div>' if plots else ""


def render(
    recipe: str,
    classes: Sequence[str],
    boards: list[Leaderboard],
    plots: list[Path],
    shown: Mapping[str, Sequence[str]],
    galleries: Path,
    sections: list[Section],
) -> str:
    """The page: a table for each protocol, the plots, the pictures of each method and floor, and further sections.

    classes: their names, if the data has some. shown: name -> kinds of its pictures, in galleries/NAME-KIND.png.
    """
    parts = [f"<h1>Multiscale: {escape(recipe)}</h1>"]
    if classes:
        parts.append(f'<p class="quiet">{len(classes)} classes: {escape(", ".join(classes))}</p>')
    for board in boards:
        parts.append(f"<h2>Leaderboard by KID-{escape(board.metric)}</h2>")
        parts.append(table(board.headings, board.rows, board.floors))
        parts.append(f'<ul class="quiet">{"".join(f"<li>{escape(note)}</li>" for note in board.notes)}</ul>')
    parts.append(f"<h2>Quality, time and training</h2>{side_by_side(plots)}")
    for name, kinds in shown.items():
        parts.append(f"<h2>{escape(name)}</h2>")
        for kind in kinds:
            parts.append(f"<p>{picture(galleries / f'{name}-{kind}.png', f'{name}: {kind}')}</p>")
    for section in sections:
        lines = "".join(f"<p>{escape(line)}</p>" for line in section.lines)
        body = table(section.headings, section.rows) + side_by_side([galleries / name for name in section.plots])
        parts.append(f"<h2>{escape(section.title)}</h2>{lines}{body}")
    title = f"<title>Multiscale: {escape(recipe)}</title>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>{"".join(parts)}</html>\n'
    )
