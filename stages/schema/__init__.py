"""What may stand in `params/experiment.yaml`: one frozen model a section, and the checks that span sections.

The file spells out every value (the recipe command writes them all), so the defaults here serve recipes only and no
result depends on this package. The sections of a method, and their checks, are `settings` of its folder.
"""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Field, model_validator

from multiscale import methods
from multiscale.settings import FLOORS, RESERVED, Bad, Count, Name, Section, Training
from stages.schema.data import VAE, Classifier, Data, Evaluate, Latents, Run, Sample

__all__ = ["VAE", "Bad", "Classifier", "Data", "Evaluate", "Experiment", "Run", "Sample", "Training"]

METHODS = {name: methods.settings(name) for name in methods.names()}


def _one_of(name: str) -> Any:
    """A section of any method that has it; `kind` says which one's."""
    models = tuple(getattr(module, name) for module in METHODS.values() if hasattr(module, name))
    return Annotated[Union[models], Field(discriminator="kind")] if len(models) > 1 else models[0]  # noqa: UP007


Decomposition, Part, Student, Method = map(_one_of, ("DECOMPOSITION", "PART", "STUDENT", "METHOD"))


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
    students: dict[Name, Student] = {}  # parts that are distilled from another method
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    classifier: Classifier
    sample: Sample
    evaluate: Evaluate

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        self._check_sides()
        for name, decomposition in self.decompose.items():
            METHODS[decomposition.kind].check_decomposition(self, f"decompose.{name}", decomposition)
        for name, part in self.parts.items():
            self._check_part(f"parts.{name}", name, part)
            METHODS[part.kind].check_part(self, f"parts.{name}", part)
        for name, student in self.students.items():
            if name in self.parts:
                raise Bad(f"students.{name}", name, "another name: a part has this one already")
            self._check_part(f"students.{name}", name, student)
        for name, method in self.methods.items():
            self._check_method(f"methods.{name}", name, method)
        for name, student in self.students.items():
            METHODS[student.kind].check_student(self, f"students.{name}", student)
        parts = (part.training for part in self.trained.values())
        trained = [self.classifier.training, self.vae.training, *parts]
        for training in trained:
            if training and self.run.workers and training.batch % self.run.workers:
                raise Bad("run.workers", self.run.workers, f"a divisor of every batch (one is {training.batch})")
        smallest = min(self.sample.images, self.evaluate.reference_images or self.sample.images)
        for key, most in (
            ("prc_neighborhood", smallest - 1),  # an image is no neighbour of itself
            ("is_splits", self.sample.images),
        ):
            if getattr(self.evaluate, key) > most:
                raise Bad(f"evaluate.{key}", getattr(self.evaluate, key), f"at most {most}, by the number of images")
        if "autoencoder" in self.evaluate.floors and self.vae.kind == "none":
            raise Bad("evaluate.floors", self.evaluate.floors, "real alone or none, since vae.kind is none")
        return self

    @property
    def trained(self) -> dict[str, Part | Student]:
        """Everything that has weights in models/METHOD/NAME."""
        return {**self.parts, **self.students}

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

    def _check_part(self, key: str, name: str, part: Part | Student) -> None:
        if name in RESERVED or name.startswith("sample-"):
            raise Bad(key, name, "another name: reports/timing has a file of this one already")
        fitting = [other for other, section in self.decompose.items() if section.kind in METHODS[part.kind].READS]
        if part.reads not in fitting:
            raise Bad(f"{key}.reads", part.reads, f"one of {', '.join(fitting) or 'none'}, of the kind that it needs")
        if part.method not in self.methods:
            raise Bad(f"{key}.method", part.method, f"one of {', '.join(self.methods)}")
        if self.methods[part.method].kind != part.kind:
            raise Bad(f"{key}.kind", part.kind, f"{self.methods[part.method].kind}, as methods.{part.method} says")

    def _check_method(self, key: str, name: str, method: Method) -> None:
        if name in RESERVED:
            raise Bad(key, name, "another name: models has a folder of this one already")
        if name in FLOORS:
            raise Bad(key, name, "another name: samples has a folder of this one already")
        belonging = [part for part, section in self.trained.items() if section.method == name]
        if sorted(method.parts) != sorted(belonging):
            raise Bad(
                f"{key}.parts", method.parts, f"the parts whose method is {name}: {', '.join(belonging) or 'none'}"
            )
        rows = [other for other, section in self.methods.items() if other != name and section.repeat_of is None]
        if method.repeat_of is not None and method.repeat_of not in rows:
            raise Bad(f"{key}.repeat_of", method.repeat_of, f"one of {', '.join(rows) or 'none'}, or null")
        METHODS[method.kind].check_method(self, key, method, [self.trained[part] for part in method.parts])
