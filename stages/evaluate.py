"""Measures one method's images against the reference, in reports/metrics/METHOD.json, the protocol written beside.

KID with its interval is the headline: at a few thousand images FD is biased by their number, KID is not. All of KID,
FD, precision and recall use one extractor and layer; the label accuracy is the judge's.
"""

from __future__ import annotations

from functools import partial

from safetensors.torch import load_file

from multiscale import features, metrics
from multiscale.classifier import accuracy, load
from multiscale.core.device import set_threads
from multiscale.core.storage import Table, metadata_of, read_json, write_json
from stages.common import settings
from stages.common.cluster import pool
from stages.common.harness import command
from stages.common.paths import CLASSIFIER, METRICS, REFERENCE, SAMPLES
from stages.reference import Extractor, extract
from stages.schema import Evaluate


def main(method: str) -> None:
    params = settings.load("run", "evaluate")
    section: Evaluate = params.evaluate
    images = SAMPLES / method / "images.safetensors"
    if not images.exists():
        made = ", ".join(sorted(path.name for path in SAMPLES.glob("[!.]*"))) or "none yet"
        raise settings.refuse("evaluate", "METHOD", method, f"a method that has been sampled ({made})")
    set_threads()
    table, title = Table.open(images), f"evaluate {method}"
    with pool(title, params.run, partial(Extractor, section)) as workers:
        found, logits = extract(title, workers, lambda rows: table[rows]["pixels"], len(table), section.batch)
    real = load_file(REFERENCE / "features.safetensors")["distance"]
    about = read_json(REFERENCE / "reference.json")
    judge = load(CLASSIFIER)
    rows = table[slice(None)]
    values = metrics.distances(
        found,
        real,
        logits,
        kid_subsets=section.kid_subsets,
        kid_subset_size=section.kid_subset_size,
        is_splits=section.is_splits,
        prc_neighborhood=section.prc_neighborhood,
    )
    values["label_accuracy"] = accuracy(judge, rows["pixels"], rows["label"]) if judge else None
    first = int(metadata_of(images)["first_seed"])
    protocol = {
        "extractor": section.extractor,
        "name": features.LABELS[section.extractor],
        "resize": "bicubic antialiased to 128"
        if section.extractor == features.EFFICIENTNET
        else "TensorFlow bilinear to 299",
        "n": len(table),
        "seeds": f"{first}..{first + len(table) - 1}",
        "n_reference": about["n"],
        "reference": about["reference"],
        "kid": f"{section.kid_subsets} subsets of {section.kid_subset_size}",
    }
    write_json(METRICS / f"{method}.json", {**values, "protocol": protocol})
    print(f"{method}: KID-{protocol['name']} {values['kid']:.5f} +- {values['kid_std']:.5f}, N = {len(table)}")


if __name__ == "__main__":
    command(main, __doc__, {"method": "a key of `methods`"})
