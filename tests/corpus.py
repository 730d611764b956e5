"""What a pipeline may be given by mistake or in bad faith: images and archives, settings and overrides, forms.

Everything is made here from a few lines and a seeded generator, so that no damaged file lies in the repository. An
entry of `sources` writes files into the working directory and returns the changes of `data`; beside it stands a word of
the line that refuses it, "" where the set is read, and None where either may be.
"""
# ruff: noqa: E501 - tables, a case a line

from __future__ import annotations

import gzip
import io
import json
import math
import operator
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

SEED = 20
LEVELS = (10, 60, 110, 160, 210)
LONG = "x" * 5000
ESCAPES = "\x1b[31mred\x1b[0m\nsecond line\x07"

Case = tuple[Callable[[], dict[str, Any]], str | None]


def image(level: int = 100, form: str = "PNG", mode: str = "L", side: int = 8) -> bytes:
    """An image of one level."""
    content = io.BytesIO()
    Image.fromarray(np.full((side, side), level, np.uint8)).convert(mode).save(content, form)
    return content.getvalue()


GOOD = {f"{kind}/{level}.png": image(level) for kind in "ab" for level in LEVELS}


def put(files: dict[str | bytes, bytes], folder: str = "set") -> dict[str, Any]:
    """Writes files below a folder."""
    for name, content in files.items():
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    return {"path": folder}


def written(name: str, content: bytes) -> dict[str, Any]:
    Path(name).write_bytes(content)
    return {"path": name}


