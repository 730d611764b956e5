"""What may stand in `params/experiment.yaml`: one frozen model a section, and the checks that span sections.

The file spells out every value (the recipe command writes them all), so the defaults here serve recipes only and no
result depends on this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from multiscale.methods import ssd
from multiscale.networks.dit import PRESETS
from multiscale.networks.unet import PRESETS as UNETS

LARGEST = 2**53  # up to here JSON, DVC and torch read the same integer
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Precision = Literal["auto", "fp32", "bf16"]
RESERVED = ("vae", "classifier")  # stages that leave files beside those of the parts and methods


class Bad(ValueError):
    """A combination that cannot work: the key, the value and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str):
        super().__init__(allowed)
        self.key, self.value, self.allowed = key, value, allowed


class Section(BaseModel):
    """A frozen section: unknown keys, other types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        # Before anything else: of a misspelt key the line should say so, not that the right one is missing.
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise Bad(key, key, f"the keys {', '.join(cls.model_fields)}")
        return value


class Run(Section):
    """How the stages run. Not tracked by DVC: it decides speed, not results."""

    workers: Count = 0  # processes of data-parallel training; 0 trains inside the stage


class Data(Section):
    """Where the images come from and how they are cut."""

    name: Name
    source: Literal["digits", "files", "url", "hub"]
    path: Text  # folder, zip, tar or Parquet ('files'); else the folder that describes the source
    url: str | None = None  # of a zip, tar or Parquet ('url'), or the data set's name ('hub')
    revision: str | None = None  # commit or tag ('hub')
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None  # of the archive
    image_column: Text = "image"
    label_column: Text | None = "label"  # null: a set without labels
    size: Positive
    channels: Literal[1, 3]
    max_unreadable: Share = 0.01  # the set is refused when a larger share cannot be decoded
    validation_share: Share = 0.05  # of a set that names no splits
    test_share: Share = 0.05

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.source == "url" and not self.sha256:
            raise Bad("sha256", self.sha256, "the SHA-256 of the archive, required with source: url")
        if self.source in ("url", "hub") and not self.url:
            raise Bad("url", self.url, f"required with source: {self.source}")
        if self.source == "url" and not self.url.startswith(("https://", "http://", "file://")):
            raise Bad("url", self.url, "an https, http or file URL")
        if self.sha256 and self.source in ("digits", "hub"):
            raise Bad("sha256", self.sha256, f"null with source: {self.source}, which has no archive to check")
        if self.source == "hub" and not self.revision:
            raise Bad("revision", self.revision, "a commit or tag, required with source: hub")
        if self.validation_share + self.test_share >= 1:
            raise Bad("test_share", self.test_share, "validation_share + test_share below 1")
        return self


class Training(Section):
    """`multiscale.training.Training`: budgets and intervals in images."""

    images: Positive
    batch: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 2e-3
    warmup_images: Count = 2000
    decay: Literal["constant", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.99
    clip: Annotated[float, Field(ge=0)] = 1.0
    ema_images: Positive = 4000
    precision: Precision = "auto"
    compile: bool = False
    log_images: Positive = 2000
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0


class VAE(Section):
    """The autoencoder: trained here, a published one, or none (pixels)."""

    kind: Literal["train", "published", "none"]
    source: str | None = None  # hub name or folder of a published one
    revision: str | None = None
    subfolder: str | None = None
    latent_channels: Positive = 4
    widths: Annotated[list[Positive], Field(min_length=1)] = [32, 64, 64]
    layers: Positive = 1
    groups: Positive = 8
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    sides: list[Positive] = []  # pixel sides it is trained at, one a step
    training: Training | None = None

    @property
    def factor(self) -> int:
        """How much smaller a latent grid is than its image (published ones: by Stable Diffusion's 8)."""
        return {"train": 2 ** (len(self.widths) - 1), "published": 8, "none": 1}[self.kind]

    @model_validator(mode="after")
    def _check(self) -> VAE:
        if self.kind == "published":
            if not self.source:
                raise Bad("source", self.source, "a hub name or a folder, required with kind: published")
            if not self.revision and not Path(self.source).exists():
                raise Bad("revision", self.revision, "a commit or tag, required with a hub name")
        if self.kind == "train":
            if self.training is None:
                raise Bad("training", None, "required with kind: train")
            if not self.sides:
                raise Bad("sides", self.sides, "at least one pixel side, required with kind: train")
            for width in self.widths:
                if width % self.groups:
                    raise Bad("widths", self.widths, f"multiples of groups ({self.groups})")
            for side in self.sides:
                if side % self.factor:
                    raise Bad("sides", self.sides, f"multiples of the autoencoder's factor {self.factor}")
        return self


class Latents(Section):
    """The pixel sides that are encoded, each by its own `latents` stage; none where every method works on pixels."""

    sides: list[Positive]
    batch: Positive = 128
    precision: Precision = "auto"


class Pixels(Section):
    """The images as they are."""

    kind: Literal["pixels"]
    reads: Literal["images.parquet"] = "images.parquet"  # in data/


class Residual(Section):
    """Base and residual latents: pixel sides of the scales, growing to the full size. One side: no decomposition."""

    kind: Literal["residual"]
    reads: Literal["latents"] = "latents"  # in data/
    sides: Annotated[list[Positive], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Residual:
        if self.sides != sorted(set(self.sides)):
            raise Bad("sides", self.sides, "sides that grow from scale to scale")
        return self


class DiTNetwork(Section):
    """A DiT's size; `preset: NAME` in a recipe stands for all four numbers."""

    depth: Positive
    width: Positive
    heads: Positive
    patch: Positive

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, dict) and "preset" in value:
            if value["preset"] not in PRESETS or len(value) > 1:
                raise Bad("preset", value["preset"], f"alone, one of {', '.join(PRESETS)}")
            return dict(zip(("depth", "width", "heads", "patch"), PRESETS[value["preset"]]))
        return value

    @model_validator(mode="after")
    def _check(self) -> DiTNetwork:
        if self.width % self.heads or self.width % 4:
            raise Bad("width", self.width, f"a multiple of heads ({self.heads}) and of 4")
        return self


class FlowPart(Section):
    """One rectified-flow DiT of MSF: `index` is its scale in what it reads. One scale is the DiT control."""

    method: Name  # the row of the leaderboard that it belongs to
    kind: Literal["msf"]  # the module in multiscale/methods
    reads: Name  # a name in `decompose`
    index: Count
    network: DiTNetwork
    label_dropout: Share = 0.1
    times: Literal["uniform", "logit-normal"] = "logit-normal"
    prior_noise: Annotated[float, Field(ge=0)] = 0.0
    training: Training


class Solver(Section):
    """How one flow is sampled."""

    steps: Positive
    method: Literal["euler", "heun"] = "euler"
    cfg: Annotated[float, Field(ge=0)] = 1.0  # guidance weight; 1 is none


class MSFMethod(Section):
    """The sampler of MSF: one solver a scale. One scale is the DiT control."""

    kind: Literal["msf"]
    parts: Annotated[list[Name], Field(min_length=1)]  # from the coarsest scale on
    scales: Annotated[list[Solver], Field(min_length=1)]


class UNetNetwork(Section):
    """A UNet's size; `preset: NAME` in a recipe stands for all of it."""

    width: Positive
    multipliers: Annotated[list[Positive], Field(min_length=1)]  # of the width, one a level
    blocks: Positive  # residual blocks a level
    attention: list[Positive]  # sides that have it
    heads: Positive
    groups: Positive
    top_block: bool = False  # the block that the published plain UNet runs and the published Flexi-UNet never does

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, dict) and "preset" in value:
            name, *rest = value["preset"], *(set(value) - {"preset", "top_block"})
            if name not in UNETS or rest:
                raise Bad("preset", name, f"alone or with top_block, one of {', '.join(UNETS)}")
            _, width, multipliers, blocks, attention, heads, groups = UNETS[name]
            sizes = {"width": width, "multipliers": list(multipliers), "blocks": blocks, "attention": list(attention)}
            return sizes | {"heads": heads, "groups": groups, "top_block": value.get("top_block", False)}
        return value


