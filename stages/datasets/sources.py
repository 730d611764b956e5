"""The sources of images: digits of a package, pairs of them with captions, files of all kinds, a URL, and the hub."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePath, PurePosixPath
from typing import NoReturn

from stages.common import fetch
from stages.common.errors import BadInput, printable, refuse
from stages.common.images import IMAGE_SUFFIXES
from stages.common.paths import EXPERIMENT
from stages.datasets import archives, captions, digits, idx, layouts, parquet
from stages.datasets.archives import check_depth, refuse_path, whole
from stages.datasets.item import SPLITS, Item, content, hold_out, is_hidden, png, split_by_hash, split_in
from stages.schema.data import Data

ARCHIVE_SUFFIXES = {".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2"}
OTHER_FORMATS = {".avif", ".heic", ".heif", ".jxl"}  # of images, and not read
PARTS = {".crdownload", ".part", ".partial"}  # behind the ending of a file that is not there in full


def items(data: Data) -> list[Item]:
    """All images of the source, in an order that depends only on their names."""
    found = hold_out(_items(data), data)
    bare = next((item.id for item in found if not item.caption.strip()), None)
    if data.caption_column and bare is not None:
        raise refuse(EXPERIMENT, "data.caption_column", data.caption_column, f"captions of all images, {bare} has none")
    return found


def _items(data: Data) -> list[Item]:
    if data.source == "digits":
        return digits.items(data)
    if data.source == "digit-pairs":
        return digits.pairs(data)
    if data.source == "url":
        return _from_file(fetch.archive(data), data)
    if data.source == "hub":
        return _from_folder(fetch.snapshot(str(data.url), str(data.revision), "data.url"), data)
    path = Path(data.path)
    if os.path.isdir(path):  # where Path's own methods fail on a name too long
        return _from_folder(path, data, data.sha256)
    if os.path.isfile(path):
        return _from_file(path, data, data.sha256)
    raise refuse_path(path, "an existing folder, zip, tar, Parquet or IDX file")


def class_names(items: list[Item]) -> list[str]:
    """The names of the classes in the order of their labels; [] where the data names none, or only numbers them."""
    kinds = {item.label: item.kind for item in items}
    named = any(kind not in ("", str(label)) for label, kind in kinds.items())
    return [kinds[label] for label in sorted(kinds)] if named else []


def stamp(data: Data) -> str:
    """A digest of the names, sizes and times of the files that hold the images, by which DVC tells of a change too.

    What is fetched is known by its checksum or revision.
    """
    path, found = Path(data.path), hashlib.sha256()
    if data.source == "files":
        for name, file in (_files(path) if path.is_dir() else {path.name: path}).items():
            about = file.stat() if file.exists() else None
            found.update(f"{name} {about and (about.st_size, about.st_mtime_ns)}\n".encode())
    return found.hexdigest()


def no_images(path: object, why: str, data: Data) -> BadInput:
    """The error for a place without images, with what to do about it."""
    about = Path(data.path) / "README.md"
    remedy = f"see {about}" if about.exists() else "put them there, or name another place"
    place = data.path if data.source == "files" else path  # not the folder that an archive was unpacked into
    return BadInput(f"{EXPERIMENT}: data.path: {place} {why}; {remedy}")


def _from_file(path: Path, data: Data, sha256: str | None = None) -> list[Item]:
    if sha256 and path.is_file():
        fetch.verify(path, sha256, path)
    if idx.is_images(path):
        return _idx([path], path.parent, data)
    with whole(path), open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return parquet.items([path], path.parent, data)
        if zipfile.is_zipfile(path):
            return _zip(path, data)
        if archives.is_tar(path):
            if archives.UNPACKED in path.parents:
                key = "path" if data.source == "files" else "url"
                allowed = f"a tar of images, without a tar ({path.name}) in it"
                raise refuse(EXPERIMENT, f"data.{key}", getattr(data, key), allowed)
            return _from_folder(archives.unpacked(path), data)
    raise refuse_path(path, "a folder, a zip, a tar, a Parquet file or IDX images")


def _from_folder(folder: Path, data: Data, sha256: str | None = None) -> list[Item]:
    """Items of the images in a folder, or if it has none, of its Parquet or IDX files or its single archive."""
    found = _files(folder)
    readers = {name: partial(content, path) for name, path in found.items()}
    files = {name: path for name, path in found.items() if not name.endswith("/")}
    tables = sorted(path for path in files.values() if path.suffix == ".parquet")
    arrays = idx.without_copies(sorted(path for path in files.values() if idx.is_images(path)))
    packed = [path for path in files.values() if path.suffix in ARCHIVE_SUFFIXES]
    has_images = any(map(_is_image, readers))
    if sha256 and (has_images or tables or arrays):
        raise refuse(EXPERIMENT, "data.sha256", sha256, f"null: {folder} holds no archive to check")
    if has_images:
        return _named(readers, data)
    if tables:
        return parquet.items(tables, folder, data)
    if arrays:
        return _idx(arrays, folder, data)
    if len(packed) == 1:
        return _from_file(packed[0], data, sha256)
    raise no_images(folder, "holds neither images nor Parquet or IDX files nor one archive", data)


def _files(folder: Path) -> dict[str, Path]:
    """The files in a folder and in all folders below, through links too: name -> path; what is hidden is left out.

    A folder that holds nothing is among them, as NAME/. So is a link that leads nowhere and has the name of an image,
    to be counted as one that cannot be read. Raises BadInput where nobody knows what is missing, for any other link
    that leads nowhere and for a folder that cannot be read, and for a link by which a folder is there twice.
    """

    def unread(error: OSError) -> NoReturn:
        raise refuse_path(Path(error.filename), f"folders that can be read ({error.strerror})")

    found: dict[str, Path] = {}
    seen: dict[tuple[int, int], Path] = {}
    for place, below, names in os.walk(folder, onerror=unread, followlinks=True):
        here = Path(place)
        check_depth(here.relative_to(folder), folder)
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in below:
            if here.resolve().is_relative_to((here / name).resolve()):
                raise refuse_path(here / name, "folders, none of them a link to a folder around it")
            about = (here / name).stat()
            other = seen.setdefault((about.st_dev, about.st_ino), here / name)
            if other != here / name:
                raise refuse_path(here / name, f"folders that are there once (it is {other})")
        paths = [here / name for name in sorted(names) if not is_hidden(name)]
        for path in paths:
            if not (_is_image(path.name) or path.exists()):
                raise refuse_path(path, "links that lead to a file or a folder")
        found |= {path.relative_to(folder).as_posix(): path for path in paths}
        if not (paths or below):
            found[f"{here.relative_to(folder).as_posix()}/"] = here
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise refuse_path(PurePath(name), f"names in UTF-8 in {folder}") from None
    return found


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_lost(name: str) -> bool:
    """Whether a file is an image that is not read: of another format, or a part of one."""
    path = PurePosixPath(name)
    ending = path.suffix.lower()
    return ending in OTHER_FORMATS or (ending in PARTS and _is_image(path.stem))


def _lost(name: str) -> bytes:
    raise ValueError(f"{PurePosixPath(name).suffix} is not read")


def _zip(path: Path, data: Data) -> list[Item]:
    """Items of the images in a zip; as of a folder, what is hidden is left out, and folders that hold something."""
    members = archives.members(path)
    names = sorted(name for name in members if not is_hidden(name))
    archives.check_names(path, members.keys() - set(filter(_is_image, names)))
    full = {name for name, after in pairwise(names) if name.endswith("/") and after.startswith(name)}
    readers = {name: members[name] for name in names if name not in full}
    if not any(map(_is_image, readers)):
        raise no_images(path, "holds no images", data)
    return _named(readers, data)


def _named(readers: Mapping[str, Callable[[], bytes]], data: Data) -> list[Item]:
    """Items of the images among files, from paths split/class/name, class/name or name, also below a common folder."""
    lost = {name: partial(_lost, name) for name in readers if _is_lost(name)}
    readers = {**readers, **lost}
    parts = {name: PurePosixPath(name).parts for name in readers if name in lost or _is_image(name)}
    others = [name for name in readers if name not in parts]
    _tell_of(others)
    places = layouts.places(parts, readers)
    if places is not None:
        parts = {name: parts[name] for name in places}
    told = captions.captions(parts, readers, data.caption_column) if data.caption_column else {}
    around: tuple[str, ...] = ()  # the folders that hold every image
    while all(len(p) > 1 for p in parts.values()) and len({p[0] for p in parts.values()}) == 1:
        if next(iter(parts.values()))[0].lower() in SPLITS:
            break
        around += (next(iter(parts.values()))[0],)
        parts = {name: p[1:] for name, p in parts.items()}
    for path in [PurePosixPath(name) for name in others if name.endswith("/")]:
        if around and path.parent.parts == around[:-1]:  # of two classes one is empty: the images would have none
            raise refuse_path(path, "folders that hold images, beside those of the classes")
    # A single folder 'train' among others may be a class, but two splits and another folder are a mistake.
    tops = {p[0].lower() if len(p) > 1 else "" for p in parts.values()}
    has_splits = places is None and tops <= SPLITS.keys()
    if places is None and len(tops & SPLITS.keys()) > 1 and not has_splits:
        odd = next("/".join(p) for p in parts.values() if len(p) == 1 or p[0].lower() not in SPLITS)
        raise refuse_path(PurePosixPath(odd), "every image in a folder train, validation or test, or none")
    if places is None:
        split_of = {name: SPLITS[p[0].lower()] if has_splits else None for name, p in parts.items()}
        places = {name: layouts.Place(split_of[name], "".join(p[has_splits:-1][:1])) for name, p in parts.items()}
    kinds = {place.kind for place in places.values()}
    if "" in kinds and len(kinds) > 1:
        odd = next("/".join(parts[name]) for name, place in places.items() if not place.kind)
        raise refuse_path(PurePosixPath(odd), "images in folders of classes, or all of them in none")
    _check_classes(parts, {name: place.kind for name, place in places.items()}, others, has_splits)
    labels = {kind: index for index, kind in enumerate(sorted(kinds))}
    found = []
    for name, p in sorted(parts.items(), key=lambda entry: entry[1]):
        own = "/".join(p)
        split, kind = places[name]
        split = split or split_by_hash(own, data)
        found.append(Item(own, split, labels[kind], readers[name], kind, told.get(name, "")))
    return found


def _tell_of(others: list[str]) -> None:
    """Counts what is beside the images, files that are none by their endings and empty folders, in a line on stderr."""
    found = defaultdict(list)
    for name in others:
        ending = PurePosixPath(name).suffix.lower() or "no ending"
        found["empty folder" if name.endswith("/") else ending].append(name)
    ordered = sorted(found.items(), key=lambda entry: -len(entry[1]))
    told = [f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for kind, names in ordered]
    if told:
        print(printable(f"no images by their endings: {', '.join(told)}"), file=sys.stderr)


def _check_classes(
    parts: Mapping[str, tuple[str, ...]], kinds: Mapping[str, str], others: list[str], has_splits: bool
) -> None:
    """Raises BadInput for a folder beside those of classes that holds no image: without it, labels would shift."""
    known, homes = set(kinds.values()), set()
    examples = {(p[:-1], kinds[name]): name for name, p in parts.items()}
    for (inner, kind), name in examples.items():
        if kind in inner[has_splits:]:
            around = PurePosixPath(name).parts[: -len(inner) - 1]
            homes.add(around + inner[: inner.index(kind, has_splits)])
    for path in sorted({PurePosixPath(name.rpartition("/")[0]) for name in others}):
        for folder in (path, *path.parents):
            if folder.name and folder.parent.parts in homes and folder.name not in known:
                raise refuse_path(folder, "folders that hold images, beside those of the classes")


def _idx(paths: list[Path], folder: Path, data: Data) -> list[Item]:
    """Items of files of images with their labels; the split is a word of the file's path, or decided by a hash."""
    bare = [path for path in paths if not idx.labels_beside(path)]
    if bare and len(bare) < len(paths):
        raise refuse_path(bare[0], "IDX files of images, all with labels beside them or none")
    found = []
    for path in paths:
        with whole(path):
            try:
                images = idx.read(path, 3)
                labels = idx.labels(path, len(images)).tolist()
            except ValueError as error:
                raise refuse_path(path, f"intact IDX files ({error})") from None
        stem = path.relative_to(folder).as_posix().removesuffix(".gz")
        for row, (pixels, label) in enumerate(zip(images, labels)):
            name = f"{stem}-{row:07d}"
            split = split_in(stem) or split_by_hash(name, data)
            found.append((name, split, label, partial(png, pixels)))
    rank = {label: index for index, label in enumerate(sorted({label for _, _, label, _ in found}))}
    return [Item(name, split, rank[label], read, str(label)) for name, split, label, read in found]
