"""The layouts of published data sets, known by the names of their folders and files, in splits as published.

ImageNet   train/n01440764/NAME.JPEG and val/ of such folders, or val/ILSVRC2012_val_00000001.JPEG with the classes in
           LOC_val_solution.csv or in the devkit; what has no class, test/, is left out
CelebA     img_align_celeba/000001.jpg with list_eval_partition.txt or .csv
CelebA-HQ  CelebA-HQ-img/0.jpg of CelebAMask-HQ; in CelebA's splits where list_eval_partition.txt is beside the mapping
LSUN       church_outdoor_train/a/b/NAME.webp and church_outdoor_val, as lsun's data.py exports them
FFHQ       images1024x1024/00000/00000.png: 60,000 images to train, the other 10,000 to validate
COCO       train2017/000000000009.jpg and val2017; what has no captions, test2017, is left out

AFHQ, and CelebA-HQ in StarGAN v2's folders, are split/class/NAME as other sets.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from stages.common.errors import BadInput
from stages.datasets.item import readable

Paths = Mapping[str, tuple[str, ...]]  # of images: name -> its parts
Readers = Mapping[str, Callable[[], bytes]]  # of all files

PARTITION = ("train", "validation", "test")  # CelebA's 0, 1, 2
SPLITS = {"train": "train", "val": "validation", "test": "test"}
FFHQ_TRAIN = 60_000
WNID = re.compile(r"n\d{8}")
HELD_OUT = re.compile(r"ILSVRC2012_(val|test)_(\d{8})\.JPEG")


class Place(NamedTuple):
    """The split of an image, None for a hash's, and the name of its class."""

    split: str | None
    kind: str = ""


def places(paths: Paths, readers: Readers) -> dict[str, Place] | None:
    """The places of the images of a published data set, those that are left out not among them; None: another set."""
    for layout in (imagenet, celeba_hq, celeba, lsun, ffhq, coco):
        if (found := layout(paths, readers)) is not None:
            if out := len(paths) - len(found):
                print(f"the layout is that of {layout.__name__}: {out} images are left out", file=sys.stderr)
            return found
    return None


def _file(readers: Readers, *names: str) -> tuple[str, Callable[[], bytes]] | None:
    """The first file of one of these names, and its reader."""
    return next(((name, readers[name]) for name in sorted(readers) if PurePosixPath(name).name in names), None)


def imagenet(paths: Paths, readers: Readers) -> dict[str, Place] | None:
    """ImageNet with a flat folder of validation images. With folders of classes it is as other sets."""
    held_out = {name: found for name, p in paths.items() if (found := HELD_OUT.fullmatch(p[-1]))}
    flat = {name: found for name, found in held_out.items() if not WNID.fullmatch(paths[name][-2:][0])}
    if not flat:
        return None
    numbers = [int(found[2]) for found in flat.values() if found[1] == "val"]
    kinds = _validation_classes(readers, numbers) if numbers else {}
    placed = {name: Place("validation", kinds[int(found[2])]) for name, found in flat.items() if found[1] == "val"}
    inside = {name: p for name, p in paths.items() if len(p) > 1 and WNID.fullmatch(p[-2])}
    return placed | {name: Place("validation" if name in held_out else "train", p[-2]) for name, p in inside.items()}


