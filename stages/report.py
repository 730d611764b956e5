"""Collects the metrics and costs of all methods into the leaderboard, training curves, plots and an HTML report.

Writes reports/leaderboard.{json,parquet,md}, reports/training.csv, reports/quality-time.csv, the PNG plots and
reports/report.html, in which the pictures are embedded.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

import shutil
from collections.abc import Iterable

import polars as pl

from multiscale.core.storage import atomic_file, atomic_folder, read_json, write_json, write_text
from stages import figures, leaderboard, page, wavelets
from stages.common.paths import NEIGHBOURS, REPORTS, SAMPLES, TIMINGS, parts_of
from stages.schema import Experiment

GALLERIES, TRAINING = REPORTS / "galleries", REPORTS / "training.png"
PICTURES = {"method": ("strip", "grid", "neighbours"), "floor": ("grid", "neighbours")}  # of each kind of row
COSTS = ("method", "seconds_per_image", "kid", "kid_se", "label_accuracy")


def curves(methods: Iterable[str]) -> pl.DataFrame:
    """The histories of the methods' parts in one frame (part, images, loss, lr, grad_norm)."""
    parts = [part for method in methods for part in parts_of(method)]
    frames = [pl.read_ndjson(part / "history.jsonl").with_columns(part=pl.lit(part.name)) for part in parts]
    return pl.concat(frames, how="diagonal").select("part", "images", "loss", "lr", "grad_norm")


def main(params: Experiment) -> None:
    rows = leaderboard.rows_of(params)
    groups, real = leaderboard.groups(rows), [row["label_accuracy"] for row in rows if row["method"] == "real"]
    accuracy = real[0] if real else read_json(TIMINGS / "classifier.json")["held_out_accuracy"]  # on real images
    ordered = [row for group in groups for row in group.methods] + [row for row in rows if row["kind"] == "floor"]
    training = curves(params.methods)
    write_json(REPORTS / "leaderboard.json", {row["method"]: row for row in ordered})
    with atomic_file(REPORTS / "leaderboard.parquet") as temporary:
        pl.DataFrame(ordered).write_parquet(temporary)
    table = leaderboard.markdown(groups, accuracy)
    write_text(REPORTS / "leaderboard.md", table)
    write_text(REPORTS / "training.csv", training.write_csv())
    quality = [{key: row[key] for key in COSTS} | row["protocol"] for group in groups for row in group.methods]
    write_text(REPORTS / "quality-time.csv", pl.DataFrame(quality).write_csv())
    repeated = [part.name for name, each in params.methods.items() if each.repeat_of for part in parts_of(name)]
    figures.training(training.filter(~pl.col("part").is_in(repeated)), TRAINING)
    figures.quality_time(groups, REPORTS / "quality-time.png")
    shown = {row["method"]: PICTURES[row["kind"]] for row in rows}
    with atomic_folder(GALLERIES) as folder:
        for name, kinds in shown.items():
            for kind in kinds:
                made = NEIGHBOURS / f"{name}.png" if kind == "neighbours" else SAMPLES / name / f"{kind}.png"
                shutil.copyfile(made, folder / f"{name}-{kind}.png")
        sections = wavelets.sections(folder)
    plots = [REPORTS / "quality-time.png", TRAINING]
    boards = [
        page.Leaderboard(group.protocol["metric"], *leaderboard.table(group, accuracy), leaderboard.notes(group))
        for group in groups
    ]
    write_text(REPORTS / "report.html", page.render(params.recipe, boards, plots, shown, GALLERIES, sections))
    print(table)
    for line in wavelets.warnings(sections):
        print(line)
    for name in (name for name, kinds in shown.items() if "strip" in kinds):
        print(f"{name}: {SAMPLES / name / 'grid.png'}, {SAMPLES / name / 'strip.png'}")
    print(f"report: {REPORTS / 'report.html'}")