def tar(files: dict[str, bytes], mode: str = "w", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A tar of files, or of links where another kind is given."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, link
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def header(kind: bytes, size: int) -> bytes:
    """The header of a member of a tar that claims a size."""
    member = tarfile.TarInfo("a/1.png")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def zipped(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def parquet(**columns: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    return content.getvalue()


def idx(array: np.ndarray, claimed: tuple[int, ...] | None = None) -> bytes:
    """A file of bytes in the format of MNIST, whose header may claim another shape."""
    shape = claimed or array.shape
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + array.astype(np.uint8).tobytes()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content cut, with bytes changed, doubled or followed by others."""
    kind, place = chance.randrange(4), chance.randrange(1, len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + chance.randbytes(8) + content[place + 8 :]
    if kind == 2:
        return content[:place] + content[place // 2 :]
    changed = bytearray(content)
    for _ in range(20):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def sources() -> Iterator[tuple[str, Case]]:
    """At least 80 sets of images and what becomes of them."""
    yield from _folders()
    yield from _archives()
    yield from _tables()
    yield from _arrays()
    yield from _addresses()
    chance = random.Random(SEED)
    few = {"max_unreadable": 0.5}
    forms = [image(form=form, mode="RGB") for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    for index in range(21):
        bad = damaged(forms[index % len(forms)], chance)
        yield f"damaged image {index}", (lambda bad=bad: put(GOOD | {"a/bad.png": bad}) | few, None)
    images = {"image": list(GOOD.values()), "label": [0, 1] * len(LEVELS)}
    pixels = np.zeros((20, 8, 8))
    archives = {
        "set.zip": zipped(GOOD, zipfile.ZIP_DEFLATED),
        "set.tar": tar(GOOD),
        "set.tar.gz": tar(GOOD, "w:gz"),
        "set.tar.xz": tar(GOOD, "w:xz"),
        "set.parquet": parquet(**images),
        "set-idx3-ubyte": idx(pixels),
        "set-idx3-ubyte.gz": gzip.compress(idx(pixels)),
    }
    for index in range(28):
        name = [*archives][index % len(archives)]
        bad = damaged(archives[name], chance)
        yield f"damaged {name} {index}", (lambda name=name, bad=bad: written(name, bad) | few, None)


def _folders() -> Iterator[tuple[str, Case]]:
    def special(make: Callable[[Path], None], name: str = "set") -> Callable[[], dict[str, Any]]:
        def made() -> dict[str, Any]:
            Path(name).parent.mkdir(exist_ok=True)
            make(Path(name))
            return {"path": "set"} | {"max_unreadable": 0.5}

        return made

    def with_good(make: Callable[[Path], None], name: str) -> Callable[[], dict[str, Any]]:
        return lambda: put(GOOD) and special(make, name)()

    def deep() -> dict[str, Any]:
        put(GOOD)
        here = os.getcwd()
        os.chdir("set")
        for _ in range(150):
            os.mkdir("d")
            os.chdir("d")
        Path("bad.png").write_bytes(image())
        os.chdir(here)
        return {"path": "set"}

    few = {"max_unreadable": 0.5}
    yield "images", (lambda: put(GOOD), "")
    yield "no folder", (lambda: {"path": "nowhere"}, "an existing folder")
    yield "a path of 5,000 characters", (lambda: {"path": LONG}, "an existing folder")
    yield "a path of 1,000 folders", (lambda: {"path": "x/" * 3000}, "an existing folder")
    yield "a path with a zero", (lambda: {"path": "a\0b"}, "an existing folder")
    yield "a path with escape codes", (lambda: {"path": ESCAPES}, "an existing folder")
    yield "an empty folder", (lambda: Path("set").mkdir() or {"path": "set"}, "holds neither")
    yield "a pipe", (special(os.mkfifo), "an existing folder")
    yield "a device", (lambda: {"path": "/dev/zero"}, "an existing folder")
    yield "a link to a device", (special(lambda path: path.symlink_to("/dev/zero")), "an existing folder")
    yield "a pipe among images", (with_good(os.mkfifo, "set/a/pipe.png"), "")
    yield "a device among images", (with_good(lambda path: path.symlink_to("/dev/zero"), "set/a/d.png"), "")
    for name in ("set/a.parquet", "set/a.zip", "set/a-idx3-ubyte"):
        yield f"a pipe {name}", (special(os.mkfifo, name), "a regular file")
    told = {"caption_column": "text"}
    for name in ("metadata.csv", "metadata.jsonl", "captions_x.json", "a/10.txt"):
        pipe = with_good(os.mkfifo, f"set/{name}")
        yield (
            f"a pipe {name}",
            (lambda pipe=pipe: pipe() | told, "cannot be read (ValueError: a link that leads nowhere"),
        )
    yield "a link to itself", (with_good(lambda path: path.symlink_to(path.name), "set/a/l.png"), "")
    yield "a link to a folder around it", (with_good(lambda path: path.symlink_to(".."), "set/a/up"), "around it")
    yield "a folder of 150 levels", (deep, "levels deep")
    yield "a name that is not UTF-8", (lambda: put(GOOD | {b"a/\xff\xfe.png": image()}), "UTF-8")
    yield "a class that is not UTF-8", (lambda: put(GOOD | {b"\xff/1.png": image()}), "UTF-8")
    yield "a text that is not UTF-8", (lambda: put(GOOD | {b"\xff.txt": b""}), "UTF-8")
    yield "a class of escape codes", (lambda: put(GOOD | {f"{ESCAPES}/1.png": image()}), "")
    yield "an unreadable name of escape codes", (lambda: put(GOOD | {f"a/{ESCAPES}.png": b"bad"}) | few, "")
    yield "an ending of escape codes", (lambda: put(GOOD | {f"a/x.{ESCAPES}": b"bad"}), "")
    yield "no image", (lambda: put(GOOD | {"a/bad.png": b"bad"}) | few, "")
    yield "an empty image", (lambda: put(GOOD | {"a/bad.png": b""}) | few, "")
    yield "bad images alone", (lambda: put({"a/1.png": b"", "b/2.png": b"bad"}), "cannot be read")
    yield "all images of a class are bad", (lambda: put(GOOD | {"c/1.png": b"bad"}) | few, "no image of the class c")
    icons = {f"a/{form}.png": image(form=form, mode="RGB", side=16) for form in ("ICO", "ICNS", "TGA")}
    yield "icons", (lambda: put(icons), "3 of 3 images cannot be read")
    yield (
        "splits and others",
        (lambda: put({"train/1.png": image(), "test/2.png": image(), "x/3.png": image()}), "every image in a folder"),
    )
    yield "no training images", (lambda: put({"test/a/1.png": image(), "test/b/2.png": image()}), "train")


def _archives() -> Iterator[tuple[str, Case]]:
    deep = "d/" * 2000 + "1.png"
    yield "a zip", (lambda: written("set.zip", zipped(GOOD)), "")
    yield "a tar", (lambda: written("set.tar", tar(GOOD)), "")
    yield "an empty zip", (lambda: written("set.zip", zipped({})), "holds no images")
    yield "an empty tar", (lambda: written("set.tar", tar({})), "holds neither")
    yield "a zip 2,000 deep", (lambda: written("set.zip", zipped(GOOD | {deep: image()})), "")
    yield "a tar 2,000 deep", (lambda: written("set.tar", tar(GOOD | {deep: image()})), "levels deep")
    yield (
        "a tar with a long name",
        (lambda: written("set.tar", tar(GOOD | {f"{LONG}.png": image()})), "File name too long"),
    )
    yield "a tar that leaves its folder", (lambda: written("set.tar", tar({"../../out.png": image()})), "outside")
    yield "a tar with a path from the root", (lambda: written("set.tar", tar({"/etc/x.png": image()})), None)
    kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
    for name, kind in kinds.items():
        bad = tar({"a/1.png": b""}, kind=kind, link="/etc/passwd")
        yield f"a tar with a {name}", (lambda bad=bad: written("set.tar", bad), "a file that is intact")
    yield (
        "a tar whose names are not UTF-8",
        (lambda: written("set.tar", tar(GOOD | {"a/\udcff.png": image()})), "UTF-8"),
    )
    yield (
        "a zip with escape codes",
        (lambda: written("set.zip", zipped(GOOD | {f"a/{ESCAPES}.png": b"bad"})) | {"max_unreadable": 0.5}, ""),
    )
    dead = tar({"a/1.png": b""}, kind=tarfile.LNKTYPE, link="a/2.png")
    yield "a tar with a hard link to nothing", (lambda: written("set.tar", dead), "'a/2.png' not found")
    newer = zipped(GOOD).replace(b"PK\1\2\x14\x03\x14", b"PK\1\2\x14\x03\x54")
    yield "a zip of a later version", (lambda: written("set.zip", newer), "zip file version 8.4")
    twice = zipped({"a/1.png": image(1), "a/2.png": image(2)}).replace(b"a/2.png", b"a/1.png")
    yield "a zip with a name twice", (lambda: written("set.zip", twice), "names that are there once")
    nested = {"x.tar": tar({"y.tgz": tar(GOOD, "w:gz")})}
    yield (
        "a tar in a tar",
        (lambda: put(nested), "'set' is not allowed; allowed: a tar of images, without a tar (y.tgz)"),
    )
    yield "a zip in a tar", (lambda: written("set.tar", tar({"a.zip": zipped(GOOD)})), "")
    yield "a zip in a zip", (lambda: written("set.zip", zipped({"a.zip": zipped(GOOD)})), "holds no images")
    yield "a file of zeros", (lambda: written("set.bin", bytes(10_000)), None)
    yield "an empty file", (lambda: written("set.bin", b""), "a folder, a zip")
    yield "a text", (lambda: written("set.bin", b"text"), "a folder, a zip")
    yield "half the magic of Parquet", (lambda: written("set.bin", b"PAR1"), "a file that is intact")
    yield "two archives", (lambda: put({"a.zip": b"", "b.zip": b""}), "holds neither")
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        long = header(kind, 1 << 33) + bytes(2000)
        yield (
            f"a tar of a name of gigabytes, {kind!r}",
            (lambda long=long: written("set.tar", long), "a header of more"),
        )
    within = header(tarfile.REGTYPE, 0) + header(tarfile.GNUTYPE_LONGNAME, 0) * 1900
    yield "a tar of a name of a name of a name", (lambda: written("set.tar", within), "cut or damaged")
    sparse = header(tarfile.XHDTYPE, 512) + b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n".ljust(512, b"\0")
    sparse = header(tarfile.REGTYPE, 0) + sparse + header(tarfile.REGTYPE, 512) + b"x\n" * 256
    yield "a sparse tar of no numbers", (lambda: written("set.tar", sparse), "cut or damaged")
    bomb = zipped({"a/1.png": bytes(300_000_000)}, zipfile.ZIP_DEFLATED)
    yield "a zip bomb", (lambda: written("set.zip", bomb), "MB in a zip")


def _tables() -> Iterator[tuple[str, Case]]:
    images = list(GOOD.values())
    labels = [0, 1] * len(LEVELS)
    two = [[0, 1]] * len(images)

    def table(**columns: Any) -> Callable[[], dict[str, Any]]:
        return lambda: written("set.parquet", parquet(**columns))

    def named(about: object) -> Callable[[], dict[str, Any]]:
        text = about if isinstance(about, bytes) else json.dumps(about).encode()

        def make() -> dict[str, Any]:
            content = pa.table({"image": images, "label": labels}).replace_schema_metadata({b"huggingface": text})
            pq.write_table(content, "set.parquet")
            return {"path": "set.parquet"}

        return make

    yield "a Parquet", (table(image=images, label=labels), "")
    doubled = pa.table([pa.array(images), pa.array(images), pa.array(labels)], names=["image", "image", "label"])
    yield (
        "two columns of one name",
        (lambda: pq.write_table(doubled, "set.parquet") or {"path": "set.parquet"}, "more than one"),
    )
    yield "a column row", (table(image=images, label=labels, row=labels), "")
    yield "a label row", (lambda: table(image=images, row=labels)() | {"label_column": "row"}, "")
    for kind, split in {
        "lists": [["train"]] * 10,
        "structs": [{"a": 1}] * 10,
        "numbers": labels,
        "bytes": [b"\xff"] * 10,
    }.items():
        yield f"a split of {kind}", (table(image=images, label=labels, split=split), "a column of text")
    yield "another word of a split", (table(image=images, label=labels, split=["x"] * 10), "as a split of")
    yield "a split without values", (table(image=images, label=labels, split=[None] * 10), "")
    yield "no images", (table(label=labels), "a column of encoded images")
    yield "images as text", (table(image=["x"] * 10, label=labels), "a column of encoded images")
    yield "images as structs of others", (table(image=[{"a": 1}] * 10, label=labels), "a column of encoded images")
    yield "images as lists", (table(image=two, label=labels), "a column of encoded images")
    yield "no labels", (table(image=images), "a column of text or integers")
    yield "labels as lists", (table(image=images, label=two), "a column of text or integers")
    yield "labels as fractions", (table(image=images, label=[0.5] * 10), "a column of text or integers")
    yield "a row without a label", (table(image=images, label=[None, *labels[1:]]), "a column of text or integers")
    yield (
        "rows without images",
        (lambda: table(image=[None, *images[1:]], label=labels)() | {"max_unreadable": 0.5}, ""),
    )
    yield "no rows", (table(image=pa.array([], pa.binary()), label=pa.array([], pa.int64())), "holds no images")
    yield "labels of escape codes", (table(image=images, label=[ESCAPES, "b"] * 5), "")
    for about in (
        b"{",
        b"[" * 5000,
        [],
        7,
        {"info": []},
        {"info": {"features": 3}},
        {"info": {"features": {"label": {"names": 4}}}},
    ):
        yield f"names of classes as {about!r:.40}", (named(about), "")


def _arrays() -> Iterator[tuple[str, Case]]:
    pixels = np.zeros((20, 8, 8))
    huge = idx(np.zeros(0), (60_000, 4_000, 4_000))
    many = gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 1, 8, 8) + bytes(200_000_000), 1)

    def beside(labels: bytes) -> Callable[[], dict[str, Any]]:
        return lambda: put({"x-images-idx3-ubyte": idx(pixels), "x-labels-idx1-ubyte": labels})

    yield "an IDX file", (lambda: written("a-idx3-ubyte", idx(pixels)), "")
    yield "an IDX file of other dimensions", (lambda: written("a-idx3-ubyte", idx(np.zeros(4))), "3 dimensions")
    yield "an IDX file that claims terabytes", (lambda: written("a-idx3-ubyte", huge), "at most")
    yield (
        "an IDX file that claims terabytes, gzipped",
        (lambda: written("a-idx3-ubyte.gz", gzip.compress(huge)), "at most"),
    )
    yield "an IDX file that unpacks to more than it says", (lambda: written("a-idx3-ubyte.gz", many), "intact IDX")
    yield "an IDX file of its first bytes", (lambda: written("a-idx3-ubyte", idx(pixels)[:6]), "intact IDX")
    yield "an IDX file of no images", (lambda: written("a-idx3-ubyte", idx(np.zeros((0, 8, 8)))), "holds no images")
    yield "IDX images without pixels", (lambda: written("a-idx3-ubyte", idx(np.zeros((20, 0, 8)))), None)
    yield "no gzip", (lambda: written("a-idx3-ubyte.gz", idx(pixels)), "intact")
    yield "IDX labels too few", (beside(idx(np.zeros(3))), "3 labels for 20 images")
    yield "IDX labels that claim gigabytes", (beside(idx(np.zeros(3), (2**32 - 1,))), "at most")
    yield "IDX labels empty", (beside(b""), "intact IDX")


def _addresses() -> Iterator[tuple[str, Case]]:
    for url in (
        "http://[::1/x",
        "http://",
        "http:///x",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:port/x",
        "http://a b/x",
        "http://a\nb/x",
        "file:///nowhere/set.zip",
        "file:///dev",
        f"file:///{LONG}",
        "ftp://127.0.0.1/x",
        "nothing",
        "http://\udcff/x",
    ):
        given = {"source": "url", "url": url, "sha256": "0" * 64}
        yield f"the address {url[:40]!r}", (lambda given=given: given, "url: ")


# --- settings

SPECIAL = (
    None, True, -1, 0, 7, 2**53 + 1, 10**400, 0.5, -0.0, 1e308, math.inf, math.nan, "", "x", "1", LONG, ESCAPES, "a\0b",
    "../../etc", "$(touch pwn)", "x; touch pwn; #", "${oc.env:HOME}", "-f", "\N{PILE OF POO}", "\ud800", [], [[]], ["x"],
    [-1], [0, 10**30], {}, {"x": 1}, {"kind": "x"}, {"preset": "x"}, {1: 2}, {None: 1}, {"": {}},
)  # fmt: skip
KEYS = st.none() | st.integers() | st.text(max_size=9)
VALUES = st.sampled_from(SPECIAL) | st.recursive(
    st.booleans() | st.floats() | st.dates() | st.binary(max_size=9) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=9,
)


def paths_of(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from paths_of(value, (*at, key))


@st.composite
def settings(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    """An experiment of which one to three values or keys are others, or are missing."""
    changed = _copy(tree)
    for how in draw(st.lists(st.sampled_from(["value", "key", "missing"]), min_size=1, max_size=3)):
        *above, last = draw(st.sampled_from(list(paths_of(changed)) or [("x",)]))
        node = reduce(operator.getitem, above, changed)
        was = node.pop(last) if how != "value" and isinstance(node, dict) else None
        if how != "missing":
            node[draw(KEYS) if how == "key" and isinstance(node, dict) else last] = was or _copy(draw(VALUES))
    return changed


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree


TEXTS = {
    "nothing": "",
    "a list": "- 1",
    "nested 900 times": "a: " + "[" * 900 + "]" * 900,
    "nested 900 times, open": "a: " + "{a: " * 900,
    "nested 400 times": "a: " + "[" * 400 + "]" * 400,
    "nested 100 times": "seed: " + "[" * 100 + "]" * 100,
    "mappings nested 300 times": "".join(f"{' ' * depth}a:\n" for depth in range(300)),
    "an integer of 20,000 digits": "seed: " + "9" * 20_000,
    "an integer of 4,000 digits": "seed: " + "9" * 4_000,
    "a hexadecimal integer of 20,000 digits": "recipe: 0x" + "f" * 20_000,
    **{
        f"a hexadecimal integer of 20,000 digits in {where}": text.replace("X", "0x" + "f" * 20_000)
        for where, text in {
            "a key": "{? X : 1}",
            "a key of a value": "seed: {? X : 1}",
            "a key of a list": "{? [X] : 1}",
            "a set": "seed: !!set {X}",
            "an ordered mapping": "seed: !!omap [? X : 1]",
            "a list of pairs": "seed: !!pairs [? X : 1]",
        }.items()
    },
    "a float of 20,000 digits": "seed: 1." + "9" * 20_000,
    "a key of 5,000 characters": f"{LONG}: 1",
    "a value of 5,000 characters": f"recipe: {LONG}",
    "a doubled key": "seed: 1\nseed: 2",
    "a reference": "recipe: x${oc.env:HOME}",
    "a reference as a key": "${oc.env:HOME}: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "a tag of Python": "seed: !!python/object/apply:os.system [touch pwn]",
    "a tag that does not fit": "seed: !!bool x",
    "a float that is none": "seed: !!float x",
    "an int that is none": "seed: !!int x",
    "a time that is none": "seed: !!timestamp x",
    "bytes that are none": "seed: !!binary x",
    "a date that is none": "seed: 2001-99-99",
    "a date": "seed: 2001-01-01",
    "a set": "seed: !!set {a, b}",
    "a list as a key": "{[1]: 2}",
    "a mapping as a key": "{{a: 1}: 2}",
    "an alias of nothing": "seed: *a",
    "an alias of itself": "seed: &a [*a]",
    "a key merged with itself": "seed: &a {<<: *a}",
    "keys merged 30 times with themselves": "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}\n" for k in range(1, 30)),
    "1,000 keys merged 1,000 times": "a: &a {" + ", ".join(f"k{k}: 1" for k in range(1000)) + "}\nb: {<<: [" + "*a, " * 1000 + "]}",
    "a billion laughs": "a: &a [x, x]\n" + "".join(f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(12)),
    "a tab": "a:\n\tb: 1",
    "a zero byte": "seed: \0",
    "escape codes": 'seed: "\\e[31m\\n\\a"',
    "half a pair": 'recipe: "\\ud800"',
    "half a pair as a key": '"\\ud800": 1',
    "a directive": "%YAML 9.9\n---\nseed: 1",
    "an open quote": 'seed: "x',
    "an anchor twice": "seed: &a &b 1",
    "an empty key": "? \n: 1",
    "a question": "? ? a",
}  # fmt: skip

OVERRIDES = (
    "", "=", "seed", "seed=", "=1", "seed=x", "seed=1e400", "seed=-1", "seed=" + "9" * 20_000, "seed=" + "[" * 900,
    "seed=" + "[" * 60 + "]" * 60, "seed=range(1,3)", "seed=1,2", "seed=${oc.env:HOME}", "seed=$(touch pwn)", "seed='x",
    r"recipe=\${oc.env:HOME}", r"recipe=\$\{oc.env:HOME\}", r"recipe='$\{oc.env:HOME}'",
    "seed={a:1}", "seed=\x1b[31m", "seed=\udcff", "seed=a\nb: 1", "~seed", "~data", "+seed", "+seed=1", "++seed=x",
    "+x.y.z=1", "data=1", "data.resolution=100000", f"{LONG}=1", "a.b=1",
    "data..path=x", ".=1", "data.=1", "data[0]=1", "parts.ddpm.kind=x", "params.yaml:seed=x", "other.yaml:seed=1",
    "/etc/passwd:a=1", "dvc.yaml:stages=1", "seed@x=1", "hydra.run.dir=x", "recipe=\N{PILE OF POO}", "methods=null",
    "parts=[]", "seed:x=1", "::=", "run.workers=999999999", "+run.workers=x", "training.lr=nan",
)  # fmt: skip

# --- the dashboard's form


def forms() -> Iterator[dict[str, Any]]:
    """What a form, or who calls its API, may send."""
    for target in ("", " ", ".", "..", "/", "-f", "--force", "a@", "@", "a@b", "a b", "$(touch pwn)", "x; touch pwn", LONG, ESCAPES, "a\0", "\udcff", "../../etc", "dvc.yaml", "dvc.yaml:a", "*", "[", "HEAD", "\N{PILE OF POO}"):  # fmt: skip
        yield {"targets": [target]}
    for name in ("", " ", "-f", "HEAD", "a b", "a/b", "..", ".", "a..b", "x.lock", LONG, ESCAPES, "a\0", "\udcff", "@{-1}", "$(touch pwn)", "~", "a" * 101, "\N{PILE OF POO}"):  # fmt: skip
        yield {"experiment": name, "targets": ["nope"]}
    for override in ("", "=", "seed", "seed=x", "~seed", "other.yaml:a=1", "seed=${oc.env:HOME}", f"{LONG}=1", ESCAPES, "\udcff=1", "a\0=1"):  # fmt: skip
        yield {"overrides": [override]}
    for recipe in ("", "nope", "../x", LONG, ESCAPES, 7, ["digits"], "digits\0"):
        yield {"recipe": recipe}
    for slots in (0, -1, 1.5, "x", [], {}, "9" * 5000):
        yield {"slots": slots}
    yield {"slots": 2**63}
    yield {"slots": 10**400}
    yield {"overrides": ["seed=1"] * 400}
    yield {"targets": ["nope"] * 3000}
    for targets in ("a", None, 7, {"a": 1}, [[]], [None], [{}], [7], [True]):
        yield {"targets": targets}
    yield {"unknown": 1}
    yield {"overrides": "seed=1"}
    yield {"overrides": [None]}
    yield {"experiment": 7, "targets": ["nope"]}
