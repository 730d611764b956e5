"""Writes the tables of docs/performance.md from the raw figures in benchmarks/results.

python -m benchmarks.page     # after peers, floor, roofline, growth, timing, flows, start or a run of the recipe
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable

from benchmarks.common import RESULTS, ROOT
from stages.reporting.tables import markdown

GLIBC = "glibc's allocator"  # a version without a bar
PAGE = ROOT / "docs" / "performance.md"
SETUP = ("peers", "floor", "roofline", "growth", "timing", "flows", "start")
ONE_LINE = ("latents", "decompose", "floor")  # kinds of stages that are short


def raw(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def seconds(value: float) -> str:
    """Three digits, in ms below a second."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def spread(found: dict[str, float]) -> str:
    return f"{found['median']:.2f}x ({found['q1']:.2f} to {found['q3']:.2f})"


def setup(names: Iterable[str] = SETUP) -> str:
    """The hardware and the versions of each raw file."""
    rows = []
    for name in names:
        about = raw(name)
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        hardware = f"{about['processor']}, {about['device']}"
        rows.append([f"`{name}.json`", about.get("date", "-"), hardware, f"Python {about['python']}, {versions}"])
    return markdown(["raw file", "measured", "hardware", "versions"], rows)


def peers() -> str:
    rows = []
    for section in raw("peers")["sections"].values():
        for row in section:
            size = row.get("batch") or row.get("images") or "x".join(map(str, row.get("shape", ["-"])))
            ours = seconds(statistics.median(row["seconds"]["ours"]) / row["block"])
            for name, found in row["times_faster"].items():
                about = [row["what"], str(row.get("precision", "-")), str(size), str(row["repeats"]), ours]
                holds = {True: "yes", False: "**no**"}[row["holds"][name]] if name != GLIBC else "-"
                rows.append([*about, name, spread(found), holds])
    head = ["what", "precision", "batch", "repeats", "ours", "against", "ours is faster (quartiles)", "bar holds"]
    return markdown(head, rows)


def floor() -> str:
    about = raw("floor")
    rows = [
        [what, f"{row['ratio']['median']:.3f}", f"{row['ratio']['q1']:.3f} to {row['ratio']['q3']:.3f}"]
        for what, row in about["rows"].items()
    ]
    return markdown(["what", "ratio to plain torch", "quartiles"], rows)


def peaks() -> str:
    about = raw("roofline")
    threads = list(about["gflops_of_products"]["bf16"])
    rows = [
        [f"matrix product of 2048, {name}, GFLOP/s", *(f"{each[n]:.0f}" for n in threads)]
        for name, each in about["gflops_of_products"].items()
    ]
    rows += [
        [f"triad in the {name}, GB/s".replace("in the memory", "in memory"), *(f"{each[n]:.1f}" for n in threads)]
        for name, each in about["gbytes_of_triads"].items()
    ]
    return markdown(["peak", *(f"{n} thread{'s' * (n != '1')}" for n in threads)], rows)


def roofline() -> str:
    rows = []
    for row in raw("roofline")["rows"]:
        time = statistics.median(row["seconds"])
        products = row["bound_seconds_of"].get("products", 0.0) / time
        rows.append(
            [
                row["name"],
                row["pass"],
                row["precision"],
                str(row["batch"]),
                f"{row['flops'] / 1e9:.2f}",
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['operators']:.0f}",
                seconds(time),
                f"{row['gflops']:.0f}",
                f"{row['share']:.0%}",
                f"{products:.0%}",
            ]
        )
    head = ["network", "pass", "precision", "batch", "GFLOP", "MB", "operators", "time", "GFLOP/s", "share"]
    return markdown([*head, "of which products"], rows)


def gaps() -> str:
    rows = []
    for row in raw("roofline")["largest_gaps"]:
        slow = ", ".join(f"`{each['operator']}` {each['share']:.0%}" for each in row["slowest"])
        rows.append([row["name"], seconds(row["gap_seconds"]), f"{row['passes']:,.0f}", slow])
    return markdown(["network", "above the bound, in a training", "passes", "slowest operators of a pass"], rows)


