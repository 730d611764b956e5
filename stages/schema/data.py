"""The sections that do not depend on the methods: data, autoencoder, latents, classifier, sampling and evaluation."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from multiscale.core.settings import (
    Bad,
    Edge,
    Few,
    FewOr0,
    From0,
    Halvings,
    Images,
    Name,
    Positive,
    Precision,
    Samples,
    Section,
    Seed,
    Share,
    Text,
    check_revision,
)
from multiscale.core.streams import Randomness
from multiscale.training.part import Training
from stages.datasets.compose import FACTORS

Floor = Literal["real", "autoencoder"]
Extractor = Literal["efficientnet-lite0", "efficientnet-lite2", "inception-v3-compat"]


class Run(Section):
    """How the stages run.

    The number of threads changes the order of summation, and so the last bits of the weights. On a busy machine several
    threads are slow, as one waits for another that is not scheduled: running several stages at once uses cores better.
    """

    workers: FewOr0 = 0
    """Ray workers of a stage that trains, encodes, samples or extracts features; 0: no Ray"""
    threads: Few = 1
    """of a stage or of each worker, which reserves as many cores"""
    gpus: From0 | None = None
    """of a worker, a fraction below 1 to share one; null: 1 if the cluster has any"""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """fsdp: shards networks that do not fit on one device"""
    interface: Text | None = None
    """of the network between workers; null: the loopback, on a cluster what gloo and NCCL find"""
    randomness: Randomness = "cpu"
    """of trainings; device: not the numbers of cpu, but drawn where they are needed"""
    checkpoint_seconds: From0 = 30.0
    """between two checkpoints, or more, so that they take 1 % of the time; 0: after every step"""
    previews: FewOr0 = 8
    """samples in the picture at each tenth of a training, eight a row; 0: no pictures"""
    tracker: Literal["tensorboard", "mlflow"] | None = None
    """is told each row of a training's history as it comes, an extra to install; null: none"""
    batch: Positive = 128
    """images a batch in encoding and feature extraction"""

    @model_validator(mode="after")
    def _check(self) -> Run:
        if self.gpus and self.gpus > 1 and self.gpus % 1:
            raise Bad("gpus", self.gpus, "a fraction below 1, or whole GPUs")
        return self


class Data(Section):
    """The dataset, and how its images are resized and split."""

    name: Name
    """of the dataset"""
    source: Literal["digits", "digit-pairs", "files", "url", "hub"]
    """digits: MNIST; digit-pairs: two, captioned; files: local; url: a download; hub: Hugging Face"""
    path: Text
    """folder, zip, tar or Parquet of `files`; else the folder whose README describes the source"""
    url: str | None = None
    """of a zip, tar or Parquet (`url`), or the dataset's name (`hub`)"""
    revision: str | None = None
    """commit or tag (`hub`)"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """of the archive; required with `url`"""
    image_column: Text = "image"
    """of Parquet"""
    label_column: Text | None = "label"
    """of Parquet; null: an unlabelled dataset"""
    caption_column: Text | None = None
    """of Parquet or of metadata.csv or .jsonl, else name.txt beside each image; null: no captions"""
    pictures: Annotated[int, Field(gt=0, le=10**6)] | None = None
    """to compose of two digits with a caption (`digit-pairs`)"""
    resolution: Edge
    """of the square images after resizing, in pixels"""
    channels: Literal[1, 3]
    """1: grey, 3: RGB"""
    classes: Positive | None = None
    """that the dataset must have; null: as many as are found"""
    resize: Literal["area", "box-bicubic"] = "area"
    """area: area average of the centre crop; box-bicubic: ADM's, halving and then bicubic"""
    max_unreadable: Share = 0.01
    """largest tolerated share of images that cannot be decoded"""
    validation_share: Share = 0.05
    """held out of training, if the dataset has no validation split of its own"""
    test_share: Share = 0.05
    """held out for evaluation, if the dataset has no splits of its own"""

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.source == "url" and not self.sha256:
            raise Bad("sha256", self.sha256, "the SHA-256 of the archive, required with source: url")
        if self.source in ("url", "hub") and not self.url:
            raise Bad("url", self.url, f"required with source: {self.source}")
        if self.source == "url" and not (self.url or "").startswith(("https://", "http://", "file://")):
            raise Bad("url", self.url, "an https, http or file URL")
        if self.source == "url":
            self._check_url()
        if self.sha256 and self.source in ("digits", "digit-pairs", "hub"):
            raise Bad("sha256", self.sha256, f"null with source: {self.source}, which has no archive")
        if self.source == "hub" and not self.revision:
            raise Bad("revision", self.revision, "a commit or tag, required with source: hub")
        if self.validation_share + self.test_share >= 1:
            raise Bad("test_share", self.test_share, "validation_share + test_share below 1")
        self._check_captions()
        return self

    def _check_url(self) -> None:
        try:
            urlsplit(self.url)
        except ValueError as error:
            raise Bad("url", self.url, f"a URL ({error})") from None

    def _check_captions(self) -> None:
        if self.caption_column and self.source in ("digits", "digit-pairs"):
            raise Bad("caption_column", self.caption_column, f"null with source: {self.source}")
        fewest = math.ceil(math.prod(FACTORS) / (1 - self.validation_share - self.test_share))
        if self.source == "digit-pairs" and (self.pictures or 0) < fewest:
            raise Bad("pictures", self.pictures, f"at least {fewest}, for a training image of each content")
        if self.pictures and self.source != "digit-pairs":
            raise Bad("pictures", self.pictures, f"null with source: {self.source}")


