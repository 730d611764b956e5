"""The report as one self-contained HTML page: its template, style, script, pictures and data are all inside.

Charts are drawn by Vega-Lite. Its scripts are in templates/plots.html, by which `dvc plots show` draws too.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

TEMPLATES = Path(__file__).parent / "templates"
CHARTS = TEMPLATES / "plots.html"
LONG = 40  # characters of a cell from which on its column is one of texts, which wrap
CONTENTS = {
    "leaderboard": "Leaderboard",
    "pareto": "Quality and cost",
    "fair": "Fair views",
    "claims": "Claims",
    "samples": "Samples",
    "training": "Training",
    "neighbours": "Neighbours",
    "spectra": "Spectra",
    "assumptions": "The data",
    "protocol": "Protocol",
}
QUALITY = 88  # of pictures in WebP; the files in reports/galleries are exact


@dataclass(frozen=True)
class Table:
    """A table that the page sorts and filters.

    badge: the heading of a column of verdicts; hidden: those that are shown on request; filters: those that a list of
    their values filters by; chosen: such a heading and its value to begin with.
    """

    id: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[str] = ()
    badge: str | None = None
    hidden: Sequence[str] = ()
    filters: Sequence[str] = ()
    chosen: tuple[str, str] | None = None
    pictures: Sequence[str] = ()

    def style(self, column: int) -> str:
        """The class of a column's cells: long texts wrap, words stand on the left, numbers on the right."""
        cells = [row[column] for row in self.rows]
        if any(len(cell) > LONG for cell in cells):
            return "text"
        return "" if any(cell[:1] in "+-0123456789" for cell in cells) else "word"

    def values(self, column: int) -> list[str]:
        """The values that occur in a column, in their order."""
        return list(dict.fromkeys(row[column] for row in self.rows))


@dataclass(frozen=True)
class Section:
    """A section of the page: lines of text, a table, perhaps with a column of verdicts, and the file names of plots."""

    title: str
    lines: list[str]
    headings: list[str]
    rows: list[list[str]]
    plots: list[str]
    badge: str | None = None


@dataclass(frozen=True)
class Leaderboard:
    """The table of one protocol: methods, best first, then floors, and the notes on them."""

    metric: str
    n: int
    table: Table
    floors: Sequence[Sequence[str]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Card:
    """A figure at the head of the page."""

    title: str
    value: str
    more: str


@dataclass(frozen=True)
class Exhibit:
    """The pictures of a row: tiles of its first images, a picture for each turn of seeds, and whole sheets by kind."""

    name: str
    note: str
    tiles: Sequence[str]
    pictures: Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """All that the template shows; `data` is what the charts draw."""

    recipe: str
    about: str
    classes: Sequence[str]
    warnings: Sequence[str]
    cards: Sequence[Card]
    boards: Sequence[Leaderboard]
    fair: Sequence[Table]
    fair_note: str
    pairs: Table
    pairs_note: str
    claims: Table
    gallery: Sequence[Exhibit]
    seeds: Sequence[str]
    heads: Sequence[Sequence[str]]
    spectra_lines: Sequence[str]
    sections: Sequence[Table]
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    commands: Table
    downloads: Mapping[str, str]
    charts: Mapping[str, Any]

    @property
    def data(self) -> str:
        return script_data(self.charts)


@dataclass(frozen=True)
class Comparison:
    """What the page of revisions and experiments shows."""

    revisions: Sequence[str]
    warnings: Sequence[str]
    boards: Sequence[Leaderboard]
    charts: Mapping[str, Any]

    @property
    def data(self) -> str:
        return script_data(self.charts)


def script_data(charts: Mapping[str, Any]) -> str:
    """The charts' data as JSON that ends no <script>."""
    return json.dumps(charts, separators=(",", ":")).replace("<", "\\u003c")


def address(content: bytes, kind: str) -> str:
    """A file as a data address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(image: Image.Image, exact: bool = False) -> str:
    """A picture as the address of a WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=exact, quality=QUALITY, method=4)
    return address(buffer.getvalue(), "image/webp")


def sheet(path: Path) -> str:
    """A picture file as an address."""
    with Image.open(path) as image:
        return picture(image.convert("RGB"))


def scripts() -> str:
    """Vega, Vega-Lite and Vega-Embed with their licence, as elements of a page."""
    found = re.search("<!--.*?-->.*</script>", CHARTS.read_text(), re.DOTALL)
    if found is None:
        raise ValueError(f"{CHARTS}: holds no scripts")
    return found[0]


def with_code(text: str) -> Markup:
    """Text as markup; what stands between backticks is code, as in Markdown."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def render(page: Page | Comparison) -> str:
    """A page as HTML. What is not of the project (names, numbers, notes) is text and never markup."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["with_code"] = with_code
    template = environment.get_template("report.html.j2" if isinstance(page, Page) else "compare.html.j2")
    css, js = ((TEMPLATES / f"report.{kind}").read_text() for kind in ("css", "js"))
    return template.render(page=page, contents=CONTENTS, css=css, js=js, vega=scripts()) + "\n"
