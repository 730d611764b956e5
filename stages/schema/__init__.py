"""The schema of `params.yaml`: one frozen model a section, and the checks across sections.

The sections of a method and their checks are in the module `settings` of its folder. `rendering` writes an experiment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Field, ValidationError, model_validator

from multiscale import methods
from multiscale.core.settings import Bad, Decomposed, Fetched, Name, Sampled, Section, Seed, Text, Trained
from multiscale.training.part import Training
from stages.schema import prompts
from stages.schema.data import VAE, Classifier, Data, Evaluate, Floor, Latents, Run, Sample, Timing

METHODS = {name: methods.settings(name) for name in methods.names()}
STAGES = ("vae", "classifier", "text")  # whose files lie beside those of the parts and methods
UNTRAINED = ("published", "none")  # kinds of an autoencoder or a text encoder


if TYPE_CHECKING:  # the fields that these sections have in every method
    Decomposition = Decomposed
    Method = Sampled

    class Part(Trained):
        training: Training

    class Student(Part):
        teacher: str

    AnyPart = Part | Fetched

    class Synthetic(Section):
        kind: str
        teacher: str
        dataset: str
        images: int
        batch: int

else:

    def _one_of(name: str) -> Any:
        """The union of a section's models in all methods, discriminated by `kind`."""
        models = tuple(getattr(module, name) for module in METHODS.values() if hasattr(module, name))
        return Annotated[Union[models], Field(discriminator="kind")] if len(models) > 1 else models[0]  # noqa: UP007

    Decomposition, Part, Student, Synthetic, Method = map(
        _one_of, ("DECOMPOSITION", "PART", "STUDENT", "SYNTHETIC", "METHOD")
    )
    AnyPart = Part


