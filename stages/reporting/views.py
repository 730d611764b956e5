"""What the page shows, put together from the rows, the differences of pairs, the histories and the images."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import polars as pl

from stages.reporting import claims, fair, gallery, leaderboard, measured, pairs, provenance
from stages.reporting.claims import Finding
from stages.reporting.page import Card, Exhibit, Leaderboard, Page, Section, Table, address, picture, sheet
from stages.reporting.pairs import Difference
from stages.reporting.rows import SPREAD, Group, Row
from stages.reporting.trainings import APART, standard_error
from stages.schema import Experiment

SHOWN = (
    *("method", "works_on", "kid", "label_accuracy", "recall", "seconds_per_image", "flops_per_image", "parameters"),
    *("train_images", "train_seconds"),
)
FLOOR = ("method", "kid", "kid_se", "kid_test", "kid_second", "fd", "label_accuracy", "recall", "precision")
POINT = (
    *(*FLOOR, "kid_test_se", "kid_second_se", "works_on", "seconds_per_image", "seconds_per_image_batch_1"),
    *("network_calls", "parameters", "train_images", "train_seconds"),
)
FIGURES: tuple[tuple[Any, str, str, str, float], ...] = (  # of each protocol, of methods that copy nothing
    (max, "label_accuracy", "most readable", "% show their class", 100.0),
    (max, "recall", "most diverse", " recall", 1.0),
)
COSTS: tuple[tuple[Any, str, str, str, float], ...] = (
    (min, "seconds_per_image", "fastest", " ms an image", 1e3),
    (min, "flops_per_image", "fewest operations", " GFLOP an image", 1e-9),
)
PAIRS = ("method", "against", "KID apart", "KID, interval", "by KID", "accuracy apart", "accuracy, interval")
PAIRS_NOTE = (
    f"Each pair of methods, image by image with the same seed and class: {APART} standard errors to either "
    "side. Where methods are equal, about one interval in twenty leaves out zero. Intervals of KID "
    "cover other trainings of methods that have several; all others cover other seeds alone."
)


@dataclass(frozen=True)
class Made:
    """What the report is made of."""

    params: Experiment
    groups: Sequence[Group]
    rows: Sequence[Row]
    differences: Sequence[Difference]
    curves: pl.DataFrame
    sampling: Mapping[str, Any]
    judged: Mapping[str, Finding]


def page(
    made: Made,
    boards: Sequence[Leaderboard],
    classes: Sequence[str],
    sections: Sequence[Section],
    folder: Path,
    files: Sequence[Path],
) -> Page:
    """The page; folder: of the galleries, files: tables to download."""
    rows = made.rows
    real = next((row["method"] for row in rows if row["method"] == "real"), None)
    spectra = gallery.spectra([row["method"] for row in rows], real)
    shown, seeds, heads = exhibits(rows, folder, classes)
    return Page(
        recipe=made.params.recipe,
        about=about(made.groups, made.params.sample.images),
        classes=classes,
        warnings=warnings(made.groups),
        cards=cards(made.groups, made.differences, made.judged),
        boards=boards,
        fair=fair.tables(made.groups, made.differences),
        fair_note=fair.NOTE,
        pairs=pair_table(made.differences),
        pairs_note=PAIRS_NOTE,
        claims=claim_table(made.judged),
        gallery=shown,
        seeds=seeds,
        heads=heads,
        spectra_lines=spectra_lines(spectra, real),
        sections=[section_table(index, section, folder) for index, section in enumerate(sections)],
        versions=provenance.versions(),
        hardware=provenance.hardware(made.sampling),
        commands=command_table(rows, made.params),
        downloads=downloads(rows, files, made.judged),
        charts=charts(made, spectra),
    )


def about(groups: Sequence[Group], images_each: int) -> str:
    """What was compared, in a line."""
    rows = sum(len(group.methods) for group in groups)
    return (
        f"{rows} methods, {images_each:,} images of each. KID: lower is better. Everything here was measured by this "
        "run; the protocol is at the end."
    )


def warnings(groups: Sequence[Group]) -> list[str]:
    """One line where rows were measured by several protocols: what differs."""
    if len(groups) < 2:
        return []
    keys = dict.fromkeys(key for group in groups for key in group.protocol)
    values = {key: list(dict.fromkeys(str(group.protocol.get(key)) for group in groups)) for key in keys}
    apart = "; ".join(f"{key}: {' / '.join(each)}" for key, each in values.items() if len(each) > 1)
    return [f"Rows of {len(groups)} protocols are kept apart and never compared ({apart})."]


def board(
    group: Group,
    accuracy: float | None,
    remarks: Sequence[str],
    index: int,
    columns: Mapping[str, str] = measured.COLUMNS,
    shown: Sequence[str] = SHOWN,
    by: Sequence[str] = ("works_on",),
) -> Leaderboard:
    """The table of one protocol. shown: columns that are not hidden at first; by: those that it filters by."""
    headings, rows, floors = leaderboard.table(group, accuracy, columns)
    keys = leaderboard.headings(group, accuracy, columns)
    hidden = [heading for key, heading in keys.items() if key not in shown]
    metric, filters = group.protocol["metric"], [keys[key] for key in by]
    table = Table(f"board-{index}", f"KID-{metric}", headings, rows, hidden=hidden, filters=filters)
    notes = list(dict.fromkeys([*leaderboard.notes(group), *remarks]))  # floors of several revisions have the same
    return Leaderboard(metric, group.protocol["n"], table, floors, notes)


def cards(groups: Sequence[Group], differences: Sequence[Difference], judged: Mapping[str, Finding]) -> list[Card]:
    """The figures at the head: the best, the fastest, the cheapest to train, the claims."""
    found = []
    for group in groups:
        rows = [row for row in group.methods if not row["copies"]] or group.methods
        best, *others = sorted(rows, key=lambda row: row["kid"])
        beside, lead = f", N = {group.protocol['n']}" if len(groups) > 1 else "", ""
        if others:
            mine = next(
                each for each in differences if {each.method, each.other} == {best["method"], others[0]["method"]}
            )
            says = pairs.verdict(-abs(mine.kid), mine.kid_se, True)
            lead = (
                f"; {says} than {others[0]['method']}, paired by seed"
                if says == "better"
                else f"; lead on {others[0]['method']} not shown"
            )
        value = f"{best['kid']:.4f} ± {standard_error('kid', best):.4f}{lead}"
        found.append(Card(f"lowest KID{beside}", best["method"], value))
        found += _extremes(FIGURES, rows, beside)
    found += _extremes(COSTS, [row for group in groups for row in group.methods])
    held = [each["holds"] for each in judged.values()]
    if held:
        decided = f"{held.count('false')} do not, {held.count('not shown')} not shown"
        found.append(Card("published claims", f"{held.count('true')} of {len(held)} hold", decided))
    return found


def _extremes(kinds: Sequence[tuple[Any, str, str, str, float]], rows: Sequence[Row], beside: str = "") -> list[Card]:
    """The row that is first in each kind of figure that was measured, unless all rows are equal in it."""
    found = []
    for chosen, key, title, unit, scale in kinds:
        known = [row for row in rows if row.get(key) is not None]
        if len(known) == 1 or len({row[key] for row in known}) > 1:
            row = chosen(known, key=itemgetter(key))
            found.append(Card(f"{title}{beside}", row["method"], f"{scale * row[key]:.3g}{unit}"))
    return found


def pair_table(differences: Sequence[Difference]) -> Table:
    """Every row against every other one."""
    rows = []
    for each in [*differences, *(each.turned() for each in differences)]:
        says = pairs.verdict(each.kid, each.kid_se, True)
        line = [each.method, each.other, f"{each.kid:+.4f}", fair.interval(each.kid, each.kid_se), says]
        if each.accuracy is None or each.accuracy_se is None:
            rows.append([*line, "-", "-"])
        else:
            low, high = (100 * (each.accuracy + k * APART * each.accuracy_se) for k in (-1, 1))
            rows.append([*line, f"{each.accuracy:+z.1%}", f"{low:+z.1f} to {high:+z.1f} %"])
    names = list(dict.fromkeys(name for each in differences for name in (each.method, each.other)))
    rows.sort(key=lambda row: (names.index(row[0]), names.index(row[1])))
    chosen = ("against", names[0]) if names else None
    return Table(
        "pairs", "Pairs of methods, seed by seed", PAIRS, rows, badge="by KID", filters=PAIRS[:2], chosen=chosen
    )


def charts(made: Made, spectra: list[Row]) -> dict[str, Any]:
    """The data of the charts."""
    flops = measured.flops_per_image(made.params.methods)
    costs = {part: value / 1e15 for part, value in flops.items()}
    lines = [
        line | {"pflops": line["images"] * costs[line["method"]] if line["method"] in costs else None}
        for line in made.curves.rename({"part": "method"}).to_dicts()
    ]
    return {"boards": pareto(made.groups), "curves": lines, "spectra": spectra}


def pareto(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The data of the chart of quality against cost, for each protocol."""
    return [
        {
            "metric": group.protocol["metric"],
            "n": group.protocol["n"],
            "points": [point for row in group.methods for point in points(row)],
            "floors": [{key: row.get(key) for key in FLOOR} for row in leaderboard.comparable_floors(group)],
        }
        for group in groups
    ]


