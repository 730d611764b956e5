"""Lists the recipes, writes one into params.yaml, or prints an experiment with every default.

python -m stages.recipe                       # list
python -m stages.recipe clothing64            # switch
python -m stages.recipe clothing64 --force    # switch, and discard uncommitted edits
python -m stages.recipe --defaults            # print the experiment with every key; with a name, that recipe
python -m stages.recipe clothing64 --plan     # print what its networks, trainings and samples would cost
python -m stages.recipe new mine --images DIR # look at images (folder, zip, tar, Parquet, IDX), write a recipe

A recipe is an experiment without defaults, and may have three further keys:
    extends: NAME           # starts from another recipe, whose keys can be overridden
    only: [ddpm, ssd-2l]    # keeps only these methods of that recipe, with their parts, students and decompositions
    seeds: 3                # trains everything three times: NAME, NAME-seed-1, NAME-seed-2
"""

from __future__ import annotations

import argparse
import sys

from stages.common.harness import guarded, launch, show
from stages.common.paths import RECIPES

if __name__ == "__main__":  # first: the imports below take seconds, and a list needs none of them
    if sys.argv[1:2] == ["new"]:
        parser = argparse.ArgumentParser(prog="python -m stages.recipe new", description="Writes a recipe for images.")
        parser.add_argument("name", help="name of the recipe and the dataset")
        parser.add_argument("--images", required=True, help="a folder, zip, tar, Parquet or IDX file")
        launch("stages.recipes.propose", "looking at the images", **vars(parser.parse_args(sys.argv[2:])))
    parser = argparse.ArgumentParser(
        prog="python -m stages.recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="the recipe to switch to; without it the recipes are listed")
    parser.add_argument("--force", action="store_true", help="overwrite uncommitted edits")
    parser.add_argument("--defaults", action="store_true", help="print the recipe, or the experiment, with every key")
    parser.add_argument("--plan", action="store_true", help="print what the recipe would cost, without running it")
    given = parser.parse_args()
    if given.plan and not given.name:
        parser.error("--plan needs the name of a recipe")
    if given.plan:
        launch("stages.recipes.plan", "working out the plan", name=given.name)
    if given.name or given.defaults:
        launch("stages.recipe", "checking the recipe", name=given.name, force=given.force, defaults=given.defaults)
    guarded(show, folder=RECIPES)
    sys.exit()

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from multiscale.core.storage import write_text
from stages.common.errors import BadInput, refuse
from stages.common.paths import (
    CAPTIONS,
    CLASSIFIER,
    DECOMPOSED,
    EMBEDDINGS,
    EXPERIMENT,
    LATENTS,
    MEASUREMENTS,
    METRICS,
    MODELS,
    NEIGHBOURS,
    PAIRED,
    SAMPLES,
    TEXT,
    VAE,
)
from stages.common.reading import named, parse_yaml, read_bytes, read_yaml
from stages.common.settings import TAGS, validate
from stages.schema import Experiment
from stages.schema.rendering import render

MOST = 30  # trainings of each method: to check more takes minutes
REPEATED = ("parts", "students", "synthetic", "methods")  # sections in which `seeds` makes entries
Tree = dict[str, Any]


def chain(name: str) -> dict[str, Tree]:
    """What a recipe and those that it extends say, by their names, the root of all last. Raises BadInput."""
    found: dict[str, Tree] = {}
    file, key = RECIPES, "recipe"  # where the name stands
    while True:
        if name not in named(RECIPES):
            raise refuse(file, key, name, f"one of {', '.join(named(RECIPES))}")
        file, key = RECIPES / f"{name}.yaml", "extends"
        if name in found:
            raise refuse(file, key, name, f"a chain without cycles (this one is {' -> '.join((*found, name))})")
        found[name] = own = read_yaml(file)
        base = own.pop("extends", None)
        if base is None:
            if own.get("only") is not None:
                raise refuse(file, "only", own["only"], "this key only beside `extends`, whose methods it selects")
            return found
        if not isinstance(base, str):
            raise refuse(file, key, base, "the name of a recipe")
        name = base


def resolve(name: str) -> Tree:
    """A recipe merged over the recipes that it extends. Raises BadInput."""
    base, tree = "", Tree()  # of the root, which is merged over nothing
    for each, own in reversed(chain(name).items()):
        only = own.pop("only", None)
        taken = tree if only is None else _only(tree, only, base, RECIPES / f"{each}.yaml")
        base, tree = each, merge(taken, own)
    return tree


def _only(tree: Tree, names: Any, base: str, path: Path) -> Tree:
    """The recipe `base` with only the named methods, and the parts, students and decompositions that they use."""
    once = {key: section for key, section in tree.items() if key != "seeds"}
    whole = validate(once | {"recipe": base}, RECIPES / f"{base}.yaml")
    known = list(whole.methods)
    unknown = [name for name in names if name not in known] if isinstance(names, list) and names else [names]
    if unknown:
        raise refuse(path, "only", unknown[0], f"a list of the methods of {base}: {', '.join(known)}")
    trained = {name: part for method in names for name, part in whole.parts_of(method).items()}
    datasets = whole.needed_by(trained.values())
    kept = {"methods": names, "parts": trained, "students": trained, "decompose": datasets, "synthetic": datasets}
    return tree | {
        key: {name: section for name, section in tree.get(key, {}).items() if name in wanted}
        for key, wanted in kept.items()
        if key in tree
    }


def merge(base: Tree, over: Tree) -> Tree:
    """Merges mappings key by key; those of another kind or role or with a preset, and other values, are replaced."""
    merged = dict(base)
    for key, value in over.items():
        before = base.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and _is_like(value, before):
            merged[key] = merge(before, value)
        else:
            merged[key] = value
    return merged


def _is_like(value: Tree, before: Tree) -> bool:
    return "preset" not in value and all(value[tag] == before.get(tag) for tag in TAGS if tag in value)


def experiment_of(name: str) -> Experiment:
    """The validated experiment of a recipe, with the repeated trainings of `seeds`."""
    path, tree = RECIPES / f"{name}.yaml", resolve(name) | {"recipe": name}
    seeds = tree.pop("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= MOST:
        raise refuse(path, "seeds", seeds, f"the number of trainings of each method, an integer from 1 to {MOST}")
    once = validate(tree, path)
    return once if seeds == 1 else validate(_repeated(once.model_dump(), seeds, path), path)


def _repeated(tree: Tree, seeds: int, path: Path) -> Tree:
    """An experiment with further trainings NAME-seed-1, NAME-seed-2, ... of each method."""
    repeated = tree | {kind: dict(tree[kind]) for kind in REPEATED}
    for k in range(1, seeds):
        new = "{}-seed-" + str(k)
        for kind in REPEATED:
            for name, section in tree[kind].items():
                if new.format(name) in tree[kind]:
                    raise refuse(path, f"{kind}.{new.format(name)}", new.format(name), "another name: `seeds` makes it")
                changes = {}
                if kind == "methods":
                    changes["repeat_of"] = name
                if kind in ("parts", "students"):
                    own = tree["seed"] if section["seed"] is None else section["seed"]
                    changes |= {"method": new.format(section["method"]), "seed": own + k}
                if kind in ("students", "synthetic"):
                    changes["teacher"] = new.format(section["teacher"])
                if section.get("dataset") in tree["synthetic"]:
                    changes["dataset"] = new.format(section["dataset"])
                repeated[kind][new.format(name)] = section | changes
    return repeated


def _is_saved() -> bool:
    """Whether the current experiment is an unedited recipe or is committed, layout and comments aside."""
    if not EXPERIMENT.exists():
        return True
    committed = subprocess.run(["git", "show", f"HEAD:./{EXPERIMENT}"], capture_output=True).stdout
    if committed == read_bytes(EXPERIMENT):
        return True
    with suppress(BadInput):
        current = validate(read_yaml(EXPERIMENT), EXPERIMENT)
        with suppress(BadInput):
            if current == experiment_of(current.recipe):
                return True
        return current == validate(parse_yaml(committed.decode(), EXPERIMENT), EXPERIMENT)
    return False


def remove_leftovers(experiment: Experiment) -> None:
    """Deletes outputs not in the experiment, since stages depend on whole folders; DVC's cache keeps them."""
    keep = outputs(experiment)
    for folder in (
        LATENTS,
        CAPTIONS,
        EMBEDDINGS,
        DECOMPOSED,
        *MODELS.glob("*"),
        SAMPLES,
        MEASUREMENTS,
        METRICS,
        NEIGHBOURS,
        PAIRED,
    ):
        for path in folder.glob("*"):
            if path not in keep and folder not in (VAE, CLASSIFIER) and not path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def outputs(experiment: Experiment) -> set[Path]:
    """The outputs of an experiment's stages in folders that other stages depend on."""
    shown = (*experiment.methods, *experiment.evaluate.floors)
    return {
        *(LATENTS / str(resolution) for resolution in experiment.latents.resolutions),
        *([EMBEDDINGS] if experiment.text else []),
        *(folder / name for folder in (CAPTIONS, TEXT, EMBEDDINGS) for name in experiment.text),
        *(DECOMPOSED / name for name in (*experiment.decompose, *experiment.synthetic)),
        *(MODELS / part.method / name for name, part in experiment.trained.items()),
        *(SAMPLES / name for name in shown),
        *(MEASUREMENTS / f"{name}.json" for name in shown),
        *(METRICS / f"{name}.json" for name in (*shown, "classifier")),
        *(NEIGHBOURS / f"{name}.png" for name in shown),
        *(PAIRED / f"{name}.parquet" for name in experiment.methods),
    }


def checked(name: str, force: bool = False) -> Experiment:
    """The experiment of a recipe. Raises BadInput where edits of params.yaml would be lost with it."""
    experiment = experiment_of(name)
    if not force and not _is_saved():
        raise BadInput(
            f"{EXPERIMENT}: has uncommitted edits (git lacks what it says, and so does its recipe as it is now); "
            "commit them, or discard them with --force"
        )
    return experiment


def switch(name: str, force: bool) -> None:
    """Writes a recipe into params.yaml."""
    experiment = checked(name, force)
    write_text(EXPERIMENT, render(experiment))
    remove_leftovers(experiment)
    print(f"{EXPERIMENT} is now the recipe '{name}'. Run it with `dvc repro`.")


def spell_out(name: str | None) -> None:
    """Prints a recipe, or the current experiment, with every key."""
    experiment = experiment_of(name) if name else validate(read_yaml(EXPERIMENT), EXPERIMENT)
    print(render(experiment, whole=True), end="")


def run(name: str | None, force: bool, defaults: bool) -> None:
    """Switches to a recipe, or prints it or the experiment with every key."""
    if name and not defaults:
        switch(name, force)
    else:
        spell_out(name)
