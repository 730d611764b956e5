"""The leaderboard as text: a table for each protocol, and notes on it.

Nothing here depends on the machine's speed; `measured` adds seconds and memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot

from stages.reporting import tables
from stages.reporting.rows import BESIDE, NEEDS_EQUAL_N, OF_PROMPTS, Group, Row
from stages.reporting.trainings import APART, standard_error

COLUMNS = {
    "method": "method",
    "works_on": "works on",
    "kid": "KID-{metric}",
    "trainings": "trainings",
    "kid_test": "KID-{metric}, test split",
    "kid_second": "KID-{second_metric}",
    "fd": "FD-{metric}",
    "sfid": "sFD-{metric}",
    "fd_dinov2": "FD-DINOv2",
    "inception_score": "IS-{metric}",
    "precision": "precision-{metric}",
    "recall": "recall-{metric}",
    "memorised": "memorised",
    "label_accuracy": "label accuracy",
    "diversity": "diversity",
    "clip_score": "CLIPScore",
    "pick_score": "PickScore",
    "network_calls": "calls",
    "flops_per_image": "GFLOP/image",
    "parameters": "parameters",
    "train_images": "training images",
}
FURTHER = {  # keys of the protocols that have them, in words
    "against": "FD is against",
    "resolution": "Images were resized to",
    "sfid": "sFD is that of the features of places of",
    "dinov2": "DINOv2:",
}
FLOORS = {
    "real": "The floor real: held-out images",
    "autoencoder": "The floor autoencoder: their reconstructions, the loss of quality by the autoencoder alone",
}


def table(
    group: Group, accuracy: float | None, columns: Mapping[str, str] = COLUMNS
) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Headings, rows of methods and rows of floors as text; see `headings`."""
    heads = headings(group, accuracy, columns)
    floors = comparable_floors(group)

    def cells(rows: list[Row]) -> list[list[str]]:
        return [[cell(key, row) for key in heads] for row in rows]

    return list(heads.values()), cells(group.methods), cells(floors)


def headings(group: Group, accuracy: float | None, columns: Mapping[str, str] = COLUMNS) -> dict[str, str]:
    """The headings of the columns that a group has, by key; `accuracy` is that of the classifier on real images.

    They name the extractor, so that no metric is mistaken for FID. columns: key -> heading.
    """
    heads = {key: text.format(**group.protocol) for key, text in columns.items()}
    if not group.protocol["second_extractor"]:
        heads.pop("kid_second", None)
    if "prompts" in group.protocol and "label_accuracy" in heads:
        heads["label_accuracy"] = "alignment"  # the classifier reads what the prompt says
    for key in (*OF_PROMPTS, *BESIDE):
        if all(row.get(key) is None for row in group.methods):
            heads.pop(key, None)
    if "fd" in heads:
        heads["fd"] += "*" * (group.protocol["features"] > group.protocol["n"])
    if accuracy is not None:
        heads["label_accuracy"] += f" (the classifier on real images: {accuracy:.1%})"
    return heads


def comparable_floors(group: Group) -> list[Row]:
    """The floors of a group; one of another number of images without what depends on it."""
    return [row | dict.fromkeys((*NEEDS_EQUAL_N, *BESIDE) if _of_other_n(row, group) else ()) for row in group.floors]


def _of_other_n(floor: Row, group: Group) -> bool:
    return bool(floor["protocol"]["n"] != group.protocol["n"])


