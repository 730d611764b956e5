"""A trained method in use: its sampler, from its folder, and images of classes and seeds in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiscale import methods
from multiscale.core import intact, models
from multiscale.core.settings import Sampled
from multiscale.networks import autoencoder
from multiscale.sampling import Sampler, Trace, generate


def load(folder: Path, settings: Sampled | None = None, precision: str = "auto") -> Sampler:
    """The sampler of the trained method in a folder, models/METHOD.

    settings: the method's section of an experiment; None takes the default solvers. Raises ForeignModel for a folder
    without trained parts, or with parts of several methods, TypeError for settings that are not of the method's model.
    """
    parts = parts_in(folder)
    intact.check(*parts)
    kind = models.about(parts[0])["kind"]
    if kind not in methods.names() or any(models.about(part)["kind"] != kind for part in parts):
        allowed = f"parts of one method ({', '.join(methods.names())})"
        raise models.ForeignModel(f"{folder}: kind: {kind!r} is not allowed; allowed: {allowed}")
    known = methods.settings(kind).METHOD
    if settings is not None and not isinstance(settings, known):
        allowed = f"{known.__name__} of {known.__module__}, or None"
        raise TypeError(f"settings: {type(settings).__name__} is not allowed; allowed: {allowed}")
    section = settings or known(kind=kind)
    sampler: Sampler = methods.sampler(kind).load_sampler(parts, section, autoencoder.codec_of(parts[0]), precision)
    return sampler


def parts_in(folder: Path) -> list[Path]:
    """The folders of a method's trained parts. Raises ForeignModel where there are none."""
    parts = sorted(path.parent for path in Path(folder).glob(f"[!.]*/{models.CONFIG}"))
    if not parts:
        raise models.ForeignModel(f"{folder}: holds no trained parts; allowed: the folder of a method, models/METHOD")
    return parts


def classes_of(configs: Iterable[Mapping[str, Any]]) -> int:
    """The classes that a method was trained on, by the configs of its parts; 0 for one without classes."""
    return max(int(config.get("classes", 0)) for config in configs)


class Model:
    """A sampler, and the classes 0 ... classes - 1 that its method was trained on; 0 for a method without classes.

    A method that reads text has no classes; it shows the empty prompt.
    """

    def __init__(self, sampler: Sampler, classes: int):
        self.sampler, self.classes = sampler, classes

    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        """Images (N, C, H, H) in [0, 1] in one batch; see `multiscale.sampling.Sampler`."""
        return self.sampler(seeds, labels, trace)

    def sample(self, classes: int | Sequence[int] | None, seeds: Sequence[int], batch: int = 50) -> Tensor:
        """Images (N, C, H, H) in [0, 1], float32 on the CPU, one for each seed, at the 256 levels of a PNG.

        classes: of all images, or a class for each; None for a method without classes. Image k depends on seeds[k] and
        classes[k] alone, and its last bits on `batch`, the images that are made at once. Raises ValueError for a class
        that the method does not know, for other than one for each seed, and where there are no seeds.
        """
        labels = self.labels(classes, len(seeds))
        if not seeds or batch < 1:
            raise ValueError(f"{len(seeds)} seeds in batches of {batch} are not allowed; allowed: at least 1 of each")
        made = generate(self.sampler, list(seeds), labels, min(batch, len(seeds)))
        return torch.cat([images.cpu() for images in made]).float() / 255

    def labels(self, classes: int | Sequence[int] | None, count: int) -> Tensor:
        """The labels (count,) of classes. Raises ValueError as `sample` does."""
        given = [classes] * count if isinstance(classes, int) else [0] * count if classes is None else list(classes)
        if (classes is None and self.classes > 1) or (classes is not None and not self.classes):
            allowed = f"0 to {self.classes - 1}" if self.classes else "None, since the method has no classes"
            raise ValueError(f"classes: {classes} is not allowed; allowed: {allowed}")
        if len(given) != count:
            raise ValueError(
                f"classes: {len(given)} are not allowed; allowed: {count}, one for each seed, or one in all"
            )
        if self.classes and (unknown := [each for each in given if each not in range(self.classes)]):
            raise ValueError(f"classes: {unknown[0]} is not allowed; allowed: 0 to {self.classes - 1}")
        return torch.tensor(given, dtype=torch.long)