class Experiment(Section):
    """The whole of `params.yaml`."""

    recipe: Text
    """recipe that this file was written from; `python -m stages.recipe` lists all recipes"""
    seed: Seed
    """of every training without a seed of its own"""
    run: Run = Run()
    """how the stages run; affects speed, not results (but for randomness), so an edit re-runs nothing"""
    data: Data
    training: Training
    """defaults of all trainings; `training` in a part, student, vae or classifier overrides them"""
    vae: VAE
    latents: Latents
    text: dict[Name, prompts.Text] = {}
    """text encoders of images with captions, each with the prompts to sample from; {}: none"""
    decompose: Annotated[dict[Name, Decomposition], Field(min_length=1)]
    """training data of the parts: images or latents, split into scales"""
    parts: Annotated[dict[Name, AnyPart], Field(min_length=1)]
    """the networks to train, each for one method"""
    students: dict[Name, Student] = {}
    """the networks to distil from another method"""
    synthetic: dict[Name, Synthetic] = {}
    """images that a teacher generates, which students may name as their dataset; left out: none"""
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    """the rows of the leaderboard, and how each is sampled; a run makes the samples of the first one first"""
    classifier: Classifier
    sample: Sample
    timing: Timing = Timing()
    evaluate: Evaluate

    @model_validator(mode="before")
    @classmethod
    def _complete_trainings(cls, value: Any) -> Any:
        """Fills in the training of whatever is trained from the section `training`."""
        common = value.get("training") if isinstance(value, dict) else None
        if not isinstance(common, dict):
            return value

        def complete(section: Any) -> Any:
            trained = isinstance(section, dict) and section.get("kind") not in UNTRAINED and "source" not in section
            own = section.get("training", {}) if trained else None
            return section | {"training": common | own} if isinstance(own, dict) else section

        def complete_encoder(text: Any) -> Any:
            if isinstance(text, dict) and "encoder" in text:
                return text | {"encoder": complete(text["encoder"])}
            return text

        completed = dict(value)
        for key, fill in (("parts", complete), ("students", complete), ("text", complete_encoder)):
            if isinstance(sections := value.get(key), dict):
                completed[key] = {name: fill(section) for name, section in sections.items()}
        for key in ("vae", "classifier"):
            if section := value.get(key):
                completed[key] = complete(section)
        return completed

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        self._check_resolutions()
        self._check_text()
        for name, decomposition in self.decompose.items():
            METHODS[decomposition.kind].check_decomposition(self, f"decompose.{name}", decomposition)
        for name, part in self.parts.items():
            self._check_part(f"parts.{name}", name, part)
            METHODS[part.kind].check_part(self, f"parts.{name}", part)
        for name, synthetic in self.synthetic.items():
            if name in self.decompose:
                raise Bad(f"synthetic.{name}", name, "another name: a decomposition already has this one")
            METHODS[synthetic.kind].check_synthetic(self, f"synthetic.{name}", synthetic)
        for name, student in self.students.items():
            if name in self.parts:
                raise Bad(f"students.{name}", name, "another name: a part already has this one")
            self._check_part(f"students.{name}", name, student)
        for name, method in self.methods.items():
            self._check_method(f"methods.{name}", name, method)
        for name, student in self.students.items():
            METHODS[student.kind].check_student(self, f"students.{name}", student)
        vae = [self.vae.training] if self.vae.kind == "train" else []
        vae += [text.encoder.training for text in self.text.values() if text.encoder.kind == "train"]
        for training in (*vae, self.classifier.training, *self.trainings):
            if self.run.workers and training.batch % self.run.workers:
                raise Bad("run.workers", self.run.workers, f"a divisor of every batch (one is {training.batch})")
        smallest = min(self.sample.images, self.evaluate.reference_images or self.sample.images)
        # An image is not a neighbour of itself.
        for key, most in (("prc_neighborhood", smallest - 1), ("is_splits", self.sample.images)):
            if getattr(self.evaluate, key) > most:
                raise Bad(f"evaluate.{key}", getattr(self.evaluate, key), f"at most {most} with this number of images")
        if "autoencoder" in self.evaluate.floors and self.vae.kind == "none":
            raise Bad("evaluate.floors", self.evaluate.floors, "[real] or [], since vae.kind is none")
        return self

    @property
    def trained(self) -> dict[str, AnyPart | Student]:
        """Parts and students: everything with weights in models/METHOD/NAME, trained or fetched."""
        return {**self.parts, **self.students}

    @property
    def trainings(self) -> list[Training]:
        """Of all parts and students that are trained."""
        return [training for method in self.methods for training in self.trainings_of(method)]

    def trainings_of(self, method: str) -> list[Training]:
        """Of the parts and students of a method."""
        return [part.training for part in self.parts_of(method).values() if not isinstance(part, Fetched)]

    def parts_of(self, method: str) -> dict[str, AnyPart | Student]:
        """The parts and students of a method, in the order of the experiment."""
        return {name: part for name, part in self.trained.items() if part.method == method}

    def decomposition_of(self, dataset: str) -> Decomposition:
        """The section of a decomposition, or of the one that synthetic images are made like."""
        return self.decompose[self.synthetic[dataset].dataset if dataset in self.synthetic else dataset]

    def needed_by(self, parts: Iterable[AnyPart | Student]) -> set[str]:
        """The decompositions and synthetic images that parts train on, and the decompositions of those images."""
        named = {part.dataset for part in parts}
        return named | {self.synthetic[name].dataset for name in named & self.synthetic.keys()}

    def _check_resolutions(self) -> None:
        encoded, trained = self.latents.resolutions, self.vae.resolutions if self.vae.kind == "train" else []
        if len(set(encoded)) < len(encoded):
            raise Bad("latents.resolutions", encoded, "each resolution once")
        for resolution in encoded:
            if resolution % self.vae.factor:
                raise Bad("latents.resolutions", resolution, f"multiples of the autoencoder's factor {self.vae.factor}")
        for key, resolutions in (("latents.resolutions", encoded), ("vae.resolutions", trained)):
            if max(resolutions, default=0) > self.data.resolution:
                raise Bad(key, max(resolutions), f"resolutions up to data.resolution ({self.data.resolution})")

    def _check_text(self) -> None:
        if self.text and not (self.data.caption_column or self.data.source == "digit-pairs"):
            raise Bad("text", list(self.text), "{} for images without captions, or a data.caption_column")
        for key in ("clip_score", "pick_score"):
            if getattr(self.evaluate, key) and not self.text:
                raise Bad(f"evaluate.{key}", getattr(self.evaluate, key), "null, since `text` is empty")
        for name, text in self.text.items():
            if text.encoder.kind == "train" and self.data.resolution % text.encoder.patch:
                allowed = f"a divisor of data.resolution ({self.data.resolution})"
                raise Bad(f"text.{name}.encoder.patch", text.encoder.patch, allowed)

    def _check_part(self, key: str, name: str, part: AnyPart | Student) -> None:
        if name in (*STAGES, "sampling", "claims") or name.startswith(("sample-", "text-")):
            raise Bad(key, name, "another name: reports/timing already has a file of this name")
        known = self.decompose | (self.synthetic if name in self.students else {})
        kinds = METHODS[part.kind].DATASETS
        fitting = [other for other, section in known.items() if section.kind in kinds]
        if part.dataset not in fitting:
            allowed = f"one of {', '.join(fitting) or 'none'}, the decompositions of kind {' or '.join(kinds)}"
            raise Bad(f"{key}.dataset", part.dataset, allowed)
        if part.method not in self.methods:
            raise Bad(f"{key}.method", part.method, f"one of {', '.join(self.methods)}")
        if self.methods[part.method].kind != part.kind:
            raise Bad(f"{key}.kind", part.kind, f"{self.methods[part.method].kind}, as methods.{part.method} says")

    def _check_method(self, key: str, name: str, method: Method) -> None:
        if name in STAGES:
            raise Bad(key, name, "another name: models already has a folder of this name")
        if name in get_args(Floor):
            raise Bad(key, name, "another name: samples already has a folder of this name")
        parts = list(self.parts_of(name).values())
        if not parts:
            raise Bad(key, name, f"a method with at least one part or student (`method: {name}`)")
        rows = [other for other, section in self.methods.items() if other != name and section.repeat_of is None]
        if method.repeat_of is not None and method.repeat_of not in rows:
            raise Bad(f"{key}.repeat_of", method.repeat_of, f"one of {', '.join(rows) or 'none'}, or null")
        METHODS[method.kind].check_method(self, key, method, parts)
        if len(set(method.steps)) < len(method.steps):
            raise Bad(f"{key}.steps", method.steps, "each number of steps once")
        for steps in method.steps:
            try:
                other = method.at(steps)
            except Bad as fault:
                raise Bad(f"{key}.{fault.key}", fault.value, fault.allowed) from None
            except ValidationError as error:
                raise Bad(f"{key}.steps", steps, error.errors()[0]["msg"]) from None
            METHODS[method.kind].check_method(self, key, other, parts)
