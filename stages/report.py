"""Collects the metrics and costs of all methods into the leaderboard, training curves, plots and an HTML report.

Writes reports/leaderboard.{json,parquet,md}, reports/claims.json, reports/pairs.csv, reports/quality-flops.csv,
reports/training.{csv,png} and reports/validation.csv, none of which depends on the machine's speed. Neither git nor DVC
tracks the files that do: reports/report.md (the leaderboard with seconds and memory, and the published claims),
reports/timing/claims.json (the claims including those about seconds), reports/quality-time.png, and
reports/report.html, a self-contained page.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import polars as pl
from PIL import Image

from multiscale.core import intact
from multiscale.core.storage import (
    atomic_file,
    atomic_folder,
    read_sealed_json,
    write_json,
    write_sealed_json,
    write_text,
)
from stages import assumptions, summary
from stages.common.errors import one_line
from stages.common.images import class_names
from stages.common.paths import IMAGES, METRICS, NEIGHBOURS, PAIRED, REPORTS, SAMPLES, histories, parts_of
from stages.reporting import claims, figures, findings, leaderboard, measured, observed, page, pairs, views, wavelets
from stages.reporting.rows import grouped, rows_of
from stages.schema import Experiment

GALLERIES, TRAINING = REPORTS / "galleries", REPORTS / "training.png"
TABLE, VALIDATED, PAIRS = REPORTS / "training.csv", REPORTS / "validation.csv", REPORTS / "pairs.csv"
QUALITY_TIME, PAGE = REPORTS / "quality-time.png", REPORTS / "report.html"
PICTURES = {"method": ("strip", "grid", "neighbours"), "floor": ("grid", "neighbours")}  # of each kind of row
OF_STEPS, HELD_OUT = ("loss", "lr", "grad_norm"), ("validation_loss",)
CURVES = {"part": pl.String, "images": pl.Int64} | dict.fromkeys((*OF_STEPS, *HELD_OUT), pl.Float64)
COSTS = ("method", "flops_per_image", "kid", "kid_se", "label_accuracy")


def curves(methods: Iterable[str]) -> pl.DataFrame:
    """The histories of the methods' parts in one frame; a row has either a loss or a validation_loss."""
    paths = [path for method in methods for path in histories(method)]
    frames = [
        pl.read_ndjson(path, infer_schema_length=None).with_columns(
            pl.col("images").cast(pl.Int64),  # none are learnt from: 0.0, a mean over updates
            part=pl.lit(path.parent.name),
        )
        for path in paths
    ]
    return pl.concat([pl.DataFrame(schema=CURVES), *frames], how="diagonal").select(*CURVES)


def check_picture(path: Path) -> None:
    """Raises Damaged unless a file is a PNG whose chunks have their checksums, FileNotFoundError if it is not there."""
    try:
        with Image.open(path) as image:
            image.verify()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise intact.Damaged(path, f"damaged: {one_line(error)}") from None


def _picture(name: str, kind: str) -> Path:
    return NEIGHBOURS / f"{name}.png" if kind == "neighbours" else SAMPLES / name / f"{kind}.png"


def main(params: Experiment) -> None:
    published = claims.load()
    intact.check(IMAGES, *(PAIRED / f"{name}.parquet" for name in params.methods))
    rows = rows_of(params)
    shown = {row["method"]: PICTURES[row["kind"]] for row in rows}
    gallery = {f"{name}-{kind}.png": _picture(name, kind) for name, kinds in shown.items() for kind in kinds}
    for name in (*params.methods, *params.evaluate.floors):
        intact.check_folder(SAMPLES / name, "images.safetensors")
    for path in gallery.values():
        check_picture(path)
    groups, real = grouped(rows), [row["label_accuracy"] for row in rows if row["method"] == "real"]
    accuracy = real[0] if real else read_sealed_json(METRICS / "classifier.json")["held_out_accuracy"]  # on real images
    ordered = [row for group in groups for row in group.methods] + [row for row in rows if row["kind"] == "floor"]
    training = curves(params.methods)
    write_json(REPORTS / "leaderboard.json", {row["method"]: row for row in ordered})
    with atomic_file(REPORTS / "leaderboard.parquet") as temporary:
        pl.DataFrame(ordered).write_parquet(temporary)
    write_text(REPORTS / "leaderboard.md", leaderboard.markdown(groups, accuracy))
    evidence = claims.Evidence(params.recipe, {row["method"]: row for row in rows}, list(params.methods))
    write_json(REPORTS / "claims.json", claims.evaluate(published, evidence))
    for path, columns in ((TABLE, OF_STEPS), (VALIDATED, HELD_OUT)):  # apart: DVC draws an empty cell as zero
        write_text(path, training.drop_nulls(columns[0]).select("part", "images", *columns).write_csv())
    differences = pairs.compare(groups, params)
    write_text(PAIRS, pairs.frame(differences).write_csv())
    quality = [{key: row[key] for key in COSTS} | row["protocol"] for group in groups for row in group.methods]
    write_text(REPORTS / "quality-flops.csv", pl.DataFrame(quality).write_csv())
    repeated = [part.name for name, each in params.methods.items() if each.repeat_of for part in parts_of(name)]
    figures.training(training.filter(~pl.col("part").is_in(repeated)), TRAINING)
    with atomic_folder(GALLERIES) as folder:
        for name, path in gallery.items():
            shutil.copyfile(path, folder / name)
        analysed = assumptions.sections(observed.look(params), list(findings.ANALYSES))
        drawn = wavelets.sections(folder)
        titles = {section.title for section in drawn}  # tables of bands among them, there with their plots
        sections = [*(section for section in analysed if section.title not in titles), *drawn]
    sampling = measured.of_sampling()
    timed, remarks = measured.with_seconds(groups, sampling, params), measured.remarks(sampling)
    QUALITY_TIME.unlink(missing_ok=True)
    if sampling:
        figures.quality_time(timed, QUALITY_TIME)
    here = replace(evidence, rows={row["method"]: row for group in timed for row in group.methods}, sampling=sampling)
    judged = claims.evaluate(published, here)
    write_sealed_json(claims.SECONDS, judged)
    board = leaderboard.markdown(timed, accuracy, measured.COLUMNS, remarks)
    write_text(REPORTS / "report.md", f"{board}\n{claims.markdown(judged)}")
    floors = {row["method"]: row for group in timed for row in group.floors}
    everything = [*(row for group in timed for row in group.methods), *floors.values()]
    made = views.Made(params, timed, everything, differences, training, sampling, judged)
    boards = [views.board(group, accuracy, remarks, index) for index, group in enumerate(timed)]
    write_text(PAGE, page.render(views.page(made, boards, class_names(), sections, GALLERIES, [TABLE, PAIRS])))
    print(summary.text(timed))
    for line in views.warnings(timed):
        print(line)
    for line in wavelets.warnings(sections):
        print(line)
    for name in (name for name, kinds in shown.items() if "strip" in kinds):
        print(f"{name}: {SAMPLES / name / 'grid.png'}, {SAMPLES / name / 'strip.png'}")
    print(claims.counted(judged))
    print(*sections[0].lines, sep="\n")
    print(f"report: {PAGE}")
