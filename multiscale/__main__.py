"""Samples trained methods, and exports them.

    python -m multiscale sample models/msf --classes 3 7 --seeds 0-15 --out grid.png
    python -m multiscale export models/msf --to exported/msf

With a folder, `--out images/`, every image is a separate PNG. Needs only the folder of the method, not the
experiment. An image depends only on its seed and class. A text-to-image method is conditioned on prompts, which its
text encoder in models/text embeds: `--prompts "a seven above a three" "two ones"`, or a file with one prompt per line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiscale.core.terminal import announce

COLUMNS = 16


def seeds_of(text: str) -> list[int]:
    """The seeds in text such as 0-15 (both ends included) or 3,5,8. Raises ValueError."""
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.partition("-")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    if not found:
        raise ValueError
    return found


def settings_of(kind: str, given: list[str]) -> Any:
    """A method's section with settings KEY=VALUE, such as solver.steps=10 or scales.0.guidance_scale=1.5."""
    from pydantic import ValidationError

    from multiscale import methods
    from multiscale.core.settings import fault_of

    tree: dict[str, Any] = {"kind": kind}
    for each in given:
        key, _, value = each.partition("=")
        node: Any = tree
        *path, last = (int(step) if step.isdigit() else step for step in key.split("."))
        for step, after in zip(path, [*path[1:], last]):
            if isinstance(step, int):
                node.extend({} for _ in range(step + 1 - len(node)))
                node = node[step]
            else:
                node = node.setdefault(step, [] if isinstance(after, int) else {})
        node[last] = value
        with suppress(ValueError):
            node[last] = json.loads(value)
    try:
        return methods.settings(kind).METHOD.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"--set: {fault_of(error)}") from None


@dataclass(frozen=True)
class Asked:
    """What a row of images each shows."""

    labels: list[int]  # what the sampler is told
    names: list[str]  # with which the names of single PNGs begin
    title: str  # of the grid
    captions: list[str] | None = None  # under each image; None for classes


def of_classes(configs: list[dict[str, Any]], classes: list[int] | None) -> Asked:
    """The classes, by default all. Raises ValueError for one that the method was not trained on."""
    from multiscale.model import classes_of

    known = classes_of(configs)
    chosen = list(range(max(1, known))) if classes is None else classes
    if known and (unknown := [each for each in chosen if each not in range(known)]):
        raise ValueError(f"--classes: {unknown[0]} is not allowed; allowed: 0 to {known - 1}")
    if known <= 1:
        return Asked(chosen, [""] * len(chosen), "no classes")
    return Asked(chosen, [f"class-{each}-" for each in chosen], f"classes {', '.join(map(str, chosen))}")


def of_prompts(texts: list[str]) -> Asked:
    """The prompts, by their number from 1 on."""
    shown = "one prompt" if len(texts) == 1 else f"{len(texts)} prompts"
    return Asked(list(range(len(texts))), [f"prompt-{k}-" for k in range(1, len(texts) + 1)], shown, texts)