def points(row: Row) -> list[Row]:
    """The points of a method: its own, and those of its further numbers of steps, whose errors are over images."""
    budget = row.get("train_flops")
    own = {key: row.get(key) for key in POINT} | {"own": True, "n": row["protocol"]["n"]}
    own |= {f"{key}_se": standard_error(key, row) for key in SPREAD if row.get(f"{key}_se") is not None}
    own |= {"gflops_per_image": row["flops_per_image"] / 1e9, "train_pflops": budget / 1e15 if budget else None}
    share = own["label_accuracy"]
    own["label_accuracy_se"] = None if share is None else (share * (1 - share) / own["n"]) ** 0.5
    seconds = row.get("seconds_per_image_of_steps", {})
    trained = {key: own[key] for key in ("method", "works_on", "parameters")}
    return [
        own,
        *(
            trained
            | {key: each[key] for key in ("steps", "n", "kid", "kid_se", "label_accuracy", "network_calls")}
            | {"own": False, "gflops_per_image": each["flops_per_image"] / 1e9}
            | {"seconds_per_image": seconds.get(str(each["steps"]))}
            for each in row.get("steps") or []
        ),
    ]


def exhibits(
    rows: Sequence[Row], folder: Path, classes: Sequence[str]
) -> tuple[list[Exhibit], list[str], list[list[str]]]:
    """The pictures of the rows; the seeds of each turn of tiles; and the classes above them."""
    count = gallery.ACROSS * gallery.TURNS
    methods = [row for row in rows if row["kind"] == "method"]
    _, labels = gallery.first(methods[0]["method"], count)
    found = []
    for row in rows:
        name = row["method"]
        pixels, own = gallery.first(name, 50 * count if row["kind"] == "floor" else count)
        if row["kind"] == "floor":
            pixels = pixels[gallery.like(own, labels)]
        exact = gallery.is_exact(pixels.shape[-1])
        tiles = [picture(each, exact) for each in gallery.tiles(pixels)]
        sheets = {
            kind: sheet(path)
            for kind in ("strip", "grid", "neighbours")
            if (path := folder / f"{name}-{kind}.png").exists()
        }
        note = "held out" if name == "real" else "reconstructed" if row["kind"] == "floor" else f"KID {row['kid']:.3f}"
        found.append(Exhibit(name, note, tiles, sheets))
    start = int((methods[0]["protocol"]["seeds"] or "0..").partition("..")[0])
    turns = range(0, len(labels), gallery.ACROSS)
    seeds = [f"{start + k} to {start + min(k + gallery.ACROSS, len(labels)) - 1}" for k in turns]
    names = [classes[label] if classes else str(label) for label in labels.tolist()]
    heads = [names[k : k + gallery.ACROSS] + [""] * max(0, k + gallery.ACROSS - len(names)) for k in turns]
    return found, seeds, heads


