"""The sections that every experiment has: data, autoencoder, judge, sampling and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from multiscale.settings import Bad, Count, Name, Positive, Precision, Section, Share, Text, Training


class Run(Section):
    """How the stages run. Not tracked by DVC: it decides speed, not results.

    Other threads take sums in another order, so that weights can differ in their last bits. Several threads beside any
    other work are slow (one waits for another that is not scheduled); several stages at once use the cores better.
    """

    workers: Count = 0  # Ray workers of a stage that trains, encodes, samples or extracts features; 0: the stage itself
    threads: Positive = 1  # of a stage, or of each of its workers, which asks for as many cores
    gpus: Annotated[float, Field(ge=0)] | None = None  # of a worker; below 1 a share; null: 1 where the cluster has any
    parallel: Literal["ddp", "fsdp"] = "ddp"  # fsdp: each worker holds a share of a network that fits no device

    @model_validator(mode="after")
    def _check(self) -> Run:
        if self.gpus and self.gpus > 1 and self.gpus % 1:
            raise Bad("gpus", self.gpus, "a share below 1, or whole GPUs")
        return self


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
    # How the size is reached: 'area' averages the centred square, 'box-bicubic' is ADM's way, by halves and bicubic
    resize: Literal["area", "box-bicubic"] = "area"
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

    images: Annotated[int, Field(ge=4)]  # a standard error needs as many
    batch: Positive = 100
    first_seed: Count = 0
    labels: Literal["uniform", "data"] = "uniform"  # the classes in turn, or drawn as the training images have them
    precision: Precision = "auto"
    repeats: Positive = 3
    grid_columns: Positive = 10
    grid_rows: Positive = 6


Extractor = Literal["efficientnet-lite0", "efficientnet-lite2", "inception-v3-compat"]


class Evaluate(Section):
    """The protocol of the metrics; it stands in every row."""

    extractor: Extractor
    second_extractor: Extractor | None = "efficientnet-lite2"  # gives KID, too: do both rank alike? null: none
    weights: str | None = None  # file of inception-v3-compat's weights
    reference_images: Positive | None = None  # of the training split; null takes all
    floors: list[Literal["real", "autoencoder"]] = ["real", "autoencoder"]  # made of the test split; [] without one
    batch: Positive = 64
    is_splits: Positive = 10
    prc_neighborhood: Positive = 3

    @model_validator(mode="after")
    def _check(self) -> Evaluate:
        if self.second_extractor == self.extractor:
            raise Bad("second_extractor", self.second_extractor, "another than extractor, or null")
        if len(set(self.floors)) < len(self.floors):
            raise Bad("floors", self.floors, "each floor once")
        return self
