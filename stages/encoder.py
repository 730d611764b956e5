"""Provides the text encoder in models/text/NAME: that of a small CLIP trained here, or that of a published model.

A published encoder consists of its text encoders and tokenizers (safetensors only), from a folder or from the Hub at a
revision. Either way the folder has the layout of a diffusers pipeline.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"name": "a key of `text`"})

import shutil
from functools import partial
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # as its documentation has it

from multiscale.core import intact
from multiscale.core.storage import Table, read_json, sealed_folder
from multiscale.networks import clip
from multiscale.networks.text import INDEX, PIPELINES, is_text
from stages.common import fetch, fitting, images
from stages.common.errors import refuse
from stages.common.images import pixel_table
from stages.common.paths import EXPERIMENT, IMAGES, TEXT, TRAIN
from stages.schema import Experiment
from stages.schema.prompts import PublishedEncoder, TrainedEncoder

FILES = [INDEX, "tokenizer*/*", "text_encoder*/*.json", "text_encoder*/*.safetensors"]


def build(name: str, section: TrainedEncoder, channels: int, resolution: int) -> clip.ContrastivePart:
    """The part to train on the pictures and captions of the training split."""
    table, captions = pixel_table("train"), images.captions("train")["caption"].to_list()
    tokenizer = clip.words(captions)
    arrays = {"pixels": table.arrays["pixels"], "tokens": clip.tokens(tokenizer, captions).numpy()}
    size = {"width": section.width, "layers": section.layers, "heads": section.heads, "patch": section.patch}
    net = clip.build(tokenizer, resolution=resolution, channels=channels, **size)
    return clip.ContrastivePart(name, Table(arrays), net, tokenizer)


def publish(section: PublishedEncoder, key: str, out: Path) -> None:
    """Copies the text encoders and tokenizers of a published model. Raises BadInput for what is none."""
    source, place = Path(section.source), f"{key}.source"
    if not source.exists():
        source = fetch.snapshot(section.source, str(section.revision), place, FILES)
    if not (source / INDEX).exists():
        raise refuse(EXPERIMENT, place, section.source, f"a model in the layout of diffusers, with {INDEX}")
    index = read_json(source / INDEX)
    if index.get("_class_name") not in PIPELINES:
        raise refuse(EXPERIMENT, place, index.get("_class_name"), f"a model of {', '.join(PIPELINES)}")
    files = (path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    chosen = sorted(filter_repo_objects(files, allow_patterns=FILES, ignore_patterns=fetch.COPIES))  # as of a download
    weighted = {path.split("/")[0] for path in chosen if path.endswith(".safetensors")}
    for part in filter(is_text, index):
        if part.startswith(clip.ENCODER) and part not in weighted:
            raise refuse(EXPERIMENT, place, section.source, f"a model with {part}/*.safetensors")
    with sealed_folder(out) as folder:
        for path in chosen:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, folder / path)


def main(params: Experiment, name: str) -> None:
    if name not in params.text:
        raise refuse("encoder", "NAME", name, f"one of {', '.join(params.text) or 'none'}")
    section, title, out = params.text[name].encoder, f"text-{name}", TEXT / name
    if isinstance(section, PublishedEncoder):
        publish(section, f"text.{name}.encoder", out)
        return
    intact.check(IMAGES)
    images.check("train")
    made = partial(build, title, section, params.data.channels, params.data.resolution)
    fitting.train(fitting.job(title, made, section, params.seed, [IMAGES, TRAIN], out, "encoder"), params.run)
