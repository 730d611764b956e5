"""The sections of text: the text encoder of captions and prompts, and where prompts come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from multiscale.core.settings import Bad, Few, Images, Positive, Precision, Section, check_revision
from multiscale.core.settings import Text as Words
from multiscale.training.part import Training
from stages.common.paths import IMAGES


class TrainedEncoder(Section):
    """The text encoder of a small CLIP, trained here on the captions. kind: published fetches a published one."""

    kind: Literal["train"]
    width: Positive = 64
    """channels of both towers, and of the pooled embedding"""
    layers: Few = 2
    """transformer blocks of each tower"""
    heads: Positive = 2
    """of attention"""
    patch: Positive = 8
    """pixels of a token of the images, in each direction"""
    training: Training

    @model_validator(mode="after")
    def _check(self) -> TrainedEncoder:
        if self.width % self.heads:
            raise Bad("width", self.width, f"a multiple of heads ({self.heads})")
        return self


class PublishedEncoder(Section):
    """The text encoder, a published one. kind: train trains that of a small CLIP on the captions."""

    kind: Literal["published"]
    source: Words
    """name on the Hugging Face hub, or folder, of SD3, SDXL or FLUX in the layout of diffusers"""
    revision: Words | None = None
    """commit or tag; required for the hub"""
    length: Positive = 256
    """tokens of a text for the T5 encoder, if the model has one; CLIP takes 77"""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies it natively"""

    @model_validator(mode="after")
    def _check(self) -> PublishedEncoder:
        check_revision(self.source, self.revision)
        return self


Encoder = Annotated[TrainedEncoder | PublishedEncoder, Field(discriminator="kind")]


class Prompts(Section):
    """The texts to sample from."""

    source: Literal["pictures", "file", "hub"] = "pictures"
    """pictures: captions of a split; file: Parquet, or text with a prompt a line; hub: Hugging Face"""
    path: Words = IMAGES.as_posix()
    """of the file; with `hub` the folder whose README describes the data set"""
    split: Literal["train", "validation", "test"] = "test"
    """of the pictures"""
    column: Words = "caption"
    """of Parquet"""
    label_column: Words | None = None
    """of Parquet, with integers; null: prompts without labels"""
    url: Words | None = None
    """the data set's name (`hub`)"""
    revision: Words | None = None
    """commit or tag (`hub`)"""
    limit: Images | None = None
    """how many, the first ones; null: all"""

    @model_validator(mode="after")
    def _check(self) -> Prompts:
        if (self.source == "pictures") != (self.path == IMAGES.as_posix()):
            allowed = IMAGES.as_posix() if self.source == "pictures" else f"another path than {IMAGES}"
            raise Bad("path", self.path, f"{allowed}, with source: {self.source}")
        for key in ("url", "revision"):
            if (self.source == "hub") != bool(getattr(self, key)):
                allowed = "required" if self.source == "hub" else "null"
                raise Bad(key, getattr(self, key), f"{allowed} with source: {self.source}")
        return self


class Text(Section):
    """A text encoder, and the prompts that are sampled with it."""

    encoder: Encoder
    prompts: Prompts