def growth() -> str:
    rows = []
    for section in raw("growth")["sections"].values():
        for row in section:
            first, last, found = row["points"][0], row["points"][-1], row["exponents"]
            memory = f"{found['memory']:.2f}" if "memory" in found else "-"
            sizes = f"{first['size']:,.0f} to {last['size']:,.0f}"
            times = f"{seconds(first['seconds'])} to {seconds(last['seconds'])}"
            exponents = [f"{found['seconds']:.2f}", f"{found['work']:.2f}", memory]
            rows.append([row["what"], sizes, times, f"{last['mib']:,.0f} MiB", *exponents])
    head = ["what", "sizes", "time", "memory at the largest", "exponent of time", "of work", "of memory"]
    return markdown(head, rows)


def timing() -> str:
    rows = []
    for beside, batches in raw("timing")["against_the_first"].items():
        for batch, found in batches.items():
            for kind, row in found.items():
                moved, swapped = row["seconds_over_first"], row["swapped"]
                pairs = "; ".join(f"{pair} ({was:.2f})" for pair, was in swapped.items())
                span = f"{moved['min']:.2f} to {moved['max']:.2f}"
                rows.append([beside, batch, kind, f"{row['kendall_tau']:.2f}", span, pairs or "-"])
    return markdown(
        ["beside", "batches", "figure", "Kendall's tau", "seconds over those of idle", "pairs that change places"], rows
    )


def stages() -> str:
    """Seconds of each stage of the embedded run, in the first recipe and now."""
    first = raw("stages_first")["seconds"]
    now = json.loads((ROOT / "flows" / "seconds" / "embedded.json").read_text())
    lines: dict[str, list[str]] = {}  # the stages of each line, in the order of the table
    order = list(dict.fromkeys(name.partition("@")[0] for name in first))
    for name in sorted(first.keys() & now.keys(), key=lambda name: (order.index(name.partition("@")[0]), name)):
        kind = name.partition("@")[0]
        lines.setdefault(kind if kind in ONE_LINE else name, []).append(name)
    rows = []
    for line, names in lines.items():
        before, after = (sum(found[name] for name in names) for found in (first, now))
        title = f"`{line}`, {len(names)} stages" if len(names) > 1 else f"`{line}`"
        rows.append([title, f"{before:,.0f}", f"{after:,.1f}", f"{after / before:.2f}"])
    both, alone = sum(now[name] for name in first), [seconds for name, seconds in now.items() if name not in first]
    before = sum(first.values())
    rows.append([f"these {len(first)} stages", f"{before:,.0f}", f"{both:,.1f}", f"{both / before:.2f}"])
    rows.append([f"{len(alone)} stages that the first recipe had not", "-", f"{sum(alone):,.1f}", "-"])
    rows.append(["all stages", f"{before:,.0f}", f"{sum(now.values()):,.1f}", f"{sum(now.values()) / before:.2f}"])
    return markdown(["stage", "first recipe (estimates), s", "now, s", "now / first"], rows)


def start() -> str:
    found = {name: row["median"] for name, row in raw("start")["stages"].items()}
    rows = [[f"`{name}`", seconds(each["wall"]), seconds(each["processor"])] for name, each in found.items()]
    return markdown(["stage", "to its first batch", "processor time"], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    each.__name__: each for each in (setup, peers, floor, peaks, roofline, gaps, growth, timing, stages, start)
}


def filled(text: str) -> str:
    """The page with every block between <!-- NAME --> and <!-- /NAME --> written anew."""
    for name, write in BLOCKS.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, w=write: f"{m[1]}{w()}\n{m[2]}", text, flags=re.S
        )
        if count != 1:
            raise ValueError(f"{PAGE}: {count} blocks '{name}'; allowed: one")
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