class TrainedVAE(Section):
    """The autoencoder, trained here. kind: published downloads one, kind: none works on pixels."""

    kind: Literal["train"]
    latent_channels: Positive = 4
    """channels of a latent"""
    widths: Annotated[list[Positive], Field(min_length=1, max_length=13)] = [32, 64, 64]
    """channels of each level; every level after the first halves the resolution"""
    layers: Few = 1
    """residual blocks a level"""
    groups: Positive = 8
    """of group normalisation"""
    kl_weight: From0 = 1e-3
    """weight of the KL divergence from a standard normal"""
    resolutions: Annotated[list[Positive], Field(min_length=1)]
    """in pixels; each step trains at one of them, drawn at random"""
    training: Training

    @property
    def factor(self) -> int:
        """The resolution of an image over that of its latent."""
        return int(2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _check(self) -> TrainedVAE:
        for width in self.widths:
            if width % self.groups:
                raise Bad("widths", self.widths, f"multiples of groups ({self.groups})")
        for resolution in self.resolutions:
            if resolution % self.factor:
                raise Bad("resolutions", self.resolutions, f"multiples of the autoencoder's factor {self.factor}")
        return self


class PublishedVAE(Section):
    """The autoencoder, a published one. kind: train trains one here, kind: none works on pixels."""

    kind: Literal["published"]
    source: Text
    """name on the Hugging Face hub, or folder"""
    revision: Text | None = None
    """commit or tag; required for the hub"""
    subfolder: str | None = None
    """of the source"""

    @property
    def factor(self) -> int:
        """The factor of Stable Diffusion's autoencoders."""
        return 8

    @model_validator(mode="after")
    def _check(self) -> PublishedVAE:
        check_revision(self.source, self.revision)
        return self


class NoVAE(Section):
    """No autoencoder: everything works on pixels."""

    kind: Literal["none"]

    @property
    def factor(self) -> int:
        """Pixels are their own latents."""
        return 1


VAE = Annotated[TrainedVAE | PublishedVAE | NoVAE, Field(discriminator="kind")]


class Latents(Section):
    """The images encoded by the autoencoder, one stage a resolution."""

    resolutions: list[Positive]
    """of the images to encode, in pixels; [] if every method works on pixels"""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies it natively"""


class Classifier(Section):
    """The classifier that measures whether samples show their class."""

    width: Annotated[Positive, Field(multiple_of=8)] = 32
    """channels of the first layer; the first two stages double them"""
    stages: Halvings = 3
    """each halves the resolution"""
    training: Training


class Sample(Section):
    """How many images are sampled, and how."""

    images: Annotated[Samples, Field(ge=4)]
    """of each method; a standard error needs at least 4"""
    batch: Positive = 100
    """images a batch"""
    first_seed: Seed = 0
    """image k has the seed first_seed + k"""
    labels: Literal["uniform", "data"] = "uniform"
    """uniform: the classes in turn; data: drawn with their frequencies in the training images"""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies it natively"""
    step_images: Annotated[Samples, Field(ge=4)] = 250
    """at most, of each of the further `steps` of a method"""
    grid_columns: Few = 10
    """of the picture of samples, one class each"""
    grid_rows: Few = 6
    """of the picture of samples"""


class Timing(Section):
    """How the seconds of sampling are measured."""

    rounds: Few = 3
    """each times every method once; medians are reported"""
    batch: Positive | None = None
    """images a batch, on which seconds per image depend; null: sample.batch"""


class Evaluate(Section):
    """The protocol of the metrics, recorded in every row of the leaderboard."""

    extractor: Extractor
    """features of the metrics"""
    second_extractor: Extractor | None = "efficientnet-lite2"
    """for a second KID, to check the ranking; null: none"""
    weights: str | None = None
    """file with the weights of inception-v3-compat; null: downloaded"""
    reference: Text | None = None
    """ADM's reference batch (.npz of arr_0, or mu and sigma) or a folder of images; null: training images"""
    reference_images: Images | None = None
    """of the training split, spread evenly, or the first of `reference`; null: all"""
    resolution: Edge | None = None
    """resize images to this edge before the extractor, by Lanczos, as FID-30K does; null: leave them"""
    dinov2: Text | None = None
    """folder of a DINOv2 of transformers, for FD-DINOv2; null: none"""
    floors: list[Floor] = ["real", "autoencoder"]
    """reference rows: the test images, their reconstructions; [] without a test split"""
    is_splits: Positive = 10
    """of the Inception Score"""
    prc_neighborhood: Positive = 3
    """nearest neighbours of precision and recall"""
    clip_score: Text | None = None
    """folder of a CLIP of transformers, for the CLIPScore of images with prompts; null: none"""
    pick_score: Text | None = None
    """folder of PickScore's CLIP, likewise; null: none"""

    @model_validator(mode="after")
    def _check(self) -> Evaluate:
        if self.second_extractor == self.extractor:
            raise Bad("second_extractor", self.second_extractor, "an extractor other than `extractor`, or null")
        if len(set(self.floors)) < len(self.floors):
            raise Bad("floors", self.floors, "each floor once")
        for key, net in (("clip_score", "CLIP"), ("pick_score", "CLIP"), ("dinov2", "DINOv2")):
            if (folder := getattr(self, key)) and not os.path.isfile(Path(folder, "config.json")):
                allowed = f"null, or a folder with a {net} as transformers saves it; nothing is downloaded"
                raise Bad(key, folder, allowed)
        return self
