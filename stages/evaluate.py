"""Measures the images of one method against the reference.

Writes all numbers and the protocol to reports/measurements/METHOD.json, the few numbers that DVC compares to
reports/metrics/METHOD.json, and the contribution of each image to KID and accuracy to reports/paired/METHOD.parquet,
from which methods are compared seed by seed.

The main metric is KID with its standard error: with a few thousand images FD is biased, KID is not. KID is measured
against the training images (or the images that evaluate.reference names), against the test split, and with a second
extractor. Inception also gives sFID, and evaluate.dinov2 adds FD-DINOv2. The classifier measures the label
accuracy. For images with prompts, the diversity among the images of a prompt is measured too, and the scores that
evaluate.clip_score and evaluate.pick_score enable. Images are tested for copies of training images
(multiscale/evaluation/memorisation.py), and reports/neighbours/METHOD.png shows the most likely copies.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"method": "a key of `methods`"})

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from torch import Tensor

from multiscale import pictures
from multiscale.core import intact
from multiscale.core.storage import (
    CHECKSUM,
    Table,
    atomic_file,
    metadata_of,
    read_json,
    write_json,
    write_sealed_json,
)
from multiscale.evaluation import memorisation, metrics, prompts
from multiscale.evaluation.classifier import Classifier, hits, load
from stages.common import enough, images
from stages.common.cluster import Pool, pool
from stages.common.errors import BadInput, one_line, refuse
from stages.common.extraction import Extractor, extract, fetched, further
from stages.common.harness import progress, tell
from stages.common.paths import (
    CLASSIFIER,
    EXPERIMENT,
    IMAGES,
    MEASUREMENTS,
    METRICS,
    NEIGHBOURS,
    PAIRED,
    PROMPTS,
    REFERENCE,
    SAMPLES,
    STEPS,
)
from stages.common.protocol import protocol_of, published, weights_of
from stages.schema import Experiment
from stages.schema.data import Evaluate

HEADLINE = ("kid", "kid_se", "fd", "label_accuracy", "recall")  # what `dvc metrics` and `dvc exp show` show
SHOWN = 12  # pairs in the picture
BATCH = 50  # images a batch in the scores of prompts
Row = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """What data/reference holds: features by name, published statistics of their layers, and what they are of."""

    features: dict[str, Tensor]
    statistics: dict[str, metrics.Statistics]
    about: Row

    @classmethod
    def read(cls) -> Self:
        known = {path.stem.removesuffix("-statistics"): load_numpy(path) for path in REFERENCE.glob("*-statistics.*")}
        return cls(load_file(REFERENCE / "features.safetensors"), known, read_json(REFERENCE / "reference.json"))

    def kid(self, key: str, found: Tensor, dealt: Tensor | None) -> tuple[float, float]:
        """`metrics.kid` of features against those of the name `key`; dealt: the classes, if their shares are fixed."""
        return metrics.kid(found, self.features[key], dealt, self.about["within"][key])


def measure(name: str, params: Experiment) -> Row:
    """Measures samples/NAME by the section `evaluate`, and returns the values that it writes."""
    intact.check(IMAGES, REFERENCE, CLASSIFIER, SAMPLES / name)
    section, path, title = params.evaluate, SAMPLES / name / "images.safetensors", f"evaluate {name}"
    table = Table.open(path)
    check_images(path, table, section)
    with pool(title, params.run, partial(Extractor, section.extractor, section.weights)) as workers:
        layers = extract(title, workers, fetched(table, section.resolution), len(table), params.run.batch)
        others = [(about, *_features(name, about["steps"], workers, params)) for about in _others(name)]
    tell(title, "comparing features")
    reference, rows, made = Reference.read(), table[slice(None)], metadata_of(path)
    first = made.get("first_seed")  # None for images of the test split
    dealt = rows["label"] if made.get("labels") == "uniform" else None
    values, added = against(reference, layers, dealt, section, tested=first is not None)
    values |= by_further(title, table, reference, dealt, params)
    tell(title, "looking for copies, classifying")
    values["memorised"], values["copies"] = copies(name, rows["pixels"])
    classifier = load(CLASSIFIER)
    right = hits(classifier, rows["pixels"], rows["label"]) if classifier else None
    values["label_accuracy"] = _share(right)
    if others:
        values["steps"] = [
            cost | _of_steps(found, few, reference, classifier, dealt is not None) for cost, found, few in others
        ]
    if first is not None:
        write_contributions(name, int(first), rows["label"], added, right)
    real = reference.features["real"] if reference.about["split"] else None
    of_text, how = of_prompts(name, section, layers[0], real, rows["pixels"])
    protocol = protocol_of(section, reference.about, made, len(table), layers) | how
    protocol |= published(section, reference.about, len(layers) > 2)
    values |= of_text
    write_sealed_json(MEASUREMENTS / f"{name}.json", {**values, "protocol": protocol})
    write_json(METRICS / f"{name}.json", {key: values[key] for key in HEADLINE})
    print(f"{name}: KID-{protocol['metric']} {values['kid']:.5f} +- {values['kid_se']:.5f}, N = {len(table)}")
    return values


def against(
    reference: Reference, layers: Sequence[Tensor], dealt: Tensor | None, section: Evaluate, tested: bool
) -> tuple[Row, Tensor]:
    """What is measured against the reference by the first extractor, and what each image adds to KID.

    layers: as `Extractor.extract` gives them. dealt: the classes, if their shares are fixed. tested: against the test
    split too, if there is one.
    """
    found, logits, *spatial = layers
    real, known = reference.features, reference.statistics
    kid, error, added = metrics.kid_by_image(found, real["real"], dealt, reference.about["within"]["real"])
    values: Row = {"kid": kid, "kid_se": error}
    values |= metrics.distances(
        found,
        real["real"],
        logits,
        is_splits=section.is_splits,
        prc_neighborhood=section.prc_neighborhood,
        known=known.get("real"),
        equal=reference.about.get("against") is None,
    )
    if spatial:
        values["sfid"] = metrics.frechet(spatial[0], known.get("spatial", real["spatial"]))
    tested = tested and "test" in real
    values["kid_test"], values["kid_test_se"] = reference.kid("test", found, dealt) if tested else (None, None)
    return values, added


def by_further(title: str, table: Table, reference: Reference, dealt: Tensor | None, params: Experiment) -> Row:
    """What is measured against the reference by the further extractors of the protocol."""
    values: Row = {}
    section = params.evaluate
    for key, extractor, weights in further(section):
        fetch = fetched(table, section.resolution)
        with pool(title, params.run, partial(Extractor, extractor, weights)) as workers:
            found, *_ = extract(f"{title}, {extractor}", workers, fetch, len(table), params.run.batch)
        if key == "second":
            values["kid_second"], values["kid_second_se"] = reference.kid(key, found, dealt)
        else:
            values["fd_dinov2"] = metrics.frechet(found, reference.features[key])
    return values


def check_images(path: Path, table: Table, section: Evaluate) -> None:
    """Raises BadInput for images that are too few for the metrics, or all the same: they have no covariance."""
    fewest = enough.fewest_of_floors(section)
    if len(table) < fewest:
        why = "for a standard error, evaluate.is_splits and evaluate.prc_neighborhood"
        raise BadInput(f"{path}: images: {len(table)} are too few; allowed: at least {fewest}, {why}")
    pixels = table.arrays["pixels"]
    if not any((pixels[k] != pixels[0]).any() for k in range(1, len(table))):
        why = "images that differ; the weights in models are of a training that failed, or of none"
        raise BadInput(f"{path}: images: all {len(table)} are the same; allowed: {why}")


def _others(name: str) -> list[Row]:
    """What is known of the images of further numbers of steps."""
    path = SAMPLES / name / STEPS
    return [{"steps": int(steps), **cost} for steps, cost in read_json(path).items()] if path.exists() else []


def _features(name: str, steps: int, workers: Pool, params: Experiment) -> tuple[Tensor, Row]:
    """The features of the images of another number of steps, and the images."""
    table = Table.open(SAMPLES / name / f"images-{steps}.safetensors")
    fetch = fetched(table, params.evaluate.resolution)
    found, *_ = extract(f"evaluate {name}, {steps} steps", workers, fetch, len(table), params.run.batch)
    return found, table[slice(None)]


def _of_steps(found: Tensor, rows: Row, reference: Reference, classifier: Classifier | None, dealt: bool) -> Row:
    """What is measured of the images of another number of steps: KID, which does not depend on how many they are."""
    kid, error = reference.kid("real", found, rows["label"] if dealt else None)
    right = hits(classifier, rows["pixels"], rows["label"]) if classifier else None
    return {"kid": kid, "kid_se": error, "label_accuracy": _share(right), "n": len(found)}


def _share(right: Tensor | None) -> float | None:
    return right.float().mean().item() if right is not None else None


def write_contributions(name: str, first: int, labels: Tensor, kid: Tensor, right: Tensor | None) -> None:
    """Writes what each image adds to KID, and whether it shows its class; null without classes."""
    columns = {"seed": first + np.arange(len(labels)), "label": labels.numpy(), "kid": kid.numpy()}
    known = right.numpy() if right is not None else [None] * len(labels)
    rows = pl.DataFrame(columns).with_columns(correct=pl.Series(known, dtype=pl.Boolean))
    with atomic_file(PAIRED / f"{name}.parquet") as temporary:
        rows.write_parquet(temporary, metadata={CHECKSUM: intact.BLANK})
        intact.seal_file(temporary)


def of_prompts(name: str, section: Evaluate, found: Tensor, real: Tensor | None, pixels: Tensor) -> tuple[Row, Row]:
    """What is measured of images with prompts, and its protocol; nothing of others.

    found, real: features of the images and of the training images; None: without the latter there is no diversity.
    """
    if not (path := SAMPLES / name / PROMPTS).exists():
        return {}, {}
    told = pl.read_parquet(path)["prompt"].to_list()
    apart = None
    if real is not None:
        captions = images.captions("train")[images.CAPTION]
        known = captions[images.evenly(len(captions), len(real)).tolist()].to_list()
        apart = prompts.diversity(found, told, real, known)
    values: Row = dict(zip(("diversity", "diversity_se"), apart or (None, None)))
    protocol: Row = {"prompts": len(set(told))}
    for place, key in enumerate(("clip_score", "pick_score")):
        if folder := getattr(section, key):
            scores = _scores(key, Path(folder), pixels, told)[place]
            values |= {key: float(scores.mean()), f"{key}_se": float(scores.std() / len(scores) ** 0.5)}
            protocol[key] = weights_of(Path(folder))
    return values, protocol


def _scores(key: str, folder: Path, pixels: Tensor, told: list[str]) -> tuple[Tensor, Tensor]:
    try:
        scorer = prompts.Scorer(folder)
    except (OSError, ValueError) as error:
        why = one_line(error)[:200]
        raise refuse(EXPERIMENT, f"evaluate.{key}", str(folder), f"a CLIP as transformers saves it ({why})") from None
    pairs = []
    with progress(f"evaluate, {key}", len(told)) as reach:
        for start in range(0, len(told), BATCH):
            pairs.append(scorer.scores(pixels[start : start + BATCH], told[start : start + BATCH]))
            reach(start + BATCH)
    clip, pick = (torch.cat(each) for each in zip(*pairs))
    return clip, pick


def copies(name: str, pixels: Tensor) -> tuple[float | None, bool]:
    """The memorised share of a method's images and whether they are copies; draws the most likely copies."""
    known = load_file(REFERENCE / "copies.safetensors")
    distances, rows = memorisation.nearest(memorisation.small(pixels), known["training"])
    ratios = memorisation.ratios(distances)
    order = ratios.argsort(stable=True)[:SHOWN]
    pairs = torch.cat([pixels[order], images.training_pixels(rows[order])])
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
