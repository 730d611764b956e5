"""Settings: frozen sections, field types, presets and error messages."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

LARGEST = 2**53  # JSON, DVC and torch agree on integers up to here
Seed = Annotated[int, Field(ge=0, le=LARGEST)]
Images = Annotated[int, Field(gt=0, le=10**11)]  # that only take time: 50 times the longest published training
Count = Annotated[int, Field(ge=0, le=10**11)]
Samples = Annotated[int, Field(gt=0, le=10**7)]  # images that are listed one by one before the first is made
Positive = Annotated[int, Field(gt=0, le=65_536)]  # of the sides of a tensor, such as channels and batches
Few = Annotated[int, Field(gt=0, le=1024)]  # of what is made one by one, such as layers and threads
FewOr0 = Annotated[int, Field(ge=0, le=1024)]
Halvings = Annotated[int, Field(gt=0, le=12)]  # of an image: after as many an edge of 4096 is one pixel
Edge = Annotated[int, Field(gt=0, le=4096)]  # of an image: a network or a decomposition of more fits no memory
Steps = Annotated[int, Field(gt=0, le=100_000)]  # of a process or a solver, which are listed one by one
Share = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
From0 = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Precision = Literal["auto", "fp32", "bf16"]
FAMILIES = ("dit", "sd3", "flux", "sdxl")  # of the networks in `multiscale.networks.families`
MADE = ("trained", "fetched")  # how a part comes to its weights


class Bad(ValueError):
    """A setting that does not fit the others: its key, its value and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str):
        super().__init__(allowed)
        self.key, self.value, self.allowed = key, value, allowed


class Unknown(Bad):
    """A key that a section does not have, with the most similar one that it has."""

    def __init__(self, key: str, known: Iterable[str]):
        names = list(map(str, known))
        super().__init__(key, key, f"the keys {', '.join(names)}")
        self.meant = meant(key, names)


def meant(word: object, known: Iterable[str]) -> str:
    """` (did you mean NAME?)` with the most similar of the known names, empty if there is none."""
    found = get_close_matches(str(word), list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


class Section(BaseModel):
    """A frozen section that refuses unknown keys, wrong types and non-finite numbers.

    The docstring of a field is the comment of its key in params.yaml.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        # Checked first: a misspelt key should be reported as such, not as a missing one.
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise Unknown(key, cls.model_fields)
        return value


class Trained(Section):
    """Fields of every part and student."""

    method: Name
    """leaderboard row that it belongs to, a key of `methods`"""
    seed: Seed | None = None
    """of this training; null: the experiment's seed"""
    kind: str
    """method that trains it, a folder of multiscale/methods"""
    dataset: Name
    """training data, a key of `decompose`"""


def check_revision(source: str, revision: str | None) -> None:
    """Raises Bad for a model of the hub, which no folder holds, without the commit or tag that fixes it."""
    if not revision and not os.path.exists(source):
        raise Bad("revision", revision, "a commit or tag, required for the hub")


class Fetched(Trained):
    """Fields of every part whose weights are published: they are fetched, not trained."""

    source: Text
    """name on the Hugging Face hub, or folder, of a model in the layout of diffusers"""
    revision: Text | None = None
    """commit or tag; required for the hub"""

    @model_validator(mode="after")
    def _check_revision(self) -> Fetched:
        check_revision(self.source, self.revision)
        return self


class Decomposed(Section):
    """Fields of every decomposition."""

    kind: str
    """method that defines it, a folder of multiscale/methods"""
    source: str
    """input, in data/"""


class Sampled(Section):
    """Fields of every method."""

    kind: str
    """method that samples it, a folder of multiscale/methods"""
    repeat_of: Name | None = None
    """method that this one repeats with another seed; null: none"""
    steps: Annotated[list[Steps], Field(max_length=100)] = []
    """further numbers of solver steps, for the plot of quality against time"""

    def at(self, steps: int) -> Self:
        """The same sampler with another number of solver steps, checked anew. Raises Bad where none can be chosen."""
        solver = getattr(self, "solver", None)
        if solver is None:
            raise Bad("steps", self.steps, "[], since no `solver` is set whose steps could be others")
        return self._with(solver=solver.model_dump() | {"steps": steps})

    def _with(self, **changes: Any) -> Self:
        return type(self).model_validate(self.model_dump() | changes | {"steps": []})


class ImageShape(Protocol):
    """The images of an experiment."""

    @property
    def resolution(self) -> int: ...

    @property
    def channels(self) -> int: ...


class Autoencoder(Protocol):
    """The autoencoder of an experiment."""

    @property
    def kind(self) -> str: ...

    @property
    def factor(self) -> int: ...


class Encoded(Protocol):
    """The latents of an experiment."""

    @property
    def resolutions(self) -> list[int]: ...


class Experiment(Protocol):
    """What a method's checks need of the whole experiment."""

    @property
    def data(self) -> ImageShape: ...

    @property
    def vae(self) -> Autoencoder: ...

    @property
    def latents(self) -> Encoded: ...

    @property
    def decompose(self) -> Mapping[str, Any]: ...

    @property
    def text(self) -> Mapping[str, Any]: ...

    @property
    def methods(self) -> Mapping[str, Any]: ...

    def parts_of(self, method: str) -> dict[str, Any]:
        """The parts and students of a method, in the order of the experiment."""

    def decomposition_of(self, dataset: str) -> Any:
        """The section of a decomposition, or of the one that synthetic images are made like."""


def preset(value: Any, table: Mapping[str, tuple[Any, ...]], fields: tuple[str, ...]) -> Any:
    """Expands the key `preset` into its fields; fields given beside it override the preset."""
    if not isinstance(value, dict) or "preset" not in value:
        return value
    name, beside = value["preset"], {key: entry for key, entry in value.items() if key != "preset"}
    if name not in table:
        raise Bad("preset", name, f"one of {', '.join(table)}")
    entries = (list(entry) if isinstance(entry, tuple) else entry for entry in table[name])
    return dict(zip(fields, entries)) | beside


def allowed_of(error: ValueError) -> str:
    """Turns the message `PROBLEM; allowed: VALUES` into `VALUES (PROBLEM)`."""
    problem, _, allowed = str(error).partition("; allowed: ")
    return f"{allowed} ({problem})"


def fault_of(error: ValidationError) -> str:
    """The first error as one line, `KEY: VALUE is not allowed; allowed: REASON`."""
    fault = error.errors()[0]
    key = ".".join(map(str, fault["loc"])) or "settings"
    return f"{key}: {fault['input']!r} is not allowed; allowed: {fault['msg']}"
