"""Gathers every method's metrics and costs: the leaderboard, training curves, plots and one page to look at.

Writes reports/leaderboard.{json,parquet,md}, reports/training.csv, reports/quality-time.csv, the PNG plots and
reports/report.html, which holds its pictures and opens anywhere. Rows measured by different protocols are never put
into one table.
"""

from __future__ import annotations

import json
import shutil
from itertools import groupby
from pathlib import Path

import polars as pl

from multiscale.core.storage import atomic_file, atomic_folder, read_json, write_json
from stages import figures, page, wavelets
from stages.common import settings
from stages.common.harness import command
from stages.common.paths import METRICS, MODELS, REPORTS, SAMPLES, TIMINGS

GALLERIES = REPORTS / "galleries"
COLUMNS = {
    "method": "method",
    "kid": "KID",
    "kid_std": "+-",
    "fd": "FD",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "label_accuracy": "label accuracy",
    "seconds_per_image": "s/image",
    "seconds_per_image_batch_1": "s/image, batch 1",
    "network_calls": "calls",
    "flops_per_image": "GFLOP/image",
    "parameters": "parameters",
    "train_images": "training images",
    "train_seconds": "training s",
    "peak_memory_bytes": "peak memory",
}


def row_of(name: str, params) -> dict:
    """One line of the leaderboard: quality, cost and the protocol that both were measured by."""
    metrics, cost = read_json(METRICS / f"{name}.json"), read_json(TIMINGS / f"sample-{name}.json")
    trained = params.parts | params.students
    parts = {part: about for part, about in trained.items() if about.method == name}
    timings = [read_json(TIMINGS / f"{part}.json") for part in parts]
    protocol = metrics.pop("protocol")
    return {
        "method": name,
        "recipe": params.recipe,
        **metrics,
        "seconds_per_image": cost["seconds_per_image"],
        "seconds_per_image_batch_1": cost["seconds_per_image_batch_1"],
        "batch": cost["batch"],
        "network_calls": cost["network_calls"],
        "flops_per_image": cost["flops_per_image"],
        "parameters": cost["parameters"],
        "train_images": sum(about.training.images for about in parts.values()),
        "train_seconds": round(sum(timing["train_seconds"] for timing in timings), 2),
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "train_peak_memory_bytes": max(timing["peak_memory_bytes"] for timing in timings),
        "n": protocol["n"],
        "extractor": protocol["extractor"],
        "metric": protocol["name"],
        "seeds": protocol["seeds"],
        "resize": protocol["resize"],
        "n_reference": protocol["n_reference"],
        "reference": protocol["reference"],
        "kid_protocol": protocol["kid"],
        "device": cost["device"],
    }


PROTOCOL = ("extractor", "metric", "resize", "n", "seeds", "n_reference", "reference", "kid_protocol")


def by_protocol(rows: list[dict]) -> list[tuple[dict, list[dict]]]:
    """Rows in groups that may be compared, best KID first."""

    def key(row: dict) -> str:
        return json.dumps([row[name] for name in PROTOCOL])

    groups = [list(group) for _, group in groupby(sorted(rows, key=key), key)]
    return [({name: g[0][name] for name in PROTOCOL}, sorted(g, key=lambda r: r["kid"])) for g in groups]


def cell(name: str, value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if name == "flops_per_image":
        return f"{value / 1e9:.3g}"
    if name == "parameters":
        return f"{value / 1e6:.2f} M"
    if name == "peak_memory_bytes":
        return f"{value / 2**20:.0f} MiB"
    if name == "label_accuracy":
        return f"{value:.1%}"
    if name.startswith("seconds_per_image"):
        return f"{value:.3g}"
    if isinstance(value, float):
        digits = 0 if value.is_integer() or name == "train_seconds" else 4 if value < 10 else 1
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def headings(metric: str) -> list[str]:
    """The table's headings; distances carry their extractor's name, so that none is mistaken for FID."""
    return [f"{text}-{metric}" if name in ("kid", "fd") else text for name, text in COLUMNS.items()]


def markdown(rows: list[dict]) -> str:
    """The leaderboard as Markdown, one table a protocol."""
    parts = []
    for protocol, group in by_protocol(rows):
        lines = ["| " + " | ".join(headings(protocol["metric"])) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(cell(name, row[name]) for name in COLUMNS) + " |" for row in group]
        about = [
            f"Extractor {protocol['extractor']} ({protocol['resize']})",
            f"N = {protocol['n']}, seeds {protocol['seeds']}",
            f"reference {protocol['reference']}: {protocol['n_reference']} training images",
            f"KID over {protocol['kid_protocol']}.",
        ]
        parts.append("\n".join([*lines, "", "; ".join(about)]))
    return "\n\n".join(parts) + "\n"


def curves(parts: dict) -> pl.DataFrame:
    """The histories of all parts in one frame (part, images, loss, lr, grad_norm)."""
    frames = [pl.read_ndjson(MODELS / about.method / name / "history.jsonl") for name, about in parts.items()]
    named = [frame.with_columns(pl.lit(name).alias("part")) for name, frame in zip(parts, frames)]
    return pl.concat(named, how="diagonal").select("part", "images", "loss", "lr", "grad_norm")


def write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def main() -> None:
    params = settings.load("recipe", "decompose", "parts", "students", "methods")
    rows = [row_of(name, params) for name in params.methods]
    ordered = [row for _, group in by_protocol(rows) for row in group]
    training = curves(params.parts | params.students)
    write_json(REPORTS / "leaderboard.json", {row["method"]: row for row in ordered})
    with atomic_file(REPORTS / "leaderboard.parquet") as temporary:
        pl.DataFrame(ordered).write_parquet(temporary)
    table = markdown(rows)
    write(REPORTS / "leaderboard.md", table)
    write(REPORTS / "training.csv", training.write_csv())
    costs = ("method", "seconds_per_image", "kid", "kid_std", "label_accuracy")
    quality = pl.DataFrame(ordered).select(*costs, *PROTOCOL)
    write(REPORTS / "quality-time.csv", quality.write_csv())
    figures.training(training, REPORTS / "training.png")
    figures.quality_time([group for _, group in by_protocol(rows)], REPORTS / "quality-time.png")
    with atomic_folder(GALLERIES) as folder:
        for name in params.methods:
            for picture in ("grid", "strip"):
                shutil.copyfile(SAMPLES / name / f"{picture}.png", folder / f"{name}-{picture}.png")
        sections = wavelets.sections(params.decompose, params.parts, folder)
    groups = [
        (protocol, headings(protocol["metric"]), [[cell(name, row[name]) for name in COLUMNS] for row in group])
        for protocol, group in by_protocol(rows)
    ]
    plots = [REPORTS / "quality-time.png", REPORTS / "training.png"]
    html = page.render(params.recipe, groups, plots, list(params.methods), GALLERIES, sections)
    write(REPORTS / "report.html", html)
    print(table)
    for line in wavelets.warnings(sections):
        print(line)
    for name in params.methods:
        print(f"{name}: {SAMPLES / name / 'grid.png'}, {SAMPLES / name / 'strip.png'}")
    print(f"report: {REPORTS / 'report.html'}")


if __name__ == "__main__":
    command(main, __doc__)