def downloads(rows: Sequence[Row], files: Sequence[Path], judged: Mapping[str, Finding]) -> dict[str, str]:
    """Tables to take along: the leaderboard with the seconds of this machine, curves, pairs, claims."""
    table = flat(rows)
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    found = {
        "leaderboard.csv": address(table.write_csv().encode(), "text/csv"),
        "leaderboard.parquet": address(buffer.getvalue(), "application/vnd.apache.parquet"),
        "claims.json": address(json.dumps(judged, indent=1).encode(), "application/json"),
    }
    return found | {path.name: address(path.read_bytes(), "text/csv") for path in files}


def flat(rows: Sequence[Row]) -> pl.DataFrame:
    """The rows with their protocols, without lists. How a metric was measured is beside it, as KEY_protocol."""
    found = []
    for row in rows:
        about = {f"{key}_protocol" if key in row else key: value for key, value in row["protocol"].items()}
        found.append({key: value for key, value in row.items() if not isinstance(value, list | dict)} | about)
    return pl.DataFrame(found, infer_schema_length=None)


def section_table(index: int, section: Section, folder: Path) -> Table:
    """A section about the data or some of the methods, with its plots."""
    plots = [sheet(folder / name) for name in section.plots]
    name, badge = f"section-{index}", section.badge
    return Table(name, section.title, section.headings, section.rows, section.lines, badge=badge, pictures=plots)


def claim_table(judged: Mapping[str, Finding]) -> Table:
    """The findings about the claims."""
    found = claims.section(judged)
    return Table(
        "claims-table",
        found.title,
        found.headings,
        found.rows,
        found.lines,
        "holds",
        ["quantity", "paper"],
        ["holds", "paper"],
    )


def spectra_lines(spectra: list[Row], real: str | None) -> list[str]:
    """What the spectra say in words."""
    lines = [
        "The power of an image's frequencies, averaged over directions, channels and images; white noise has power 1."
    ]
    level = gallery.masked_half(spectra, real) if real else None
    if level is not None:
        lines.append(
            f"Noise of level {level:.2f} (noise s, image 1 - s) masks the upper half of the frequencies of real "
            "images: from there on, half of the resolution loses nothing that could be seen."
        )
    return lines


def command_table(rows: Sequence[Row], params: Experiment) -> Table:
    """What makes each training of each row again."""
    line = "On a CPU the same command gives the same images: `sha256sum` of the file starts with what stands here."
    headings = ("method", "command", "images", "SHA-256 of the images")
    return Table("commands", "What makes each row again", headings, provenance.commands(rows, params), [line])
