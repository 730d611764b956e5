"""Lists the recipes, or writes one into params/experiment.yaml with every key spelled out.

python -m stages.recipe                    # list
python -m stages.recipe clothing64         # switch
python -m stages.recipe clothing64 --force # switch, and give up edits that no commit holds
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from multiscale.core.storage import atomic_file
from stages.common.harness import guarded
from stages.common.paths import CLASSIFIER, DECOMPOSED, LATENTS, METRICS, MODELS, NEIGHBOURS, SAMPLES, TIMINGS, VAE
from stages.common.settings import EXPERIMENT, RECIPES, BadInput, read_yaml, refuse, validate
from stages.schema import Experiment

HEADER = """\
# The experiment: what DVC tracks, what `dvc exp run -S` overrides, what you edit.
# Written by `python -m stages.recipe {name}`; each key is explained in stages/schema/ or in its method's settings.py.
"""


def resolve(name: str, seen: tuple[str, ...] = ()) -> dict:
    """A recipe merged over those that it extends. Mappings merge, presets and the rest replace, null removes."""
    path = RECIPES / f"{name}.yaml"
    if name not in available():
        where = (RECIPES / f"{seen[-1]}.yaml", "extends") if seen else (RECIPES, "recipe")
        raise refuse(*where, name, f"one of {', '.join(available())}")
    if name in seen:
        raise refuse(path, "extends", name, f"a chain that ends (this one runs {' -> '.join((*seen, name))})")
    own = read_yaml(path)
    base = own.pop("extends", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise refuse(path, "extends", base, "the name of a recipe")
    return _merge(resolve(base, (*seen, name)), own)


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and "preset" not in value:
            merged[key] = _merge(merged[key], value)
        elif value is None and isinstance(merged.get(key), dict):
            del merged[key]
        else:
            merged[key] = value
    return merged


def available() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def experiment_of(name: str) -> Experiment:
    """The validated experiment that a recipe stands for, with all the trainings that its `seeds` asks for."""
    path, tree = RECIPES / f"{name}.yaml", resolve(name) | {"recipe": name}
    seeds = tree.pop("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise refuse(path, "seeds", seeds, "how often everything is trained, a whole number of 1 or more")
    once = validate(tree, path)
    return once if seeds == 1 else validate(_repeated(once.model_dump(), seeds, path), path)


def _repeated(tree: dict, seeds: int, path: Path) -> dict:
    """An experiment with further trainings of each method, whose names and seeds count up: NAME-seed-1, ..."""
    sections = ("parts", "students", "methods")
    repeated = tree | {kind: dict(tree[kind]) for kind in sections}
    for k in range(1, seeds):
        new = "{}-seed-" + str(k)
        for kind in sections:
            for name, section in tree[kind].items():
                if new.format(name) in tree[kind]:
                    raise refuse(path, f"{kind}.{new.format(name)}", new.format(name), "another name: `seeds` makes it")
                if kind == "methods":
                    changes = {"parts": [new.format(part) for part in section["parts"]], "repeat_of": name}
                else:
                    own = tree["seed"] if section["seed"] is None else section["seed"]
                    changes = {"method": new.format(section["method"]), "seed": own + k}
                if kind == "students":
                    changes["teacher"] = new.format(section["teacher"])
                repeated[kind][new.format(name)] = section | changes
    return repeated


def render(experiment: Experiment) -> str:
    """The text of params/experiment.yaml."""
    yaml = YAML()
    yaml.width = 120
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    text = io.StringIO()
    yaml.dump(_inline_lists(experiment.model_dump()), text)
    return HEADER.format(name=experiment.recipe) + text.getvalue()


def _inline_lists(value: object) -> object:
    """Lists of plain values on one line, everything else a line a key."""
    if isinstance(value, dict):
        return {key: _inline_lists(entry) for key, entry in value.items()}
    if isinstance(value, list) and not any(isinstance(entry, dict) for entry in value):
        sequence = CommentedSeq(value)
        sequence.fa.set_flow_style()
        return sequence
    return [_inline_lists(entry) for entry in value] if isinstance(value, list) else value


def _is_saved() -> bool:
    """Whether the current experiment is a recipe as it stands, or committed."""
    if not EXPERIMENT.exists():
        return True
    current = read_yaml(EXPERIMENT)
    name = current.get("recipe")
    if name in available() and current == experiment_of(name).model_dump():
        return True
    head = subprocess.run(["git", "show", f"HEAD:./{EXPERIMENT}"], capture_output=True, text=True)
    return head.returncode == 0 and head.stdout == EXPERIMENT.read_text()


def remove_leftovers(experiment: Experiment) -> None:
    """Deletes outputs that the experiment no longer names: stages depend on whole folders. DVC's cache keeps them."""
    keep = outputs(experiment)
    for folder in (LATENTS, DECOMPOSED, *MODELS.glob("*"), SAMPLES, METRICS, NEIGHBOURS, TIMINGS):
        for path in folder.glob("*"):
            if path not in keep and folder not in (VAE, CLASSIFIER) and not path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def outputs(experiment: Experiment) -> set[Path]:
    """What the stages of an experiment leave in folders that other stages depend on."""
    shown = (*experiment.methods, *experiment.evaluate.floors)
    timed = ("vae", "classifier", *experiment.trained, *(f"sample-{name}" for name in experiment.methods))
    return {
        *(LATENTS / str(side) for side in experiment.latents.sides),
        *(DECOMPOSED / name for name in experiment.decompose),
        *(MODELS / part.method / name for name, part in experiment.trained.items()),
        *(SAMPLES / name for name in shown),
        *(METRICS / f"{name}.json" for name in shown),
        *(NEIGHBOURS / f"{name}.png" for name in shown),
        *(TIMINGS / f"{name}.json" for name in timed),
    }


def switch(name: str, force: bool) -> None:
    """Writes a recipe into params/experiment.yaml."""
    experiment = experiment_of(name)
    if not force and not _is_saved():
        raise BadInput(f"{EXPERIMENT}: holds edits that no commit has; commit them, or give them up with --force")
    with atomic_file(EXPERIMENT) as temporary:
        temporary.write_text(render(experiment))
    remove_leftovers(experiment)
    print(f"{EXPERIMENT} is now the recipe '{name}'. Run it with `dvc repro`.")


def show() -> None:
    """Prints the recipes, each with the first line of its file."""
    for name in available():
        first, *_ = (RECIPES / f"{name}.yaml").read_text().splitlines() or [""]
        print(f"{name:20} {first.lstrip('# ')}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="the recipe to switch to; without it the recipes are listed")
    parser.add_argument("--force", action="store_true", help="overwrite edits that no commit holds")
    given = parser.parse_args()
    if given.name:
        guarded(switch, name=given.name, force=given.force)
    else:
        guarded(show)


if __name__ == "__main__":
    main()
