"""SwD: the pyramid of latents, its teacher, and students of a few steps at growing resolutions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from multiscale.core.settings import (
    MADE,
    Above0,
    Bad,
    Decomposed,
    Experiment,
    Fetched,
    FewOr0,
    From0,
    Name,
    Positive,
    Sampled,
    Samples,
    Section,
    Share,
    Trained,
)
from multiscale.flow import Solver, Timesteps
from multiscale.methods.swd.losses import Average, Penalty, Target
from multiscale.methods.swd.schedule import SHIFT, Schedule
from multiscale.methods.swd.upscaling import Strategy
from multiscale.networks.dit import DiTNetwork
from multiscale.networks.families import Network, PublishedFamily
from multiscale.networks.published.sd3 import SD3Network
from multiscale.networks.published.sdxl import SDXLNetwork
from multiscale.training.part import Training


class Pyramid(Decomposed):
    """The latents of each image at several resolutions, each encoded from the image downsampled to it."""

    kind: Literal["swd"]
    source: Literal["latents"] = "latents"
    resolutions: Annotated[list[Positive], Field(min_length=1)]
    """in pixels, growing to the full one"""
    text: Name | None = None
    """text encoder of the captions, a key of `text`; null: images are told by their class"""

    @model_validator(mode="after")
    def _check(self) -> Pyramid:
        if self.resolutions != sorted(set(self.resolutions)):
            raise Bad("resolutions", self.resolutions, "resolutions that grow")
        return self


class Teacher(Trained):
    """A rectified-flow transformer that trains at a random resolution of a pyramid each batch."""

    kind: Literal["swd"]
    network: Network
    label_dropout: Share = 0.1
    """share of labels or captions dropped, for classifier-free guidance"""
    timesteps: Timesteps = "logit-normal"
    """timestep sampler of training"""
    training: Training


class PublishedTeacher(Fetched):
    """A published text-to-image model: SD3, FLUX or SDXL."""

    kind: Literal["swd"]
    network: PublishedFamily


class MMD(Section):
    """Maximum mean discrepancy of the tokens of generated and real latents."""

    weight: From0 = 1.0
    """of the term; 0: none"""
    kernel: Literal["linear", "rbf"] = "linear"
    width: Above0 = 100.0
    """of the rbf kernel"""
    penalty: Penalty = "huber"
    """of the linear kernel: huber as released, mse as in the paper"""
    average: Average = "image"
    """of the tokens; batch: over all images, an ablation (table 6)"""
    features: Literal["teacher", "fake"] = "teacher"
    """network of the tokens: as in the paper, or as released"""
    noised: bool = True
    """false: tokens of clean latents, an ablation (table 6)"""


class DMD(Section):
    """Distribution matching by the scores of the teacher and of the generator."""

    weight: From0 = 0.0
    """of the term; 0: none; published: 1"""
    guidance_scale: From0 = 2.0
    """of the teacher's score; published: 4.5 to 7"""


class GAN(Section):
    """A discriminator on the fake score's tokens."""

    weight: From0 = 0.0
    """of the generator's term; 0: none; published: 5e-3"""
    discriminator: From0 = 1e-2
    """weight of its own loss beside the fake score's"""


class Fake(Section):
    """The fake score, which only DMD and the GAN need."""

    updates: Positive = 5
    """for each update of the generator"""
    target: Target = "x0"
    """error of the clean prediction, as released, or of the velocity"""


class Synthetic(Section):
    """Training images that a teacher generates at the full resolution, made into a pyramid as the dataset's are."""

    kind: Literal["swd"]
    teacher: Name
    """a method of one DiT: kind swd, or kind msf with one resolution"""
    dataset: Name
    """decomposition that they are made like, with its classes or captions; a key of `decompose`"""
    texts: Literal["captions", "prompts"] = "captions"
    """of a decomposition with text: captions of its training images, or the prompts that `text` names"""
    images: Samples
    """how many; published: 200000"""
    batch: Positive = 50
    """images a batch; an interrupted stage goes on after the last whole one"""
    solver: Solver


