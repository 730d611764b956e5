"""The report as one HTML page that holds its pictures, so that it can be mailed or opened from anywhere."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; white-space: nowrap; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .quiet { color: #666; font-size: .85rem; }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem; }
.plots img { max-width: 34rem; width: 100%; }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page that belongs to some methods only: lines of text, a table, and plots by their file's name."""

    title: str
    lines: list[str]
    headings: list[str]
    rows: list[list[str]]
    plots: list[str]


def picture(path: Path, alt: str) -> str:
    """A PNG file as an <img> that carries its data."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def table(headings: list[str], rows: list[list[str]]) -> str:
    """An HTML table of text cells."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def side_by_side(plots: list[Path]) -> str:
    """Plots in a row, or below each other on a narrow screen."""
    return f'<div class="plots">{"".join(picture(path, path.stem) for path in plots)}</div>' if plots else ""


def render(
    recipe: str,
    groups: list[tuple[dict, list[str], list[list[str]]]],
    plots: list[Path],
    methods: list[str],
    galleries: Path,
    sections: list[Section],
) -> str:
    """The page: a table for each protocol, the plots, each method's grid and strip, and further sections."""
    parts = [f"<h1>Multiscale: {escape(recipe)}</h1>"]
    for protocol, headings, rows in groups:
        parts.append(f"<h2>Leaderboard by KID-{escape(protocol['metric'])}</h2>{table(headings, rows)}")
        about = ", ".join(f"{name} {value}" for name, value in protocol.items())
        parts.append(
            f'<p class="quiet">Best KID first; the interval is one standard deviation over subsets. {escape(about)}</p>'
        )
    parts.append(f"<h2>Quality, time and training</h2>{side_by_side(plots)}")
    for name in methods:
        parts.append(f"<h2>{escape(name)}</h2>")
        for kind in ("strip", "grid"):
            parts.append(f"<p>{picture(galleries / f'{name}-{kind}.png', f'{name}: {kind}')}</p>")
    for section in sections:
        lines = "".join(f"<p>{escape(line)}</p>" for line in section.lines)
        shown = table(section.headings, section.rows) + side_by_side([galleries / name for name in section.plots])
        parts.append(f"<h2>{escape(section.title)}</h2>{lines}{shown}")
    title = f"<title>Multiscale: {escape(recipe)}</title>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>{"".join(parts)}</html>\n'
    )
