"""Fetches a dataset from a URL, or a dataset or model from the Hugging Face hub, once, into the scratch folder."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from multiscale.core.storage import atomic_file, sha256_of
from stages.common.errors import BadInput, one_line, refuse
from stages.common.harness import is_disk_full, progress
from stages.common.paths import EXPERIMENT, SCRATCH
from stages.schema.data import Data

COPIES = ["*fp16*"]  # of the same weights


def verify(path: Path, sha256: str, name: object) -> None:
    """Raises BadInput unless the file has the checksum."""
    found = sha256_of(path)
    if found != sha256:
        raise refuse(EXPERIMENT, "data.sha256", sha256, f"the checksum of {name}, {found}")


def archive(data: Data) -> Path:
    """Downloads data.url into the scratch folder unless it is there, and verifies it."""
    sha256, url = str(data.sha256), str(data.url)
    target = Path(SCRATCH, "downloads", f"{sha256[:16]}-{PurePosixPath(urlsplit(url).path).name[-100:]}")
    if not target.exists():
        try:
            with urllib.request.urlopen(url, timeout=60) as reply, atomic_file(target) as temporary:
                total = int(reply.headers.get("Content-Length") or 0)
                with open(temporary, "wb") as file, progress("fetch", total, "B") as reach:
                    while block := reply.read(1 << 20):
                        file.write(block)
                        reach(file.tell())
                    if file.tell() < total:  # the library takes a connection that was cut for the end
                        raise OSError(f"{file.tell()} of {total} bytes came")
                verify(temporary, sha256, url)
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
            if is_disk_full(error):
                raise
            raise BadInput(f"{EXPERIMENT}: data.url: cannot fetch {url}: {error}") from None
    verify(target, sha256, target)
    return target


def snapshot(name: str, revision: str, key: str, model: list[str] | None = None) -> Path:
    """A snapshot of a hub dataset at a fixed revision, or of a model; `key` of the experiment holds its name.

    model: patterns of the files of a model, of which `COPIES` are left out; None: it is a dataset.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            repo_type="model" if model else "dataset",
            revision=revision,
            cache_dir=Path(SCRATCH, "hub"),
            allow_patterns=model,
            ignore_patterns=COPIES if model else None,
        )
    except Exception as error:  # of too many kinds to name: those of the network are not all OSErrors
        if is_disk_full(error):
            raise
        advice = f"; {by_hand(name, revision, key)}" if model else ""
        raise BadInput(f"{EXPERIMENT}: {key}: cannot fetch {name} at {revision}: {one_line(error)}{advice}") from None
    return Path(folder)


def by_hand(name: str, revision: str, key: str) -> str:
    """What to do where no hub can be asked for a model."""
    command = f"hf download {name} --revision {revision} --local-dir FOLDER"
    return f"where there is a hub, `{command}` fills a folder; bring it here and set {key}: FOLDER"