def _validation_classes(readers: Readers, numbers: list[int]) -> dict[int, str]:
    """The classes of validation images by their numbers, from Kaggle's table or the devkit."""
    if table := _file(readers, "LOC_val_solution.csv"):
        with readable(table[0], "the columns ImageId and PredictionString, for all images"):
            rows = csv.DictReader(io.StringIO(table[1]().decode()))
            kinds = {int(row["ImageId"].rpartition("_")[2]): row["PredictionString"].split()[0] for row in rows}
            return {number: kinds[number] for number in numbers}
    truth, meta = _file(readers, "ILSVRC2012_validation_ground_truth.txt"), _file(readers, "meta.mat")
    if not truth or not meta:
        wanted = "LOC_val_solution.csv, or ILSVRC2012_validation_ground_truth.txt and meta.mat of the devkit"
        raise BadInput(f"ILSVRC2012_val_*.JPEG: their classes are not known; allowed: folders of classes, or {wanted}")
    from scipy.io import loadmat

    with readable(meta[0], "the file of the devkit, which has synsets"):
        synsets = loadmat(io.BytesIO(meta[1]()), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    with readable(truth[0], f"for each image a line with a number of {meta[0]}"):
        labels = dict(enumerate(truth[1]().split(), 1))
        return {number: wnids[int(labels[number])] for number in numbers}


def _partition(readers: Readers) -> dict[str, str] | None:
    """The split of each image of CelebA by its name."""
    found = _file(readers, "list_eval_partition.txt", "list_eval_partition.csv")
    if not found:
        return None
    with readable(found[0], "lines such as '000001.jpg 0', with 0, 1 or 2"):
        rows = [re.split(r"[\s,]+", line.strip()) for line in found[1]().decode().splitlines()]
        splits = dict(enumerate(PARTITION))
        return {row[0]: splits[int(row[1])] for row in rows if len(row) == 2 and row[0] != "image_id"}


def celeba(paths: Paths, readers: Readers) -> dict[str, Place] | None:
    """CelebA, aligned and cropped."""
    split_of = _partition(readers)
    if split_of is None:
        return None
    aligned = {name: p for name, p in paths.items() if "img_align_celeba" in p} or paths
    return {name: Place(split_of[p[-1]]) for name, p in aligned.items() if p[-1] in split_of}


def celeba_hq(paths: Paths, readers: Readers) -> dict[str, Place] | None:
    """The images of CelebAMask-HQ, without the masks."""
    chosen = {name: p for name, p in paths.items() if "CelebA-HQ-img" in p}
    if not chosen:
        return None
    split_of, mapping = _partition(readers) or {}, _file(readers, "CelebA-HQ-to-CelebA-mapping.txt")
    original: dict[str, str] = {}
    if mapping:
        with readable(mapping[0], "a title, then lines such as '0 119613 119614.jpg'"):
            rows = [line.split() for line in mapping[1]().decode().splitlines()[1:]]
        original = {row[0]: row[2] for row in rows if len(row) == 3}
    return {name: Place(split_of.get(original.get(p[-1].split(".")[0], ""))) for name, p in chosen.items()}


def lsun(paths: Paths, readers: Readers) -> dict[str, Place] | None:
    """LSUN, of one category or several."""
    pattern = re.compile(r"([a-z]+(?:_[a-z]+)*)_(train|val)(?:_lmdb)?")
    found = {name: next(filter(None, map(pattern.fullmatch, p[:-1])), None) for name, p in paths.items()}
    placed = {name: Place(SPLITS[each[2]], each[1]) for name, each in found.items() if each}
    return placed if len(placed) == len(paths) else None


def ffhq(paths: Paths, readers: Readers) -> dict[str, Place] | None:
    """FFHQ, of the largest images that are there."""
    for folder in ("images1024x1024", "thumbnails128x128"):
        chosen = {name: p for name, p in paths.items() if folder in p and re.fullmatch(r"\d{5}\.png", p[-1])}
        if chosen:
            return {name: Place(PARTITION[int(p[-1][:5]) >= FFHQ_TRAIN]) for name, p in chosen.items()}
    return None


def coco(paths: Paths, readers: Readers) -> dict[str, Place] | None:
    """COCO of any year."""
    pattern = re.compile(r"(train|val|test|unlabeled)20\d\d")
    found = {name: next(filter(None, map(pattern.fullmatch, p[:-1])), None) for name, p in paths.items()}
    if not all(found.values()):
        return None
    return {name: Place(SPLITS[each[1]]) for name, each in found.items() if each and each[1] in ("train", "val")}
