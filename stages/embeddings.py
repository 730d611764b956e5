"""Embeds the captions of the images and the prompts once, in data/latents/text/NAME, and frees the encoder.

embeddings.safetensors   of each distinct text, fp16: its tokens, prompt (M, L, D), and pooled (M, P)
rows.safetensors         rows of these: pictures (N,), the training images in their order, prompts (K,), and held_out
                         (V,), the images of the validation split
prompts.parquet          the prompts and their labels
texts.parquet            the texts in the order of their rows
statistics.json          L, D and P
encoder.json             what models need to embed other prompts; of a published encoder, the first prompt

Row 0 represents the missing text in classifier-free guidance.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"name": "a key of `text`"})

import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from multiscale.core import intact, models
from multiscale.core.storage import sealed_folder, write_blocks, write_json
from multiscale.networks import text
from stages.common import images
from stages.common.cluster import Pool, pool
from stages.common.errors import refuse
from stages.common.harness import progress
from stages.common.paths import CAPTIONS, EMBEDDINGS, EXPERIMENT, IMAGES, PROMPTS, TEXT
from stages.schema import Experiment
from stages.schema.prompts import Encoder, PublishedEncoder


def encoder(name: str, params: Experiment) -> text.TextEncoder:
    """The text encoder in models/text/NAME."""
    section = params.text[name].encoder
    length = section.length if isinstance(section, PublishedEncoder) else 0
    return text.load(TEXT / name, length, precision_of(section))


def precision_of(section: Encoder) -> str:
    """The precision of an encoder's weights; one that was trained here is small, and keeps its own."""
    return section.precision if isinstance(section, PublishedEncoder) else "auto"


class Embedder:
    """A text encoder on one worker."""

    def __init__(self, name: str, params: Experiment):
        self.encoder = encoder(name, params)

    def limits(self, prompts: Sequence[str], captions: Sequence[str]) -> tuple[int, tuple[int, int] | None, int]:
        """The tokens that the encoder takes, the first longer prompt as (row, tokens), and the longer captions."""
        length, count = self.encoder.length, cache(self.encoder.count)
        long = ((row, count(prompt)) for row, prompt in enumerate(prompts) if count(prompt) > length)
        return length, next(long, None), sum(count(caption) > length for caption in captions)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The embeddings of texts in fp16."""
        return _half(self.encoder.encode(texts))

    def null(self) -> tuple[Tensor, Tensor]:
        """The embeddings that stand for no text, in fp16."""
        return _half(self.encoder.null())


def _half(embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    prompt, pooled = (each.half() for each in embeddings)
    if not (prompt.isfinite().all() and pooled.isfinite().all()):
        raise FloatingPointError("the embedding of a text is not finite in fp16")
    return prompt, pooled


def embed(
    out: Path, texts: Sequence[list[str]], workers: Pool, batch: int, reach: Callable[[int], None]
) -> dict[str, int]:
    """Writes the embeddings of no text and of lists of texts, in this order; returns their sizes."""
    (null,) = workers.map("null", [()])
    count = 1 + sum(map(len, texts))
    shapes = {name: (np.float16, (count, *each.shape[1:])) for name, each in zip(("prompt", "pooled"), null)}
    batches = ((each[start : start + batch],) for each in texts for start in range(0, len(each), batch))
    made = chain([null], workers.map("encode", batches))
    write_blocks(out, shapes, ({"prompt": tokens, "pooled": whole} for tokens, whole in made), reach=reach)
    return {"length": null[0].shape[1], "width": null[0].shape[2], "pooled": null[1].shape[1]}


def main(params: Experiment, name: str) -> None:
    if name not in params.text:
        raise refuse("embeddings", "NAME", name, f"one of {', '.join(params.text) or 'none'}")
    intact.check(IMAGES, CAPTIONS / name, TEXT / name)
    captions, held_out = (images.captions(split)[images.CAPTION].to_list() for split in ("train", "validation"))
    prompts = pl.read_parquet(CAPTIONS / name / PROMPTS)["prompt"].to_list()
    shown, title = list(dict.fromkeys([*prompts, *captions])), f"embeddings {name}"
    further = list(dict.fromkeys(each for each in held_out if each not in set(shown)))  # of no training image or prompt
    texts = [*shown, *further]
    row_of = {each: row for row, each in enumerate(texts, 1)}
    listed = {"pictures": captions, "prompts": prompts, "held_out": held_out}
    rows = {key: torch.tensor([row_of[each] for each in found]) for key, found in listed.items() if found}
    with pool(title, params.run, partial(Embedder, name, params)) as workers:
        ((length, long, cut),) = workers.map("limits", [(prompts, captions + held_out)])
        if long:
            allowed = f"at most {length} tokens (row {long[0]} has {long[1]})"
            raise refuse(EXPERIMENT, f"text.{name}.prompts", prompts[long[0]], allowed)
        with sealed_folder(EMBEDDINGS / name) as folder, progress(title, 1 + len(texts), "text") as reach:
            about = embed(folder / models.EMBEDDINGS, [shown, further], workers, params.run.batch, reach)
            save_file(rows, folder / models.TEXT_ROWS)
            shutil.copyfile(CAPTIONS / name / PROMPTS, folder / PROMPTS)
            pl.DataFrame({"text": ["", *texts]}).write_parquet(folder / "texts.parquet")
            write_json(folder / "statistics.json", about)
            section = params.text[name].encoder
            reader = {"name": name, "length": length, "precision": precision_of(section)}
            if isinstance(section, PublishedEncoder):  # SDXL's embeddings of no text are zeros, which tell nothing
                reader["prompt"] = prompts[0]
            write_json(folder / models.READER, reader)
    shape = f"{about['length']} tokens of {about['width']} numbers"
    count = len(captions) + len(held_out)
    print(f"{len(texts)} different texts of {count} captions and {len(prompts)} prompts, {shape} each")
    if cut:
        print(f"{cut} captions are longer than {length} tokens, and were cut")