@contextmanager
def of_option(name: str) -> Iterator[None]:
    """Lets a ValueError begin with the option that it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def sample(given: argparse.Namespace) -> None:
    """Writes one image for each class or prompt and seed, as a grid or as single PNGs.

    Raises ValueError for classes or prompts that the method does not know or take, and for a file that is no PNG.
    """
    announce("loading torch and the model")
    import torch
    from tqdm import tqdm

    from multiscale import model, pictures, prompts, sampling
    from multiscale.core import models

    folder, seeds, out = given.folder, given.seeds, Path(given.out)
    single = given.out.endswith("/") or out.is_dir() or not out.suffix
    if not single and out.suffix.lower() != ".png":
        raise ValueError(
            f"--out: {given.out!r} is not allowed; allowed: FILE.png for a grid, FOLDER/ for single images"
        )
    configs = [models.about(part) for part in model.parts_in(folder)]
    reads = prompts.reads_text(folder)
    if not reads and (given.prompts or given.encoder):
        raise ValueError(f"--prompts: {folder} reads no text; allowed: --classes, or neither")
    if reads and (given.classes or not given.prompts):
        raise ValueError(f"--classes: {given.classes} is not allowed; allowed: --prompts, since {folder} reads text")
    settings, encoder = settings_of(configs[0]["kind"], given.set), None
    if reads:  # the encoder first: the pipelines of diffusers, which may have it, do not load after the networks
        with of_option("--prompts"):
            asked, encoder = of_prompts(prompts.read(given.prompts)), prompts.encoder(folder, given.encoder)
    sampler = model.load(folder, settings)
    if encoder:
        with of_option("--prompts"):
            prompts.condition_sampler(sampler, encoder, asked.captions or [])
    else:
        asked = of_classes(configs, given.classes)
    labels = torch.tensor(asked.labels).repeat_interleave(len(seeds))
    sampled = []
    with tqdm(total=len(labels), desc=f"sample {folder.name}", unit="img") as bar:
        for images in sampling.generate(sampler, seeds * len(asked.labels), labels, min(given.batch, len(labels))):
            sampled.append(images)
            bar.update(len(images))
    pixels = torch.cat(sampled)
    columns, title = min(len(seeds), COLUMNS), f"{folder.name}: {asked.title}, seeds {seeds[0]} to {seeds[-1]}"
    if single:
        out.mkdir(parents=True, exist_ok=True)
        for image, (name, seed) in zip(pixels, ((name, seed) for name in asked.names for seed in seeds)):
            pictures.to_image(image, 1).save(out / f"{name}seed-{seed}.png")
    elif asked.captions:
        under = [caption for caption in asked.captions for _ in seeds]
        pictures.captioned(pixels, under, columns, title).save(out)
    else:
        pictures.grid(pixels, columns, [str(seed) for seed in seeds[:columns]], title).save(out)
    print(given.out)


def export(given: argparse.Namespace) -> None:
    """Writes a method as a pipeline of diffusers, and uploads it if asked to. Raises ValueError."""
    if given.push and not given.license:
        raise ValueError(
            "--license: --push publishes the weights, so it must be given; allowed: the hub's, as apache-2.0"
        )
    announce("loading torch and diffusers")
    from multiscale import export, model
    from multiscale.core import models

    kind = models.about(model.parts_in(given.folder)[0])["kind"]
    export.export(given.folder, given.to, settings_of(kind, given.set), given.license or "other", given.push)
    print(given.to)
    if given.push:
        print(export.push(given.to, given.push))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m multiscale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("sample", help="make images")
    command.set_defaults(run=sample)
    command.add_argument("folder", type=Path, help="a trained method, models/METHOD")
    command.add_argument("--classes", type=int, nargs="+", help="one row per class (default: all classes)")
    command.add_argument("--prompts", nargs="+", help="texts, one row each, or a text file with one per line")
    command.add_argument("--encoder", type=Path, help="text encoder (default: the one in models/text)")
    command.add_argument("--seeds", type=seeds_of, default="0-7", help="0-15 or 3,5,8 (default: 0-7)")
    command.add_argument(
        "--out", default="grid.png", help="FILE.png for a grid, FOLDER/ for single images (default: grid.png)"
    )
    command.add_argument("--batch", type=int, default=50, help="images per batch (default: 50)")
    other = commands.add_parser("export", help="write a diffusers pipeline")
    other.set_defaults(run=export)
    other.add_argument("folder", type=Path, help="a trained method, models/METHOD")
    other.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    other.add_argument("--push", metavar="OWNER/NAME", help="repository on the Hugging Face Hub to upload it to")
    other.add_argument("--license", help="licence of the weights, such as cc-by-4.0; --push needs it")
    for each in (command, other):
        each.add_argument(
            "--set",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="settings of the solver, such as solver.steps=10 (MSF: scales.0.steps=24 scales.1.steps=12)",
        )
    given = parser.parse_args()
    try:
        given.run(given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
