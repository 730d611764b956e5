"""Gathers every method's metrics and costs: the leaderboard, training curves, plots and one page to look at.

Writes reports/leaderboard.{json,parquet,md}, reports/training.csv, reports/quality-time.csv, the PNG plots and
reports/report.html, which holds its pictures and opens anywhere.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from multiscale.core.storage import atomic_file, atomic_folder, read_json, write_json
from stages import figures, leaderboard, page, wavelets
from stages.common import settings
from stages.common.harness import command
from stages.common.paths import MODELS, NEIGHBOURS, REPORTS, SAMPLES, TIMINGS

GALLERIES = REPORTS / "galleries"
PICTURES = {"method": ("strip", "grid", "neighbours"), "floor": ("grid", "neighbours")}  # of each kind of row
COSTS = ("method", "seconds_per_image", "kid", "kid_se", "label_accuracy")


def curves(parts: dict) -> pl.DataFrame:
    """The histories of all parts in one frame (part, images, loss, lr, grad_norm)."""
    frames = [pl.read_ndjson(MODELS / about.method / name / "history.jsonl") for name, about in parts.items()]
    named = [frame.with_columns(pl.lit(name).alias("part")) for name, frame in zip(parts, frames)]
    return pl.concat(named, how="diagonal").select("part", "images", "loss", "lr", "grad_norm")


def write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def judges_accuracy(rows: list[dict]) -> float | None:
    """How often the judge is right on real held-out images: no method needs to be better."""
    real = next((row for row in rows if row["method"] == "real"), None)
    return real["label_accuracy"] if real else read_json(TIMINGS / "classifier.json")["held_out_accuracy"]


def main() -> None:
    params = settings.load("recipe", "vae", "decompose", "parts", "students", "methods", "evaluate")
    rows = leaderboard.rows_of(params)
    groups, judge = leaderboard.groups(rows), judges_accuracy(rows)
    ordered = [row for group in groups for row in group.methods] + [row for row in rows if row["kind"] == "floor"]
    training = curves(params.parts | params.students)
    write_json(REPORTS / "leaderboard.json", {row["method"]: row for row in ordered})
    with atomic_file(REPORTS / "leaderboard.parquet") as temporary:
        pl.DataFrame(ordered).write_parquet(temporary)
    table = leaderboard.markdown(groups, judge)
    write(REPORTS / "leaderboard.md", table)
    write(REPORTS / "training.csv", training.write_csv())
    quality = [{key: row[key] for key in COSTS} | row["protocol"] for group in groups for row in group.methods]
    write(REPORTS / "quality-time.csv", pl.DataFrame(quality).write_csv())
    repeated = [
        name for name, part in (params.parts | params.students).items() if params.methods[part.method].repeat_of
    ]
    figures.training(training.filter(~pl.col("part").is_in(repeated)), REPORTS / "training.png")
    figures.quality_time(groups, REPORTS / "quality-time.png")
    shown = {row["method"]: PICTURES[row["kind"]] for row in rows}
    with atomic_folder(GALLERIES) as folder:
        for name, kinds in shown.items():
            for kind in kinds:
                made = NEIGHBOURS / f"{name}.png" if kind == "neighbours" else SAMPLES / name / f"{kind}.png"
                shutil.copyfile(made, folder / f"{name}-{kind}.png")
        sections = wavelets.sections(params.decompose, params.parts, folder)
    plots = [REPORTS / "quality-time.png", REPORTS / "training.png"]
    boards = [
        page.Leaderboard(group.protocol["metric"], *leaderboard.table(group, judge), leaderboard.notes(group))
        for group in groups
    ]
    write(REPORTS / "report.html", page.render(params.recipe, boards, plots, shown, GALLERIES, sections))
    print(table)
    for line in wavelets.warnings(sections):
        print(line)
    for name in (name for name, kinds in shown.items() if "strip" in kinds):
        print(f"{name}: {SAMPLES / name / 'grid.png'}, {SAMPLES / name / 'strip.png'}")
    print(f"report: {REPORTS / 'report.html'}")


if __name__ == "__main__":
    command(main, __doc__)
