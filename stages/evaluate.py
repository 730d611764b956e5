"""Measures the images of one method against the reference.

Writes reports/measurements/METHOD.json, with the protocol, and of these numbers the few that DVC compares,
reports/metrics/METHOD.json.

The main metric is KID with its standard error: with a few thousand images FD is biased, KID is not. KID is measured
against the training images, against the test split, and by a second extractor. The classifier measures the label
accuracy. Images are tested for copies of training images (multiscale/evaluation/memorisation.py), and
reports/neighbours/METHOD.png shows the most likely copies.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"method": "a key of `methods`"})

from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from multiscale import pictures
from multiscale.core import intact
from multiscale.core.storage import Table, atomic_file, metadata_of, read_json, write_json, write_sealed_json
from multiscale.evaluation import features, memorisation, metrics
from multiscale.evaluation.classifier import accuracy, load
from stages.cluster import pool
from stages.common.errors import BadInput, refuse
from stages.common.harness import tell
from stages.common.images import some
from stages.common.paths import CLASSIFIER, IMAGES, MEASUREMENTS, METRICS, NEIGHBOURS, REFERENCE, SAMPLES
from stages.reference import Extractor, extract
from stages.schema import Experiment

HEADLINE = ("kid", "kid_se", "fd", "label_accuracy", "recall")  # what `dvc metrics` and `dvc exp show` show
SHOWN = 12  # pairs in the picture


def measure(name: str, params: Experiment) -> dict[str, Any]:
    """Measures samples/NAME by the section `evaluate`, and returns the values that it writes."""
    intact.check(IMAGES, REFERENCE, CLASSIFIER, SAMPLES / name)
    section = params.evaluate
    images = SAMPLES / name / "images.safetensors"
    table, title = Table.open(images), f"evaluate {name}"
    fetch = lambda rows: table[rows]["pixels"]  # noqa: E731
    with pool(title, params.run, partial(Extractor, section.extractor, section.weights)) as workers:
        found, logits = extract(title, workers, fetch, len(table), params.run.batch)
    tell(title, "comparing features")
    real, about = load_file(REFERENCE / "features.safetensors"), read_json(REFERENCE / "reference.json")
    rows = table[slice(None)]
    made = metadata_of(images)
    first = made.get("first_seed")  # None for images of the test split
    dealt = rows["label"] if made.get("labels") == "uniform" else None
    values: dict[str, Any] = metrics.distances(
        found, real["real"], logits, dealt, is_splits=section.is_splits, prc_neighborhood=section.prc_neighborhood
    )
    tested = "test" in real and first is not None
    values["kid_test"], values["kid_test_se"] = metrics.kid(found, real["test"], dealt) if tested else (None, None)
    if second := section.second_extractor:
        with pool(title, params.run, partial(Extractor, second, section.weights)) as workers:
            seen, _ = extract(f"{title}, {second}", workers, fetch, len(table), params.run.batch)
        values["kid_second"], values["kid_second_se"] = metrics.kid(seen, real["second"], dealt)
    tell(title, "looking for copies, classifying")
    values["memorised"], values["copies"] = copies(name, rows["pixels"])
    classifier = load(CLASSIFIER)
    values["label_accuracy"] = accuracy(classifier, rows["pixels"], rows["label"]) if classifier else None
    protocol = {
        "extractor": section.extractor,
        "metric": features.LABELS[section.extractor],
        "resize": features.RESIZES[section.extractor],
        "features": found.shape[1],
        "second_extractor": second,
        "second_metric": features.LABELS[second] if second else None,
        "second_resize": features.RESIZES[second] if second else None,
        "n": len(table),
        "labels": made.get("labels"),
        "seeds": None if first is None else f"{first}..{int(first) + len(table) - 1}",
        "n_reference": about["n"],
        "reference": about["reference"],
        "n_test": about["n_test"],
        "test": about["test"],
        "estimator": "KID over all pairs",
        "is_splits": section.is_splits,
        "prc_neighborhood": section.prc_neighborhood,
    }
    write_sealed_json(MEASUREMENTS / f"{name}.json", {**values, "protocol": protocol})
    write_json(METRICS / f"{name}.json", {key: values[key] for key in HEADLINE})
    print(f"{name}: KID-{protocol['metric']} {values['kid']:.5f} +- {values['kid_se']:.5f}, N = {len(table)}")
    return values


def copies(name: str, pixels: Tensor) -> tuple[float | None, bool]:
    """The memorised share of a method's images and whether they are copies; draws the most likely copies."""
    known = load_file(REFERENCE / "copies.safetensors")
    distances, rows = memorisation.nearest(memorisation.small(pixels), known["training"])
    ratios = memorisation.ratios(distances)
    order = ratios.argsort(stable=True)[:SHOWN]
    pairs = torch.cat([pixels[order], some("train", rows[order].tolist())])
    heads = [f"{first:.0f} / {second:.0f}" for first, second in distances[order].tolist()]
    title = f"{name}: the likeliest copies, and their nearest training images"
    picture = pictures.grid(pairs, len(order), heads, title)
    with atomic_file(NEIGHBOURS / f"{name}.png") as temporary:
        picture.save(temporary, "PNG")
    if "held_out_ratios" not in known:
        return None, False
    return memorisation.verdict(ratios, known["held_out_ratios"])


def main(params: Experiment, method: str) -> None:
    if not (SAMPLES / method / "images.safetensors").exists():
        known = dict.fromkeys(part.method for part in params.trained.values())
        if method not in known:
            raise refuse("evaluate", "METHOD", method, f"one of {', '.join(known)}")
        raise BadInput(f"{SAMPLES / method}: {method} is not sampled yet; run dvc repro evaluate@{method}")
    measure(method, params)
