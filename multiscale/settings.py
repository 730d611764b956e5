"""What all sections are made of: types, the one line that a fault becomes, presets, and how a part is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST = 2**53  # up to here JSON, DVC and torch read the same integer
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Precision = Literal["auto", "fp32", "bf16"]
RESERVED = ("vae", "classifier")  # stages that leave files beside those of the parts and methods
FLOORS = ("real", "autoencoder")  # what stands beside the methods in samples and in the leaderboard


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


class Trained(Section):
    """What every part and student says of itself."""

    method: Name  # the row of the leaderboard that it belongs to
    seed: Count | None = None  # of this training; null: the experiment's


class Sampled(Section):
    """What every method says of itself."""

    repeat_of: Name | None = None  # the method whose row this further training of it belongs to; null: its own


class Experiment(Protocol):
    """What the checks of a method ask of the whole experiment."""

    data: Any
    vae: Any
    latents: Any
    decompose: Any
    parts: Any
    methods: Any


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
    ema_images: Count = 4000  # of the main player's own updates; 0: no average
    precision: Precision = "auto"
    compile: bool = False
    log_images: Positive = 2000
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0


def preset(value: Any, table: dict[str, tuple], fields: tuple[str, ...]) -> Any:
    """Replaces `preset` by the fields it stands for; what stands beside it stays."""
    if not isinstance(value, dict) or "preset" not in value:
        return value
    name, beside = value["preset"], {key: entry for key, entry in value.items() if key != "preset"}
    if name not in table or set(beside) & set(fields):
        raise Bad("preset", name, f"without {', '.join(fields)}, one of {', '.join(table)}")
    entries = (list(entry) if isinstance(entry, tuple) else entry for entry in table[name])
    return dict(zip(fields, entries)) | beside


def allowed_of(error: ValueError) -> str:
    """What the science says is allowed, with its reason."""
    problem, _, allowed = str(error).partition("; allowed: ")
    return f"{allowed} ({problem})"