class Student(Trained):
    """A few-step generator distilled from a teacher, whose network it shares."""

    kind: Literal["swd"]
    teacher: Name
    """a method of one DiT: kind swd, or kind msf with one resolution"""
    schedule: Schedule
    lora_rank: Positive | None = None
    """of adapters on the teacher, published: 64; null: full copies"""
    block: FewOr0
    """of the teacher, from zero, whose tokens MMD and the GAN take"""
    upscaling: Strategy = "B"
    """B: enlarge, then noise; controls: A (true latents), C (noise first)"""
    shift: Above0 = SHIFT
    """time shift of the grid of all re-noising levels"""
    mmd: MMD = MMD()
    dmd: DMD = DMD()
    gan: GAN = GAN()
    fake: Fake = Fake()
    training: Training

    @model_validator(mode="after")
    def _check(self) -> Student:
        if not (self.mmd.weight or self.dmd.weight or self.gan.weight):
            raise Bad("mmd.weight", 0.0, "a positive weight of mmd, dmd or gan")
        if self.mmd.weight and self.mmd.features == "fake" and not (self.dmd.weight or self.gan.weight):
            raise Bad("mmd.features", "fake", "teacher: without dmd and gan there is no fake score")
        return self


class SwDMethod(Sampled):
    """The sampler of a teacher or of a student, whose steps come with its weights."""

    kind: Literal["swd"]
    solver: Solver | None = None
    """of a teacher, null: the default one; null for a student"""


TRAINED, FETCHED = MADE


def _made(value: Any) -> str:
    """How a part comes to its weights: one with a `source` is fetched."""
    return FETCHED if isinstance(value, Fetched) or (isinstance(value, dict) and "source" in value) else TRAINED


AnyTeacher = Teacher | PublishedTeacher
PART = Annotated[
    Annotated[Teacher, Tag(TRAINED)] | Annotated[PublishedTeacher, Tag(FETCHED)],
    Discriminator(_made),
]
DECOMPOSITION, METHOD, STUDENT, SYNTHETIC = Pyramid, SwDMethod, Student, Synthetic
DATASETS = ("swd",)


def check_decomposition(experiment: Experiment, key: str, section: Pyramid) -> None:
    """Refuses resolutions that are not encoded or do not end at the full one."""
    resolutions, full, encoded = section.resolutions, experiment.data.resolution, experiment.latents.resolutions
    if resolutions[-1] != full:
        raise Bad(f"{key}.resolutions", resolutions, f"a last resolution of data.resolution ({full})")
    if section.text and section.text not in experiment.text:
        raise Bad(
            f"{key}.text", section.text, f"null, or one of {', '.join(experiment.text) or 'none'}, a key of `text`"
        )
    for resolution in resolutions:
        if resolution not in encoded:
            raise Bad("latents.resolutions", encoded, f"{resolution} among them, since {key}.resolutions needs it")


