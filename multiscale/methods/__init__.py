"""The methods, a folder each; `docs/adding-a-method.md` shows how to add one.

Each folder has these modules, found by name, so that a change of one method leaves the results of the others valid:
    settings        the models of its sections of the experiment, and what they must agree on: DECOMPOSITION, PART,
                    METHOD, DATASETS (the methods whose decompositions its parts may train on), check_decomposition,
                    check_part, check_method
    decomposition   decompose(section, source) -> Decomposition: what its parts train on; optional
    parts           build_part(name, settings, folder) -> Part: one of its networks, on the decomposition in a folder
    sampler         load_sampler(folders, settings, codec, precision) -> Sampler: from the folders of its trained parts
    component       built(about) -> (config, network) of a config that was saved, and sampler(parts, settings, codec,
                    precision) -> Sampler: of such pairs, with their weights; only with it can the method be exported.
                    Optional: PAPERS, titles by number on arXiv, and PACKAGES, which this method alone needs
    preview         sampler_of(part, net, rows, codec, precision) -> Sampler: of one part while it is trained; `rows` of
                    its data stand for what other parts make. Its images are shown, and decide nothing; optional

A method that distils a trained teacher into students has further
    settings        STUDENT and check_student
    parts           build_student(name, settings, folder, teacher) -> Part
    teaching        check(settings, teacher, folder), which raises Bad for what the teacher cannot teach
One whose students learn from images that a teacher generates has further
    settings        SYNTHETIC and check_synthetic
    synthetic       Images(settings, teacher, folder): a dataset like that in the folder, with `seeds`, labels(),
                    `shapes`, sampler(), latents(pixels, encode) of a batch, targets(latents) for the arrays, and
                    finish(folder); encode(pixels, resolution) -> latents
A method with parts that are fetched has further
    parts           publish(settings, source, folder, out), which writes the model in a folder of diffusers as a part on
                    the decomposition in `folder`; for plans published_config(settings, folder), empty(config) -> the
                    network without weights, and student_of(name, settings, folder, net, config, beneath)
    sampler         sampler_around(net, config, settings, codec, precision, conditioner): of a network in memory
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """All methods: the folders beside this file."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("[!_]*/settings.py"))


def settings(method: str) -> ModuleType:
    """What may stand in the experiment for a method."""
    return _module(method, "settings")


def decomposition(method: str) -> ModuleType:
    """What makes the arrays that a method trains on."""
    return _module(method, "decomposition")


def parts(method: str) -> ModuleType:
    """What trains a method."""
    return _module(method, "parts")


def sampler(method: str) -> ModuleType:
    """What samples a method."""
    return _module(method, "sampler")


def component(method: str) -> ModuleType | None:
    """What joins networks of a method into its sampler; None where the method has no such module."""
    return _optional(method, "component")


def preview(method: str) -> ModuleType | None:
    """What shows the parts of a method while they are trained; None where the method has nothing to show."""
    return _optional(method, "preview")


def teaching(method: str) -> ModuleType:
    """What checks a teacher before a student of the method is trained."""
    return _module(method, "teaching")


def synthetic(method: str) -> ModuleType:
    """What makes training images of a method with a teacher."""
    return _module(method, "synthetic")


def _optional(method: str, name: str) -> ModuleType | None:
    return _module(method, name) if Path(__file__).with_name(method).joinpath(f"{name}.py").exists() else None


def _module(method: str, name: str) -> ModuleType:
    return importlib.import_module(f"multiscale.methods.{method}.{name}")