class ScaleSpaceProcess(Section):
    """SSD's forward process. One level is DDPM."""

    steps: Annotated[int, Field(ge=20, le=LARGEST)] = 1000
    levels: Positive
    sizes: Literal["halved", "gradual"] = "halved"
    schedule: Literal["equal", "convex-decay", "tanh-like", "sigmoid-like"] = "convex-decay"
    gamma: Annotated[float, Field(gt=0)] = 0.5
    operator: Literal["bilinear", "box", "identity"] = "bilinear"


class SSDPart(Section):
    """The one network of SSD, or with one level of the DDPM control."""

    method: Name
    kind: Literal["ssd"]
    reads: Name
    process: ScaleSpaceProcess
    unet: Literal["flexi", "full", "enlarged"] = "flexi"  # 'full': every side runs the whole network
    network: UNetNetwork
    conditional: bool = True
    label_dropout: Share = 0.1
    flip: bool = False
    oversample: Positive = 1  # how much likelier than uniform a change of side is drawn; weighted back
    training: Training


class AncestralSolver(Section):
    """How a diffusion chain is sampled."""

    steps: Annotated[int, Field(ge=2, le=LARGEST)]  # of the process, besides those that change the side
    eta: Share = 1.0  # 1: the posterior (DDPM); 0: DDIM
    cfg: Annotated[float, Field(ge=0)] = 1.0
    last_step: Literal["clean", "as-released"] = "clean"