def check_part(experiment: Experiment, key: str, part: AnyTeacher) -> None:
    """Refuses a patch that does not divide the latents of every resolution, and a network of another condition."""
    network, dataset = part.network, experiment.decompose[part.dataset]
    if isinstance(network, DiTNetwork | SD3Network):
        field = "patch" if isinstance(network, DiTNetwork) else "patch_size"
        _check_patch(experiment, f"{key}.network.{field}", network.patch, dataset.resolutions)
    elif any(each % (step := network.patch * experiment.vae.factor) for each in dataset.resolutions):
        allowed = f"multiples of {step}, which the network of {key} takes"
        raise Bad(f"decompose.{part.dataset}.resolutions", dataset.resolutions, allowed)
    if isinstance(part, Fetched) and experiment.vae.kind != "published":
        raise Bad("vae.kind", experiment.vae.kind, f"published: the latents that {key} was trained on")
    if isinstance(network, DiTNetwork):
        if dataset.text:
            allowed = f"a dataset without text, or num_layers, ... of an MMDiT, which reads that of {part.dataset}"
            raise Bad(f"{key}.network", network.model_dump(), allowed)
    elif not dataset.text:
        raise Bad(f"{key}.dataset", part.dataset, "a dataset with `text`, which an MMDiT reads")
    elif isinstance(network, SD3Network):
        _check_tokens(key, network, max(dataset.resolutions) // experiment.vae.factor)


def _check_tokens(key: str, network: SD3Network, grid: int) -> None:
    """Refuses sizes of an MMDiT that do not fit each other or latents of an edge."""
    if network.caption_projection_dim != network.width:
        allowed = f"num_attention_heads * attention_head_dim ({network.width})"
        raise Bad(f"{key}.network.caption_projection_dim", network.caption_projection_dim, allowed)
    if network.pos_embed_max_size < grid // network.patch:
        allowed = f"at least {grid // network.patch}, the tokens on an edge of the latents"
        raise Bad(f"{key}.network.pos_embed_max_size", network.pos_embed_max_size, allowed)


def _check_patch(experiment: Experiment, key: str, patch: int, resolutions: list[int]) -> None:
    for resolution in resolutions:
        if resolution // experiment.vae.factor % patch:
            raise Bad(key, patch, f"a divisor of the latent resolution {resolution // experiment.vae.factor}")


def check_student(experiment: Experiment, key: str, student: Student) -> None:
    """Refuses a teacher that is no single DiT, a block that it lacks, and steps that do not fit the pyramid."""
    teacher, dataset = _teacher(experiment, key, student.teacher), experiment.decomposition_of(student.dataset)
    network = teacher.network
    if student.block >= network.depth:
        raise Bad(f"{key}.block", student.block, f"0 to {network.depth - 1}, the blocks of {student.teacher}")
    steps, resolutions, encoded = f"{key}.schedule.resolutions", student.schedule.resolutions, dataset.resolutions
    if resolutions[-1] != encoded[-1]:
        raise Bad(steps, resolutions, f"a last resolution of data.resolution ({encoded[-1]})")
    if not set(resolutions) <= set(encoded):
        raise Bad(steps, resolutions, f"resolutions of decompose.{student.dataset}, {encoded}")
    _check_patch(experiment, steps, network.patch, resolutions)
    if student.dmd.weight and isinstance(network, SDXLNetwork) and resolutions[0] < encoded[-1]:
        allowed = "0.0: SDXL makes no pictures at low resolutions, so its score is wrong there"
        raise Bad(f"{key}.dmd.weight", student.dmd.weight, allowed)
    _check_text(experiment, key, student.dataset, teacher)


def check_synthetic(experiment: Experiment, key: str, synthetic: Synthetic) -> None:
    """Refuses a teacher that is no single DiT or reads another text, and a dataset that is no pyramid or lacks it."""
    pyramids = [name for name, section in experiment.decompose.items() if isinstance(section, Pyramid)]
    if synthetic.dataset not in pyramids:
        raise Bad(f"{key}.dataset", synthetic.dataset, f"one of {', '.join(pyramids) or 'none'}, the pyramids")
    _check_text(experiment, key, synthetic.dataset, _teacher(experiment, key, synthetic.teacher))
    if synthetic.texts == "prompts" and not experiment.decompose[synthetic.dataset].text:
        raise Bad(f"{key}.texts", synthetic.texts, f"captions: {synthetic.dataset} has no text, and so no prompts")


def _check_text(experiment: Experiment, key: str, name: str, teacher: Any) -> None:
    read = getattr(experiment.decompose[teacher.dataset], "text", None)
    if experiment.decomposition_of(name).text != read:
        raise Bad(f"{key}.dataset", name, f"a dataset with the text of its teacher ({read or 'none'})")


def _teacher(experiment: Experiment, key: str, method: str) -> Any:
    """The part of the method in `key`.teacher. Raises Bad for a method that cannot teach."""
    teachers = {name: part for name in experiment.methods if (part := _teaching(experiment, name))}
    if method not in teachers:
        allowed = f"one of {', '.join(teachers) or 'none'}: methods of one DiT (kind swd, or msf with one scale)"
        raise Bad(f"{key}.teacher", method, allowed)
    return teachers[method]


def _teaching(experiment: Experiment, method: str) -> Any:
    """The part of a method that can teach, or None."""
    parts = list(experiment.parts_of(method).values())
    if len(parts) != 1:
        return None
    one_scale = parts[0].kind == "msf" and len(experiment.decompose[parts[0].dataset].resolutions) == 1
    return parts[0] if one_scale or isinstance(parts[0], AnyTeacher) else None


def check_method(experiment: Experiment, key: str, method: SwDMethod, parts: list[AnyTeacher | Student]) -> None:
    """Refuses anything but one part, and a solver for a student."""
    if len(parts) != 1:
        raise Bad(key, len(parts), "one part: a teacher or a student")
    if method.solver and isinstance(parts[0], Student):
        allowed = "null, since a student is sampled by the steps that it was trained for"
        raise Bad(f"{key}.solver", method.solver.model_dump(), allowed)