def cell(name: str, row: Row) -> str:
    """A value of a row as text."""
    value = row.get(name)
    if value is None:
        return "-"
    if name == "method" and row.get("copies") and row["kind"] == "method":
        return f"{value} (copies)"
    if f"{name}_se" in row:
        return f"{value:.4f} +- {row[f'{name}_se']:.4f}"
    if name == "trainings" and value > 1:
        return f"{value} (sd {row['kid_spread']:.4f})"
    if name == "flops_per_image":
        return f"{value / 1e9:.3g}"
    if name == "parameters":
        return f"{value / 1e6:.2f} M"
    if name == "train_flops":
        return f"{value / 1e15:.3g}"
    if name.endswith("peak_memory_bytes"):
        return f"{value / 2**20:.0f} MiB"
    if name in ("label_accuracy", "memorised", "spread"):
        return f"{value:.1%}"
    if "seconds_per_image" in name:
        return f"{value:.3g}"
    if isinstance(value, float):
        digits = 0 if value.is_integer() or name == "train_seconds" else 4 if value < 10 else 1
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def notes(group: Group) -> list[str]:
    """The notes on a table: which differences are significant, what columns mean, the protocol."""
    about = group.protocol
    lines = _verdicts(group) + [f"{FLOORS[row['method']]}{_left_out(row, group)}." for row in group.floors]
    lines += ["Floors are not ranked."] if group.floors else []
    lines.append(
        "Intervals are one standard error over the images of one training, with the reference held fixed: they cover "
        "other sampling seeds, not other trainings."
    )
    if any(row["trainings"] > 1 for row in group.methods):
        lines.append("Several trainings of a method share a row: means, and the standard deviation of KID over them.")
    if about["n_test"]:
        lines.append(
            "Memorised is the share of images whose ratio of the distances to the nearest and the second nearest "
            "training image is below that of 99 % of held-out images: 1 % is expected if nothing is copied."
        )
    else:
        lines.append("Without a test split, neither KID against it nor copies of training images were measured.")
    if "prompts" in about:
        lines.append(
            "Alignment is the share of images in which the classifier reads what their prompt says. Diversity is the "
            "mean distance of the features of two images of one prompt, relative to real images of that caption: 1 is "
            "as diverse as real."
        )
        scored = [f"{COLUMNS[key]} by {about[key]}" for key in OF_PROMPTS if key in about]
        lines += [f"{', '.join(scored)}."] if scored else []
    if about["features"] > about["n"]:
        lines.append(
            f"* FD has {about['features']} features and N = {about['n']} images: the covariances are singular, and FD "
            "is too large by an amount that depends on N."
        )
    sizes = "both sets whole" if "prc_sets" in about else "sets of equal size: a random subset of the larger one"
    lines.append(f"Precision and recall ({about['prc_neighborhood']} neighbours) use {sizes}.")
    test = f"; test split {about['test']}: {about['n_test']} images" if about["n_test"] else ""
    lines.append(
        f"Extractor {about['extractor']} ({about['resize']}); N = {about['n']}, seeds {about['seeds']}, classes "
        f"{about['labels']}; reference {about['reference']}: {about['n_reference']} {_images(about)}"
        f"{test}; {about['estimator']}."
    )
    lines += [f"{text} {about[key]}." for key, text in FURTHER.items() if key in about]
    if about["second_extractor"]:
        lines.append(f"Second extractor {about['second_extractor']} ({about['second_resize']}).")
    return lines


def _images(about: Row) -> str:
    """What the images of the reference are."""
    return f"images of {about['against']}" if about.get("against_images") else "training images"


def _verdicts(group: Group) -> list[str]:
    """The best method by each extractor, the agreement of the rankings, and the methods that copy."""
    honest, copying = ([row for row in group.methods if row["copies"] is copies] for copies in (False, True))
    metrics = {"kid": group.protocol["metric"], "kid_second": group.protocol["second_metric"]}
    metrics = {key: metric for key, metric in metrics.items() if metric}
    lines = [_first(key, metric, honest) for key, metric in metrics.items() if len(honest) > 1]
    if len(metrics) > 1 and len(group.methods) > 1:
        from scipy.stats import kendalltau  # takes as long to import as the rest of a report to make

        tau = kendalltau(*([row[key] for row in group.methods] for key in metrics)).statistic
        names = " and ".join(f"KID-{metric}" for metric in metrics.values())
        lines.append(f"Kendall's tau of the rankings by {names}: {tau:.2f}.")
    if copying:
        names = ", ".join(row["method"] for row in copying)
        lines.append(f"Methods that copy training images, ranked last: {names}.")
    return lines


def _left_out(floor: Row, group: Group) -> str:
    given = floor["protocol"]["n"]
    return f" (N = {given}: metrics that depend on N are left out)" if _of_other_n(floor, group) else ""


def _first(key: str, metric: str, rows: list[Row]) -> str:
    """The best method, and whether its lead is significant: over trainings if there are several, else over images."""
    first, second = sorted(rows, key=lambda row: row[key])[:2]
    error = hypot(*(standard_error(key, row) for row in (first, second)))
    difference = second[key] - first[key]
    verdict = "significant" if difference > APART * error else "not significant"
    return (
        f"Best KID-{metric}: {first['method']}, {difference:.4f} below {second['method']}, {verdict} at {APART} "
        f"standard errors of the difference ({APART * error:.4f}{_covers(first, second)})."
    )


def _covers(one: Row, other: Row) -> str:
    """What the error of the difference of two rows is over, where it is not over trainings of both."""
    few, many = sorted((one, other), key=lambda row: row["trainings"])
    if many["trainings"] == 1:
        return ", over images alone, not paired by seed"
    if few["trainings"] == 1:
        return f", over {many['trainings']} trainings of {many['method']} and the images of one of {few['method']}"
    return ""


def markdown(
    found: list[Group], accuracy: float | None, columns: Mapping[str, str] = COLUMNS, remarks: Sequence[str] = ()
) -> str:
    """The leaderboard as Markdown: a table for each protocol, with floors in italics at its foot.

    columns: key -> heading, with `remarks` below each table.
    """
    parts = []
    for group in found:
        headings, methods, floors = table(group, accuracy, columns)
        rows = [*methods, *([f"*{row[0]}*", *row[1:]] for row in floors)]
        parts += [tables.markdown(headings, rows, "---"), " ".join([*notes(group), *remarks])]
    return "\n\n".join(parts) + "\n"