class SSDMethod(Section):
    """The sampler of SSD, or of the DDPM control."""

    kind: Literal["ssd"]
    parts: Annotated[list[Name], Field(min_length=1, max_length=1)]
    solver: AncestralSolver


class Classifier(Section):
    """The judge of the samples' classes."""

    width: Positive = 32
    stages: Positive = 3
    training: Training

    @model_validator(mode="after")
    def _check(self) -> Classifier:
        if self.width % 8:
            raise Bad("width", self.width, "a multiple of 8")
        return self


class Sample(Section):
    """How many images each method makes, and how its speed is measured."""

    images: Annotated[int, Field(ge=2)]
    batch: Positive = 100
    first_seed: Count = 0
    precision: Precision = "auto"
    repeats: Positive = 3
    grid_columns: Positive = 10
    grid_rows: Positive = 6


class Evaluate(Section):
    """The protocol of the metrics; it stands in every row."""

    extractor: Literal["efficientnet-lite0", "inception-v3-compat"]
    weights: str | None = None  # file of inception-v3-compat's weights
    reference_images: Positive | None = None  # of the training split; null takes all
    batch: Positive = 64
    kid_subsets: Positive = 50
    kid_subset_size: Annotated[int, Field(ge=2)]
    is_splits: Positive = 10
    prc_neighborhood: Positive = 3


Decomposition = Annotated[Pixels | Residual, Field(discriminator="kind")]
READS = {"msf": Residual, "ssd": Pixels}  # the kind of decomposition that each kind of part is trained on
Part = Annotated[FlowPart | SSDPart, Field(discriminator="kind")]
Method = Annotated[MSFMethod | SSDMethod, Field(discriminator="kind")]


def _allowed(error: ValueError) -> str:
    """What the science says is allowed, with its reason."""
    problem, _, allowed = str(error).partition("; allowed: ")
    return f"{allowed} ({problem})"


