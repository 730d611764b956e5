"""Looks at a set of images and writes a recipe for it, which extends `embedded`.

What it measures decides the resolution, the channels, the budgets and the numbers of images that are compared.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from multiscale.core.settings import LARGEST
from multiscale.core.storage import write_text
from stages import recipe
from stages.common import enough
from stages.common.errors import BadInput, refuse
from stages.common.paths import EXPERIMENT, RECIPES
from stages.datasets import sources
from stages.datasets.item import decoded
from stages.download import reason
from stages.schema.data import Data
from stages.schema.rendering import plain

Tree = dict[str, Any]

BASE = "embedded"
LOOKED_AT = 200  # images that are decoded, at equal strides
FEWEST = 32  # training images
RESOLUTIONS = (64, 32)  # that train within hours on a CPU
SMALLER = 0.05  # share of the images that may be smaller than the resolution
ENLARGED = 24  # pixels: images below are enlarged, larger ones get a black border
EPOCHS = 60  # of the longest training of BASE; more would only be learnt by heart
FEWEST_STEPS = 0.2  # of the budgets of BASE, however few the images are
# Seconds of BASE on two quiet CPU cores (flows/seconds/embedded.json): of one method, MSF, and of all methods.
SECONDS = {"training": (140, 555), "sampling": (21, 137), "rest": (40, 155)}


@dataclass(frozen=True)
class Survey:
    """What is known of a set of images; sizes, colour and seconds by the images looked at."""

    splits: Counter[str]
    classes: list[str]
    sizes: np.ndarray  # (n, 2) widths and heights in pixels
    grey: bool
    seconds: float  # to decode an image

    @property
    def resolution(self) -> int:
        """The largest of RESOLUTIONS that few images are smaller than."""
        edge = np.quantile(self.sizes.min(1), SMALLER)
        return next((resolution for resolution in RESOLUTIONS if edge >= resolution), RESOLUTIONS[-1])

    @property
    def budget(self) -> float:
        """The share of the budgets of BASE."""
        longest = max(training.images for training in recipe.experiment_of(BASE).trainings)
        return max(FEWEST_STEPS, min(1.0, EPOCHS * self.splits["train"] / longest))

    @property
    def samples(self) -> int:
        """Images to sample of each method: about as many as it trained on, 100 to 1000."""
        return max(100, min(1000, self.splits["train"] // 100 * 100))

    @property
    def title(self) -> str:
        """The set in a few words."""
        width, height = np.median(self.sizes, 0).astype(int)
        kinds = f"in {len(self.classes)} classes" if len(self.classes) > 1 else "without classes"
        colour = "grey" if self.grey else "in colour"
        return f"{self.splits.total():,} images {kinds}, {colour}, {width}x{height} at the median"

    def minutes(self, everything: bool) -> int:
        """About how long a run takes: the seconds of BASE, scaled by pixels, budgets and numbers of images."""
        training, sampling, rest = (SECONDS[kind][everything] for kind in ("training", "sampling", "rest"))
        pixels = (self.resolution / RESOLUTIONS[-1]) ** 2
        seconds = rest + pixels * (training * self.budget + sampling * self.samples / 1000)
        return max(1, round((seconds + self.splits.total() * self.seconds) / 60))


def columns(path: Path) -> dict[str, str | None]:
    """The columns of images and labels of a Parquet file, or of the first one in a folder; {} where there is none."""
    tables = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not tables or not tables[0].is_file() or tables[0].open("rb").read(4) != b"PAR1":
        return {}
    schema = pl.read_parquet_schema(tables[0])
    images = [name for name, kind in schema.items() if isinstance(kind, pl.Struct) or kind == pl.Binary]
    labels = [name for name in ("label", "labels", "class", "category", "fine_label") if name in schema]
    image = "image" if "image" in images or not images else images[0]
    return {"image_column": image, "label_column": labels[0] if labels else None}


def look(name: str, path: Path) -> tuple[Data, Survey]:
    """Finds the images as the stage `download` does, and decodes some. Raises BadInput."""
    try:
        found_columns = columns(path) if os.path.exists(path) else {}
        shape = {"resolution": RESOLUTIONS[-1], "channels": 3, "test_share": 0.2}
        data = Data.model_validate({"name": name, "source": "files", "path": str(path)} | shape | found_columns)
        items = sources.items(data)
    except BadInput as error:  # it names the file that the recipe is for
        raise BadInput(str(error).replace(f"{EXPERIMENT}: data.path", "recipe new: --images")) from None
    splits = Counter(item.split for item in items)
    if splits["train"] < FEWEST:
        found = ", ".join(f"{count} {split}" for split, count in splits.items())
        raise refuse("recipe new", "--images", str(path), f"at least {FEWEST} training images (found {found})")
    sizes, grey, faults, started = [], True, [], time.perf_counter()
    chosen = items[:: -(-len(items) // LOOKED_AT)]
    for item in chosen:
        try:
            image = decoded(item.read(), "RGB")
        except Exception as error:  # decoders and archives raise all kinds of errors on damaged bytes
            faults.append(f"{item.id}: {reason(error)}")
            continue
        sizes.append(image.size)
        image.thumbnail((64, 64))
        pixels = np.asarray(image).astype(int)
        grey &= bool(np.abs(pixels - pixels[..., :1]).max() <= 8)  # JPEG leaves a trace of colour in grey
    if len(faults) > data.max_unreadable * len(chosen):
        allowed = f"images that can be read ({len(faults)} of {len(chosen)} cannot; {faults[0]})"
        raise refuse("recipe new", "--images", str(path), allowed)
    kinds = sources.class_names(items) or [str(label) for label in sorted({item.label for item in items})]
    seconds = (time.perf_counter() - started) / len(chosen)
    return data, Survey(splits, kinds, np.array(sizes), grey, seconds)


def scaled(training: Tree, share: float) -> dict[str, int]:
    """The budget and the intervals of a training, all in images, times a share."""
    keys = ("images", "warmup_images", "ema_images", "log_images")
    return {key: max(10, 10 * round(training[key] * share / 10)) for key in keys if key in training}


def budgets(tree: Tree, common: Tree, share: float) -> Tree:
    """The changes that give all trainings of BASE a share of their budgets; `common` is its section `training`."""
    if share == 1:
        return {}
    changes: Tree = {"training": scaled(common, share)}
    for key in ("vae", "classifier"):
        changes[key] = {"training": scaled(tree[key]["training"], share)}
    for key in ("parts", "students"):
        own = {name: section["training"] for name, section in tree[key].items() if "training" in section}
        changes[key] = {name: {"training": scaled(training, share)} for name, training in own.items()}
    return changes


def scales(tree: Tree, resolution: int) -> Tree:
    """The changes that give the scales of BASE the same ratios at another resolution."""
    full = tree["data"]["resolution"]
    if resolution == full:
        return {}

    def enlarged(section: Tree) -> Tree:
        return {"resolutions": [side * resolution // full for side in section["resolutions"]]}

    decompose = {name: enlarged(each) for name, each in tree["decompose"].items() if "resolutions" in each}
    students = {name: {"schedule": enlarged(each["schedule"])} for name, each in tree["students"].items()}
    changes: Tree = {key: enlarged(tree[key]) for key in ("vae", "latents")}
    return changes | {"decompose": decompose, "students": students}


def unguided(section: Tree) -> Tree:
    """The changes that turn guidance off in settings; a list is repeated whole."""
    off: Tree = {}
    for key, value in section.items():
        if key == "guidance_scale":
            off[key] = 1.0
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            off[key] = [each | unguided(each) for each in value]
        elif isinstance(value, dict) and (inside := unguided(value)):
            off[key] = inside
    return off


def changes_of(survey: Survey) -> Tree:
    """The settings of BASE that do not suit the images, with others."""
    tree, common = recipe.resolve(BASE), recipe.experiment_of(BASE).training.model_dump()
    changes = recipe.merge(scales(tree, survey.resolution), budgets(tree, common, survey.budget))
    if len(survey.classes) > 1:
        return changes
    return recipe.merge(changes, unguided({key: tree[key] for key in ("students", "methods")}))


def text_of(name: str, data: Data, survey: Survey) -> str:
    """The recipe."""
    base, changes = recipe.experiment_of(BASE), changes_of(survey)
    found = ", ".join(f"{split} {survey.splits[split]:,}" for split in ("train", "validation", "test"))
    few = survey.splits["test"] < enough.fewest_of_floors(base.evaluate)
    small = np.median(survey.sizes.min(1)) < ENLARGED
    reference, train = base.evaluate.reference_images, survey.splits["train"]
    lines = [
        f"# {survey.title}. Written by `python -m stages.recipe new`.",
        f"extends: {BASE} # what this file does not name is as there",
        "",
        f"# {found}. If the data has no splits of its own, the shares decide.",
        "data:",
        f"  name: {name}",
        "  source: files",
        f"  path: {plain(data.path)}",
        f"  image_column: {plain(data.image_column)} # of Parquet",
        f"  label_column: {plain(data.label_column)} # of Parquet",
        f"  resolution: {survey.resolution} # the larger one of 32 and 64 that at least 95 % of the images have",
        f"  channels: {1 if survey.grey else 3} # 1: grey, 3: colour",
        f"  resize: {'box-bicubic # enlarges small images' if small else 'area'}",
        f"  test_share: {data.test_share}",
        "",
        f"sample: {{images: {survey.samples}}} # about as many as there are training images, from 100 to 1000",
        "evaluate:",
        f"  reference_images: {reference if reference and reference < train else 'null # all'}",
        f"  floors: {'[] # too few test images' if few else '[real, autoencoder]'}",
        "",
    ]
    reasons = {
        "the scales of the methods are a half, three quarters and the whole of the resolution": "latents" in changes,
        f"budgets are {survey.budget:.0%}, since more would only be learnt by heart": "training" in changes,
        "guidance is off, since there are no classes": "methods" in changes,
    }
    lines += [f"# Against {BASE}, {reason}." for reason, holds in reasons.items() if holds]
    for key, section in changes.items():
        if key in ("decompose", "parts", "students", "methods"):
            lines += [f"{key}:", *(f"  {entry}: {plain(value)}" for entry, value in section.items())]
        else:
            lines.append(f"{key}: {plain(section)}")
    return "\n".join(lines) + "\n"


def run(name: str, images: str) -> None:
    """Writes params/recipes/NAME.yaml, and says what it chose and how long a run takes. Raises BadInput."""
    path = RECIPES / f"{name}.yaml"
    if not re.fullmatch("[a-z0-9][a-z0-9-]*", name) or name == "new":
        raise refuse("recipe new", "NAME", name, "lower-case letters, digits and hyphens, but not 'new'")
    if path.exists():
        raise refuse("recipe new", "NAME", name, f"another name, since {path} exists")
    data, survey = look(name, Path(images))
    write_text(path, text_of(name, data, survey))
    experiment = recipe.experiment_of(name)
    counts = ", ".join(f"{split} {count:,}" for split, count in sorted(survey.splits.items()))
    shown = ", ".join(survey.classes[:8]) + (", ..." if len(survey.classes) > 8 else "")
    print(f"found: {survey.title} ({counts})" + (f"; classes: {shown}" if len(survey.classes) > 1 else ""))
    print(
        f"chosen: {survey.resolution}x{survey.resolution} with {experiment.data.channels} channel(s), "
        f"{survey.budget:.0%} of the training budgets of {BASE}, {survey.samples} samples of each method, "
        f"compared with {min(survey.splits['train'], experiment.evaluate.reference_images or LARGEST):,} images"
    )
    one, every = (_duration(survey.minutes(everything)) for everything in (False, True))
    print(f"time: about {one} for one method, {every} for all; the seconds of {BASE} on two CPU cores times the pixels")
    if survey.budget < 1:
        print("note: trained on so few images, methods repeat them; the leaderboard flags such copies")
    print(f"wrote {path}; next: make demo RECIPE={name}")


def _duration(minutes: int) -> str:
    return f"{minutes} min" if minutes < 100 else f"{round(minutes / 60)} h"
