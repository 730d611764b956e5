"""Prompts of one's own for a trained method that reads text, embedded by the encoder that it was trained with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from multiscale.condition import Prompts
from multiscale.core.models import EMBEDDINGS, READER, TEXT, first_line
from multiscale.core.storage import Table, read_json
from multiscale.model import parts_in
from multiscale.networks import text


def reads_text(method: Path) -> bool:
    """Whether the trained method in a folder, models/METHOD, is told what to show by texts."""
    return any((part / TEXT / EMBEDDINGS).exists() for part in parts_in(method))


def read(given: Sequence[str]) -> list[str]:
    """Texts, or the lines of the text file that is given in their place. Raises ValueError where there is none."""
    found, path = list(given), given[0]
    if len(given) == 1 and (os.path.isfile(path) or path.endswith(".txt")):
        try:
            found = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {first_line(error)}; allowed: a text file in UTF-8, a prompt a line") from None
        if not found:
            raise ValueError(f"{path}: holds no prompts; allowed: a prompt a line")
    for row, prompt in enumerate(found, 1):
        if not prompt.strip():
            raise ValueError(f"prompt {row} is empty; allowed: a text in each")
    return found


def encoder(method: Path, folder: Path | None = None) -> text.TextEncoder:
    """The text encoder of a method in its own folder, by default models/text/NAME beside models/METHOD.

    Raises ValueError where it is not there, or is another than that of the method.
    """
    (part,) = parts_in(method)
    about = read_json(part / TEXT / READER)
    place = folder or method.absolute().parent / TEXT / about["name"]
    if not place.is_dir():
        raise ValueError(f"{place}: the text encoder is not there; allowed: the folder models/text/{about['name']}")
    try:
        made = text.load(place, about["length"], about["precision"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{place}: {first_line(error)[:200]}; allowed: the text encoder that {method} was trained with"
        ) from None
    known, names = Table.open(part / TEXT / EMBEDDINGS, "prompt", "pooled"), ("prompt", "pooled")
    none, first = known[slice(1)], known[slice(1, 2)]
    fits = all(
        mine.shape == none[name].shape and torch.allclose(mine, none[name], rtol=0.05, atol=0.05)
        for name, mine in zip(names, made.null())
    )
    if fits and "prompt" in about:  # the text of the first row after that of no text
        found = zip(names, made.encode([about["prompt"]]))
        fits = all(bool((mine - first[name]).norm() < 0.2 * first[name].norm()) for name, mine in found)
    if not fits:
        raise ValueError(f"{place}: is another text encoder; allowed: that which {method} was trained with")
    return made


def condition_sampler(sampler: Any, made: text.TextEncoder, prompts: Sequence[str]) -> None:
    """Makes the sampler of a method that reads text take the index of one of these prompts as the label of an image.

    Each is embedded by itself, so that an image depends on its seed and prompt alone. Raises ValueError for a prompt
    that is longer than the encoder takes.
    """
    for prompt in prompts:
        if (count := made.count(prompt)) > made.length:
            raise ValueError(f"{prompt!r}: has {count} tokens; allowed: at most {made.length}")
    encoded = [made.encode([prompt]) for prompt in prompts]
    tokens, whole = (torch.cat(each).half().numpy() for each in zip(*encoded))
    none = tuple(each.half().float() for each in made.null())
    sampler.conditioner = Prompts(Table({"prompt": tokens, "pooled": whole}), (none[0], none[1]))
