"""Results of an experiment, written by hand, and what the report makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import Project, sealed, write_images
from PIL import Image
from safetensors.numpy import save_file

from stages.common import timings
from stages.common.paths import COSTS, SAMPLES

FIELDS = "method recipe kid kid_se fd label_accuracy network_calls flops_per_image parameters train_images"
FIELDS += " protocol memorised copies works_on trainings kid_test kid_second"
PROTOCOL = {
    "extractor": "efficientnet-lite0",
    "metric": "EffLite0",
    "resize": "bicubic antialiased to 128",
    "features": 1280,
    "second_extractor": "efficientnet-lite2",
    "second_metric": "EffLite2",
    "second_resize": "bicubic antialiased to 128",
    "n": 40,
    "labels": "uniform",
    "seeds": "0..39",
    "n_reference": 60,
    "reference": "0123456789abcdef",
    "n_test": 50,
    "test": "123456789abcdef0",
    "estimator": "KID over all pairs",
    "is_splits": 10,
    "prc_neighborhood": 3,
}
OTHER = {  # each of these makes another protocol
    "extractor": "inception-v3-compat",
    "metric": "Inception",
    "resize": "TensorFlow bilinear to 299",
    "features": 2048,
    "second_extractor": "efficientnet-lite0",
    "second_metric": "EffLite0",
    "second_resize": "bicubic antialiased to 260",
    "n": 41,
    "labels": "data",
    "seeds": "7..46",
    "n_reference": 61,
    "reference": "fedcba9876543210",
    "n_test": 51,
    "test": "0fedcba987654321",
    "estimator": "KID over 5 subsets of 21",
    "is_splits": 5,
    "prc_neighborhood": 5,
}
METRICS = {
    "dit": {"kid": 0.25, "kid_se": 0.01, "fd": 120.0, "label_accuracy": 0.5, "memorised": 0.01, "kid_second": 0.5},
    "msf": {"kid": 0.125, "kid_se": 0.02, "fd": 110.0, "label_accuracy": 0.75, "memorised": 0.0, "kid_second": 0.25},
}
FLOORS = {
    "real": {"kid": 0.0078125, "kid_se": 0.001, "fd": 20.0, "label_accuracy": 0.9375, "memorised": 0.02},
    "autoencoder": {"kid": 0.0625, "kid_se": 0.002, "fd": 60.0, "label_accuracy": 0.875, "memorised": 0.0},
}
REST = {"inception_score": 2.0, "inception_score_std": 0.1, "precision": 0.5, "recall": 0.25, "copies": False}
REST |= {"kid_test": 0.3, "kid_test_se": 0.03, "kid_second_se": 0.05}
COST = {"network_calls": 8, "flops_per_image": 2.5e9, "parameters": 1234567}
TIMED = {
    "seconds_per_image": 0.5,
    "processor_seconds_per_image": 0.25,
    "spread": 0.125,
    "busy_rounds": 1,
    "seconds_per_image_batch_1": 1.5,
}
SAMPLING = {
    "device": "an abacus",
    "load_average": 1.5,
    "batch": 20,
    "rounds": 3,
    "reference": {"flops": 4.8e9, "seconds": 0.0625},
    "methods": {name: TIMED for name in METRICS},
}
SECONDS = {"dit": 30.0, "msf-0": 10.5, "msf-1": 20.25}


def put_json(path: str, value: dict) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value))


def put_measured(name: str, metrics: dict, protocol: dict) -> None:
    """Writes the metrics of a method or floor, and the grid of its images."""
    put_json(f"reports/measurements/{name}.json", {**metrics, "protocol": protocol})
    sealed(f"reports/measurements/{name}.json")
    for path in (f"samples/{name}/grid.png", f"reports/neighbours/{name}.png"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 7), len(path)).save(path)
    draws = np.random.default_rng(len(name))
    rows = {"pixels": draws.integers(0, 256, (40, 1, 32, 32), np.uint8), "label": np.arange(40) % 10}
    save_file(rows, f"samples/{name}/images.safetensors")
    if name not in FLOORS:
        Path("reports/paired").mkdir(exist_ok=True)
        images = {"seed": np.arange(40), "label": rows["label"], "kid": draws.normal(0, 0.1, 40)}
        pl.DataFrame(images | {"correct": draws.random(40) < 0.5}).write_parquet(f"reports/paired/{name}.parquet")
        sealed(f"reports/paired/{name}.parquet")


@pytest.fixture
def measured(project) -> Callable:
    """Writes the inputs of the report; the metrics and protocol of the second method can be changed."""

    given = project.read()
    others = [f"methods.{name}" for name in given["methods"] if name not in METRICS]
    others += [f"parts.{name}" for name, part in given["parts"].items() if part["method"] not in METRICS]
    others += [f"students.{name}" for name in given["students"]]
    project.change(dict.fromkeys(others, ...))

    def measured(metrics: dict | None = None, **protocol: object) -> Project:
        for method, own in METRICS.items():
            mine = method == "msf"
            found = {**REST, **own, **(metrics or {} if mine else {})}
            put_measured(method, found, {**PROTOCOL, **(protocol if mine else {})})
            put_json(f"samples/{method}/costs.json", COST)
            timings.write(f"sample-{method}", SAMPLES / method / "costs.json", {"peak_memory_bytes": 3 * 2**20})
            Image.new("L", (9, 7), 50 + len(method)).save(f"samples/{method}/strip.png")
            sealed(f"samples/{method}")
        for floor, own in FLOORS.items():
            put_measured(floor, {**REST, **own, "kid_second": 0.01, "kid_test": None}, {**PROTOCOL, "seeds": None})
            sealed(f"samples/{floor}")
        put_json("reports/metrics/classifier.json", {"held_out_accuracy": 0.96875})
        sealed("reports/metrics/classifier.json")
        write_images(Path("data/images.parquet"), 10)
        put_json("reports/costs.json", dict.fromkeys(METRICS, COST))
        timings.write("sampling", COSTS, SAMPLING)
        for part, seconds in SECONDS.items():
            folder = Path("models", part.partition("-")[0], part)
            folder.mkdir(parents=True, exist_ok=True)
            rows = [{"images": 64, "validation_loss": 4.0}]
            rows += [{"images": 128 * k, "loss": 1 / k, "lr": 1e-3, "grad_norm": 1.0} for k in (1, 2)]
            rows += [{"images": 256, "validation_loss": 3.0}]
            (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "autoencoder").mkdir(exist_ok=True)
            sealed(folder)
            timings.write(part, folder / "history.jsonl", {"train_seconds": seconds})
        return project

    return measured


class Page(HTMLParser):
    """The tables of an HTML page as rows of text, and the attributes of its pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.pictures, self.tags, self.cell = [], [], set(), False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.add(tag)
        self.cell = self.cell or tag in ("th", "td")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.pictures.append(dict(attributes))

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.tables[-1][-1][-1] += data


def section(name: str) -> str:
    """The HTML of a section of the page, or of its header."""
    text = Path("reports/report.html").read_text()
    whole = "<header>.*?</header>" if name == "header" else f'<section id="{name}">.*?</section>'
    return re.search(whole, text, re.DOTALL)[0]


def whole() -> Page:
    """The page without its scripts, which hold tags in strings."""
    text = Path("reports/report.html").read_text()
    return Page(re.sub("<script.*?</script>|<!--.*?-->", "", text, flags=re.DOTALL))


def charts() -> dict:
    """What the charts of the page draw."""
    text = Path("reports/report.html").read_text()
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', text)[1])


def made(project: Project) -> Page:
    """The leaderboard of the page."""
    done = project.stage("report")
    assert done.returncode == 0, done.stderr
    return Page(section("leaderboard"))


def tables_of(markdown: str) -> list[list[str]]:
    """The methods in each table of a Markdown text."""
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    return [[row.split("|")[1].strip() for row in table[2:]] for table in tables]