class Experiment(Section):
    """The whole of `params/experiment.yaml`."""

    recipe: str
    seed: Count
    run: Run
    data: Data
    vae: VAE
    latents: Latents
    decompose: Annotated[dict[Name, Decomposition], Field(min_length=1)]
    parts: Annotated[dict[Name, Part], Field(min_length=1)]
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    classifier: Classifier
    sample: Sample
    evaluate: Evaluate

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        self._check_sides()
        for name, decomposition in self.decompose.items():
            self._check_decomposition(f"decompose.{name}", decomposition)
        for name, part in self.parts.items():
            self._check_part(f"parts.{name}", name, part)
        for name, method in self.methods.items():
            self._check_method(f"methods.{name}", name, method)
        trained = [self.classifier.training, self.vae.training, *(part.training for part in self.parts.values())]
        for training in trained:
            if training and self.run.workers and training.batch % self.run.workers:
                raise Bad("run.workers", self.run.workers, f"a divisor of every batch (one is {training.batch})")
        smallest = min(self.sample.images, self.evaluate.reference_images or self.sample.images)
        for key, most in (
            ("kid_subset_size", smallest),
            ("prc_neighborhood", smallest - 1),  # an image is no neighbour of itself
            ("is_splits", self.sample.images),
        ):
            if getattr(self.evaluate, key) > most:
                raise Bad(f"evaluate.{key}", getattr(self.evaluate, key), f"at most {most}, by the number of images")
        return self

    def _check_sides(self) -> None:
        size, factor = self.data.size, self.vae.factor
        if len(set(self.latents.sides)) < len(self.latents.sides):
            raise Bad("latents.sides", self.latents.sides, "each side once")
        for side in self.latents.sides:
            if side % factor:
                raise Bad("latents.sides", side, f"multiples of the autoencoder's factor {factor}")
        trained = self.vae.sides if self.vae.kind == "train" else []
        for key, sides in (("latents.sides", self.latents.sides), ("vae.sides", trained)):
            if max(sides, default=0) > size:
                raise Bad(key, max(sides), f"sides up to data.size ({size})")

    def _check_decomposition(self, key: str, decomposition: Pixels | Residual) -> None:
        if isinstance(decomposition, Pixels):
            return
        sides = decomposition.sides
        if sides[-1] != self.data.size:
            raise Bad(f"{key}.sides", sides, f"a last side of data.size ({self.data.size})")
        for side in sides:
            if side % self.vae.factor:
                raise Bad(f"{key}.sides", sides, f"multiples of the autoencoder's factor {self.vae.factor}")
        for side in (sides[0], sides[-1]):
            if side not in self.latents.sides:
                raise Bad("latents.sides", self.latents.sides, f"{side} among them, since {key}.sides needs it")

    def _check_part(self, key: str, name: str, part: FlowPart | SSDPart) -> None:
        if name in RESERVED or name.startswith("sample-"):
            raise Bad(key, name, "another name: reports/timing has a file of this one already")
        needed = READS[part.kind]
        fitting = [other for other, section in self.decompose.items() if isinstance(section, needed)]
        if part.reads not in fitting:
            raise Bad(f"{key}.reads", part.reads, f"one of {', '.join(fitting) or 'none'}, of the kind that it needs")
        if part.method not in self.methods:
            raise Bad(f"{key}.method", part.method, f"one of {', '.join(self.methods)}")
        if self.methods[part.method].kind != part.kind:
            raise Bad(f"{key}.kind", part.kind, f"{self.methods[part.method].kind}, as methods.{part.method} says")
        if isinstance(part, FlowPart):
            self._check_flow(key, part)
        else:
            self._check_scale_space(key, part)

    def _check_flow(self, key: str, part: FlowPart) -> None:
        sides = self.decompose[part.reads].sides
        if part.index >= len(sides):
            raise Bad(f"{key}.index", part.index, f"below the {len(sides)} scales of decompose.{part.reads}")
        latent = sides[part.index] // self.vae.factor
        if latent % part.network.patch:
            raise Bad(f"{key}.network.patch", part.network.patch, f"a divisor of the latent side {latent}")

    def _check_scale_space(self, key: str, part: SSDPart) -> None:
        classes = 1 if part.conditional else 0
        config = {**part.model_dump(), "channels": self.data.channels, "side": self.data.size, "classes": classes}
        try:
            process = ssd.build_process(config)
        except ValueError as error:
            raise Bad(f"{key}.process.levels", part.process.levels, _allowed(error)) from None
        try:
            with torch.device("meta"):
                ssd.build_network(config, process)
        except ValueError as error:
            raise Bad(f"{key}.network.multipliers", part.network.multipliers, _allowed(error)) from None

    def _check_method(self, key: str, name: str, method: MSFMethod | SSDMethod) -> None:
        if name in RESERVED:
            raise Bad(key, name, "another name: models has a folder of this one already")
        belonging = [part for part, section in self.parts.items() if section.method == name]
        if sorted(method.parts) != sorted(belonging):
            raise Bad(
                f"{key}.parts", method.parts, f"the parts whose method is {name}: {', '.join(belonging) or 'none'}"
            )
        parts = [self.parts[part] for part in method.parts]
        if isinstance(method, MSFMethod):
            self._check_scales(key, method, parts)
        else:
            if method.solver.steps > parts[0].process.steps:
                raise Bad(f"{key}.solver.steps", method.solver.steps, f"at most the process's {parts[0].process.steps}")
            if method.solver.cfg != 1 and not parts[0].conditional:
                raise Bad(f"{key}.solver.cfg", method.solver.cfg, "1.0, since the part is not conditional")

    def _check_scales(self, key: str, method: MSFMethod, parts: list[FlowPart]) -> None:
        if len({part.reads for part in parts}) > 1:
            raise Bad(f"{key}.parts", method.parts, "parts that read one decomposition")
        scales = len(self.decompose[parts[0].reads].sides)
        if [part.index for part in parts] != list(range(scales)):
            raise Bad(f"{key}.parts", method.parts, f"one part for each of the {scales} scales of {parts[0].reads}")
        if len(method.scales) != scales:
            raise Bad(f"{key}.scales", len(method.scales), f"{scales} solvers, one a scale")
