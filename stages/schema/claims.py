"""The schema of `params/claims.yaml`: what the papers claim, and how an experiment shows it or does not.

The quantities are a closed set; as text each is its name in a few words. Numbers are in the unit of the quantity:
`40 % less` is a ratio of 0.6.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from multiscale.core.settings import Bad, Name, Section, Share, Text

Estimated = Literal["kid", "kid_test", "kid_second", "diversity", "clip_score", "pick_score"]  # have a standard error
Counted = Literal["network_calls", "flops_per_image", "parameters", "train_images"]  # exact
Timed = Literal["seconds_per_image", "seconds_per_image_batch_1", "train_seconds"]  # of one machine
ESTIMATED, COUNTED, TIMED = map(get_args, (Estimated, Counted, Timed))
Column = Literal[Estimated, Counted, Timed]


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


Listed = BeforeValidator(_listed)
Rows = Annotated[list[Name], Field(min_length=1), Listed]  # one row, or the first of several that the experiment has


class Ratio(Section):
    """A column of one row over that of another."""

    kind: Literal["ratio"]
    column: Column
    of: Rows
    over: Rows

    def __str__(self) -> str:
        return f"{self.column}: {' or '.join(self.of)} / {' or '.join(self.over)}"


class Difference(Section):
    """A column of one row minus that of another."""

    kind: Literal["difference"]
    column: Column
    of: Rows
    minus: Rows

    def __str__(self) -> str:
        return f"{self.column}: {' or '.join(self.of)} - {' or '.join(self.minus)}"


class Losses(Section):
    """The last losses of one part over those of another."""

    kind: Literal["losses"]
    of: Name
    over: Name

    def __str__(self) -> str:
        return f"last losses: {self.of} / {self.over}"


class Conditioning(Section):
    """The spectral condition number of the coarsest wavelet band over that of the pixels."""

    kind: Literal["conditioning"]
    dataset: Name

    def __str__(self) -> str:
        return f"spectral condition number: coarse band of {self.dataset} / pixels"


class Sparsity(Section):
    """The largest shape (2: Gaussian, 1: Laplace, less: sparser) among the channels of the wavelet details."""

    kind: Literal["sparsity"]
    dataset: Name

    def __str__(self) -> str:
        return f"largest shape of the details of {self.dataset}"


class Masked(Section):
    """The smallest resolution that discards only what noise masks, over the full one, from the latents' spectrum."""

    kind: Literal["masked"]
    dataset: Name
    sigma: Share

    def __str__(self) -> str:
        return f"smallest safe resolution of {self.dataset} / full, noise {self.sigma:g}"


class Information(Section):
    """The most that a DDPM state knows of the image where SSD's shrink, over what an image of their size holds."""

    kind: Literal["information"]
    row: Name

    def __str__(self) -> str:
        return f"information of noisy states where {self.row} shrinks / of images of that size"


class LikeDDPM(Section):
    """The largest difference between the reverse steps of SSD's process and the posterior of DDPM."""

    kind: Literal["like-ddpm"]
    row: Rows

    def __str__(self) -> str:
        return f"reverse steps of {' or '.join(self.row)} - DDPM's posterior, the largest difference"


class Elsewhere(Section):
    """What no stage measures."""

    kind: Literal["elsewhere"]
    needs: Text
    """what measures it, or would"""

    def __str__(self) -> str:
        return "none of the pipeline"


Quantity = Annotated[
    Ratio | Difference | Losses | Conditioning | Sparsity | Masked | Information | LikeDDPM | Elsewhere,
    Field(discriminator="kind"),
]


class Bounds(Section):
    """Where a quantity must lie, with all of its interval."""

    at_most: float | None = None
    at_least: float | None = None
    below: float | None = None
    above: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Bounds:
        if not self.model_fields_set:
            raise Bad("bounds", {}, f"one or more of {', '.join(type(self).model_fields)}")
        return self

    def __str__(self) -> str:
        given = self.model_dump(exclude_unset=True)
        return " and ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in given.items())


class Condition(Section):
    """What rows must have in common, or not, before they say anything about a claim."""

    quantity: Quantity
    holds: Bounds


class Claim(Section):
    """A published claim."""

    paper: Annotated[str, Field(pattern=r"^\d{4}\.\d{5}$")]
    """number on arXiv"""
    version: Text
    says: Text
    """in our words"""
    published: Annotated[list[float] | None, Field(min_length=1, max_length=2), Listed]
    """the value, or its range over the paper's data sets, in the unit of the quantity; null: none is given"""
    quantity: Quantity
    holds: Bounds | None = None
    given: list[Condition] = []
    recipe: Name | None = None
    """one that has the rows"""
    note: Text | None = None
    """how the quantity differs from the paper's"""

    @model_validator(mode="after")
    def _check(self) -> Claim:
        if (self.holds is None) != (self.quantity.kind == "elsewhere"):
            raise Bad("holds", self.holds, "bounds of the quantity; none for the kind elsewhere")
        return self


class Claims(Section):
    """The whole of `params/claims.yaml`."""

    claims: Annotated[dict[Name, Claim], Field(min_length=1)]
