"""A recipe becomes the whole experiment, and never overwrites uncommitted edits."""

from __future__ import annotations

import difflib
import re
import subprocess
from contextlib import chdir
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT, changed, refused, sealed

from stages import recipe, train
from stages.common import settings
from stages.common.errors import BadInput
from stages.common.harness import show
from stages.common.images import SCHEMA
from stages.common.paths import EXPERIMENT, RECIPES
from stages.common.reading import parse_yaml
from stages.schema import Experiment

SHIPPED = sorted(path.stem for path in ROOT.glob("params/recipes/*.yaml"))


def write(name: str, text: str) -> None:
    (RECIPES / f"{name}.yaml").write_text(text)


@cache
def shipped(name: str) -> tuple[Experiment, str]:
    """The experiment of a recipe and its file: reading and writing YAML takes a tenth of a second each."""
    with chdir(ROOT):
        made = recipe.experiment_of(name)
    return made, recipe.render(made)


@pytest.fixture
def recipes(tmp_path, monkeypatch) -> Path:
    """An empty folder of recipes below the working directory."""
    monkeypatch.chdir(tmp_path)
    RECIPES.mkdir(parents=True)
    return RECIPES


def git(*command: str) -> None:
    me = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    subprocess.run(["git", *me, *command], check=True, capture_output=True)


def test_the_list_names_every_recipe_with_the_first_line_of_its_file(project):
    write("bare", "")
    done = project.stage("recipe")
    lines = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    shipped = {path.stem for path in ROOT.glob("params/recipes/*.yaml")}
    assert done.returncode == 0 and set(lines) == shipped | {"tiny", "bare"}
    assert lines["embedded"].strip().startswith("The default: MNIST digits at 32x32")
    assert lines["bare"].strip() == ""


def test_a_list_in_another_folder_says_where_to_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=f"params/recipes: holds no YAML files in {tmp_path}; run this in the folder"):
        show(RECIPES)


def test_listing_changes_nothing(project):
    before = project.files()
    project.stage("recipe")
    assert project.files() == before


def test_switching_writes_the_recipe_and_says_so(project):
    done = project.run("-m", "stages.recipe", "embedded")
    assert done.returncode == 0 and "params.yaml is now the recipe 'embedded'" in done.stdout
    assert project.read()["recipe"] == "embedded" and project.read()["sample"]["images"] == 1000


@pytest.mark.parametrize("name", ["embedded", "clothing64", "tiny"])
def test_the_file_that_is_written_is_what_the_stages_read(project, name):
    recipe.switch(name, force=True)
    assert settings.load() == recipe.experiment_of(name)


def comments(text: str) -> list[tuple[str, str]]:
    """All comments of a file except its header, each with its key; "" for a comment on a line of its own."""
    lines = [f" {line}".partition(" # ") for line in text.partition("\n\n")[2].splitlines()]
    return [(line.partition(":")[0].strip(), comment) for line, _, comment in lines if comment]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_file_says_nothing_twice(name):
    """The file has no null that is the default, no training that repeats the common one, and no comment twice."""
    made, text = shipped(name)
    tree, said = parse_yaml(text, EXPERIMENT), comments(text)
    assert len(set(said)) == len(said) > 50
    assert max(map(len, text.splitlines())) <= 120
    of_its_own = [section.get("training", {}) for section in (tree["vae"], tree["classifier"], *tree["parts"].values())]
    of_its_own += [student.get("training", {}) for student in tree["students"].values()]
    assert not [own for own in of_its_own if own.items() & tree["training"].items()]
    for group in ("decompose", "parts", "students", "methods"):
        for key, section in tree[group].items():
            model = type(getattr(made, group)[key])
            repeated = [k for k, value in section.items() if value == model.model_fields[k].get_default()]
            assert repeated == (["source"] if group == "decompose" else [])
    nulls = {"evaluate.weights", "evaluate.reference_images", "data.url", "data.revision", "data.sha256", "run.gpus"}
    assert not [key for key in nulls if tree[key.partition(".")[0]].get(key.partition(".")[2], "absent") is None]


def test_every_key_of_the_shared_sections_is_explained(tiny):
    made = Experiment.model_validate(tiny)
    text = recipe.render(made, whole=True)
    for name in ("run", "data", "training", "vae", "latents", "classifier", "sample", "evaluate"):
        for key, field in type(getattr(made, name)).model_fields.items():
            explained = re.search(rf"^ +{key}: .*# {re.escape(field.description or '?')}$", text, re.MULTILINE)
            assert explained or key in ("kind", "training"), f"{name}.{key}"


def test_a_null_that_is_no_default_is_written(project, tiny):
    changes = {"evaluate.second_extractor": None, "data.label_column": None, "parts.ssd-2l.snr_cap": None}
    given = Experiment.model_validate(changed(tiny, changes))
    EXPERIMENT.write_text(recipe.render(given))
    assert settings.load() == given
    text = EXPERIMENT.read_text()
    keys = [key.rpartition(".")[2] for key in changes]
    assert all(re.search(f"^ +{key}:( #.*)?$", text, re.MULTILINE) for key in keys), "DVC writes no word for null"


def test_the_ways_to_change_a_key_that_the_file_names_are_those_of_dvc(project):
    """DVC overrides a key in the file, and with a + one that is left out, which it refuses without."""
    from dvc.exceptions import InvalidArgumentError
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides

    def override(given: str) -> Experiment:
        for file, overrides in to_path_overrides([given]).items():
            apply_overrides(file, overrides)
        return settings.load()

    header = EXPERIMENT.read_text().partition("\n\n")[0]
    first, second = re.findall(r"dvc exp run -S (.*)", header)
    assert override(first).training.lr == 1e-3
    said = second.replace("NAME", "wmgm-low").replace("lr=", "clip=")
    with pytest.raises(InvalidArgumentError):
        override(said.removeprefix("+"))
    assert override(said).parts["wmgm-low"].training.clip == 1e-3
    assert len(comments(EXPERIMENT.read_text())) > 50  # they survive that


def test_a_solver_of_one_key_in_a_list_has_its_own_line(tiny):
    """DVC would write [{steps: 12, guidance_scale: 2.0}, steps: 6]."""
    given = Experiment.model_validate(changed(tiny, {"methods.msf.scales": SCALES}))
    assert re.search(r"^    - steps: 1$", recipe.render(given), re.MULTILINE)


NULLS = {"evaluate.second_extractor": None, "data.label_column": None, "parts.ssd-2l.snr_cap": None}
SCALES = [{"steps": 1}, {"steps": 2, "name": "heun"}]


@pytest.mark.parametrize("name", [*SHIPPED, "tiny"])
@pytest.mark.parametrize(
    "override, line",
    [("training.lr=0.123", ["lr:", "0.123"]), ("+run.gpus=0.5", ["gpus:", "0.5"])],
    ids=["change", "addition"],
)
def test_an_override_of_dvc_changes_its_line_and_no_other(recipes, tiny, name, override, line):
    from dvc.utils.hydra import apply_overrides

    tree = changed(tiny, NULLS | {"methods.msf.scales": SCALES})
    tree["methods"]["msf"] = tree["methods"].pop("msf")  # it comes last, before a blank line
    text = recipe.render(Experiment.model_validate(tree)) if name == "tiny" else shipped(name)[1]
    EXPERIMENT.write_text(text)
    before = text.splitlines()
    apply_overrides(EXPERIMENT, [override])
    found = [each for each in difflib.ndiff(before, EXPERIMENT.read_text().splitlines()) if each[0] in "+-"]
    assert [each[0] for each in found] == (["+"] if override[0] == "+" else ["-", "+"])
    assert found[-1].partition("#")[0].split() == ["+", *line]


@pytest.mark.parametrize("name", [None, "embedded"])
def test_every_key_with_its_default_can_be_printed(project, name):
    before = project.files()
    done = project.stage("recipe", "--defaults", *([name] if name else []))
    assert done.returncode == 0 and not done.stderr and project.files() == before
    printed = parse_yaml(done.stdout, EXPERIMENT)
    assert printed == recipe.experiment_of(name or "tiny").model_dump()
    said = comments(done.stdout)
    assert len(set(said)) == len(said) > 100


@pytest.mark.parametrize("arguments", [["--defaults", "none"], ["--defaults"]])
def test_what_has_no_defaults_is_refused_in_one_line(project, arguments):
    project.change({"seed": -1})
    refused(project.stage("recipe", *arguments), "recipe: 'none'" if "none" in arguments else "seed: -1")


@pytest.mark.parametrize("text", ["no", "on", "1e-3", "0123", "2020-01-01", "null", "a: b", "#x", "Ünï ☃", " x ", "$y"])
def test_text_that_looks_like_something_else_stays_text(project, tiny, text):
    given = Experiment.model_validate(tiny | {"data": tiny["data"] | {"revision": text}})
    EXPERIMENT.write_text(recipe.render(given))
    assert settings.load().data.revision == text


@pytest.mark.parametrize("number", [1e-3, 1e-5, 2.5e-7, 1e10, 0.1 + 0.2, 3.0])
def test_a_number_is_read_as_it_was_written_by_us_and_by_dvc(project, tiny, number):
    from dvc.utils.serialize import parse_yaml

    given = Experiment.model_validate(tiny | {"vae": tiny["vae"] | {"kl_weight": number}})
    EXPERIMENT.write_text(recipe.render(given))
    assert settings.load().vae.kl_weight == number
    assert parse_yaml(EXPERIMENT.read_text(), str(EXPERIMENT))["vae"]["kl_weight"] == number


def test_a_recipe_switched_to_twice_is_the_same_file(project):
    recipe.switch("embedded", force=False)
    first = EXPERIMENT.read_bytes()
    recipe.switch("embedded", force=False)
    assert EXPERIMENT.read_bytes() == first


@pytest.mark.parametrize("name", ["none", "../experiment", "../recipes/embedded", "embedded.yaml", "/etc/passwd", ""])
def test_an_unknown_recipe_is_refused_and_nothing_changes(project, name):
    before = project.files()
    with pytest.raises(BadInput) as error:
        recipe.switch(name, force=True)
    assert str(error.value).startswith(
        f"params/recipes: recipe: {name!r} is not allowed; allowed: one of captions32, captions32-ablations, "
    )
    assert project.files() == before


def test_an_unknown_recipe_ends_the_command_with_exit_code_2(project):
    refused(project.stage("recipe", "none"), "params/recipes: recipe: 'none'", "allowed: one of", "embedded")


def test_a_mapping_merges_key_by_key_and_everything_else_is_replaced(recipes):
    write("base", "a: {x: 1, y: {z: 2, w: [1, 2]}}\nb: [1, 2]\nc: 3\n")
    write("over", "extends: base\na: {y: {w: [9]}}\nb: []\nc: null\nd: {e: 4}\n")
    assert recipe.resolve("over") == {"a": {"x": 1, "y": {"z": 2, "w": [9]}}, "b": [], "c": None, "d": {"e": 4}}


def test_a_list_of_mappings_is_replaced_whole(recipes):
    write("base", "scales: [{steps: 1, guidance_scale: 2.0}, {steps: 3}]\n")
    write("over", "extends: base\nscales: [{steps: 5}]\n")
    assert recipe.resolve("over") == {"scales": [{"steps": 5}]}


@pytest.mark.parametrize("over", ["{kind: b, y: 2}", "{role: b, y: 2}", "{preset: b, y: 2}", "null"])
def test_a_mapping_of_another_kind_role_or_preset_replaces_and_so_does_null(recipes, over):
    write("base", "a: {kind: a, role: a, x: 1}\n")
    write("over", f"extends: base\na: {over}\n")
    assert recipe.resolve("over") == {"a": parse_yaml(f"a: {over}", EXPERIMENT)["a"]}


def test_a_mapping_that_repeats_its_kind_and_role_merges(recipes):
    write("base", "a: {kind: a, role: b, x: 1}\n")
    write("over", "extends: base\na: {kind: a, role: b, y: 2}\n")
    assert recipe.resolve("over") == {"a": {"kind": "a", "role": "b", "x": 1, "y": 2}}


def test_only_the_methods_that_are_named_are_taken_over_with_what_they_use(project, tiny):
    write("some", "extends: tiny\nonly: [msf, swd, swd-teacher]\nparts: {msf-0: {training: {batch: 4}}}\n")
    made = recipe.experiment_of("some")
    assert {key: list(getattr(made, key)) for key in ("decompose", "parts", "students", "methods")} == {
        "decompose": ["residual", "pyramid"],
        "parts": ["msf-0", "msf-1", "swd-teacher"],
        "students": ["swd"],
        "methods": ["msf", "swd-teacher", "swd"],
    }
    whole = recipe.experiment_of("tiny")
    assert made.parts["msf-1"] == whole.parts["msf-1"] and made.methods["msf"] == whole.methods["msf"]
    assert made.parts["msf-0"].training.batch == 4 != whole.parts["msf-0"].training.batch


IMAGES = "{kind: swd, teacher: swd-teacher, dataset: pyramid, images: 8, solver: {steps: 1}}"
MADE = f"extends: tiny\nsynthetic: {{made: {IMAGES}, unused: {IMAGES}}}\nstudents: {{swd: {{dataset: made}}}}\n"


def test_images_of_a_teacher_are_taken_over_with_the_student_that_learns_from_them_and_made_anew_for_each_seed(project):
    write("base", MADE)
    write("one", "extends: base\nonly: [swd, swd-teacher]\nseeds: 2\n")
    write("none", "extends: base\nonly: [dit]\n")
    found, base = recipe.experiment_of("one"), recipe.experiment_of("base")
    assert list(base.synthetic) == ["made", "unused"] and recipe.experiment_of("none").synthetic == {}
    assert list(found.synthetic) == ["made", "made-seed-1"] and list(found.decompose) == ["pyramid"]
    assert found.synthetic["made-seed-1"].teacher == "swd-teacher-seed-1"
    assert (found.students["swd"].dataset, found.students["swd-seed-1"].dataset) == ("made", "made-seed-1")
    assert found.parts["swd-teacher-seed-1"].dataset == "pyramid"
    assert Path("data/decomposed/made-seed-1") in recipe.outputs(found)


def test_images_of_a_teacher_stand_in_the_file_where_there_are_some_without_defaults(project):
    write("base", MADE)
    assert project.stage("recipe", "base", "--force").returncode == 0
    assert "batch" not in project.read()["synthetic"]["made"] and settings.load().synthetic["made"].batch == 50
    assert "synthetic" not in settings.written(recipe.experiment_of("tiny"))


def test_what_a_recipe_adds_is_kept_beside_the_methods_that_it_takes_over(project):
    part = "{method: new, kind: ssd, dataset: pixels, process: {levels: 1}, network: {preset: tiny-32}}"
    write("more", f"extends: tiny\nonly: [ssd-2l]\nparts: {{new: {part}}}\nmethods: {{new: {{kind: ssd}}}}\n")
    made = recipe.experiment_of("more")
    assert list(made.methods) == list(made.parts) == ["ssd-2l", "new"]
    assert made.parts["new"].training == made.training


def test_only_narrows_a_chain_of_recipes_step_by_step(project):
    write("three", "extends: tiny\nonly: [dit, msf, wmgm]\nseeds: 2\n")
    write("two", "extends: three\nonly: [msf, wmgm]\nseeds: 1\n")
    assert list(recipe.experiment_of("two").methods) == ["msf", "wmgm"]
    assert list(recipe.experiment_of("three").methods)[3:] == ["msf-seed-1", "dit-seed-1", "wmgm-seed-1"]


def test_a_chain_of_recipes_is_merged_from_its_root_on(recipes):
    write("a", "x: 1\ny: 1\nz: 1\n")
    write("b", "extends: a\ny: 2\nz: 2\n")
    write("c", "extends: b\nz: 3\n")
    assert recipe.resolve("c") == {"x": 1, "y": 2, "z": 3}


def test_seeds_trains_each_method_anew_with_students_after_their_own_teacher(project, tiny):
    write("thrice", "extends: tiny\nseeds: 3\nseed: 5\nparts: {dit: {seed: 70}}\n")
    found = recipe.experiment_of("thrice").model_dump()
    for section in ("parts", "students", "methods"):
        names = [f"{name}{copy}" for copy in ("", "-seed-1", "-seed-2") for name in tiny[section]]
        assert sorted(found[section]) == sorted(names)
    for name in ("dit", "msf-0", "swd-teacher", "swd"):
        section = "students" if name == "swd" else "parts"
        first = found[section][name]
        for k in (1, 2):
            own = {"method": f"{first['method']}-seed-{k}", "seed": (70 if name == "dit" else 5) + k}
            own |= {"teacher": f"swd-teacher-seed-{k}"} if name == "swd" else {}
            assert found[section][f"{name}-seed-{k}"] == first | own
    assert found["methods"]["msf"] == recipe.experiment_of("tiny").model_dump()["methods"]["msf"]
    assert found["methods"]["msf-seed-2"] == found["methods"]["msf"] | {"repeat_of": "msf"}


def test_one_seed_is_the_recipe_as_it_stands_and_recipes_pass_theirs_on(project, tiny):
    write("once", "extends: tiny\nseeds: 1\n")
    write("twice", "extends: once\nseeds: 2\n")
    write("heir", "extends: twice\nseed: 0\n")
    assert recipe.experiment_of("once") == Experiment.model_validate(tiny | {"recipe": "once"})
    assert recipe.experiment_of("heir").methods.keys() == recipe.experiment_of("twice").methods.keys() > {"dit-seed-1"}


def test_a_part_is_trained_from_its_own_seed_or_from_the_experiments(project):
    write("twice", "extends: tiny\nseeds: 2\nseed: 5\n")
    recipe.switch("twice", force=True)
    Path("data/decomposed/full").mkdir(parents=True)
    sealed("data/decomposed/full")
    row = {"id": ["a"], "split": ["train"], "label": [0]}
    pl.DataFrame(row, schema=SCHEMA).write_parquet("data/images.parquet")
    sealed("data/images.parquet")
    params = settings.load()
    assert [train.job(part, params).seed for part in ("dit", "dit-seed-1")] == [5, 6]
    assert "seeds" not in project.read()


@pytest.mark.parametrize("seeds", ["0", "-1", "31", str(2**53), "1.5", "true", "two", "[1, 2]", "null"])
def test_a_number_of_seeds_that_is_none_is_refused_in_one_line(project, seeds):
    write("a", f"extends: tiny\nseeds: {seeds}\n")
    before = project.files()
    refused(project.stage("recipe", "a", "--force"), "params/recipes/a.yaml: seeds: ", "allowed: ", "an integer")
    assert project.files() == before


def test_a_name_that_seeds_needs_is_refused_in_one_line(project):
    part = (
        "{method: dit-seed-1, kind: msf, dataset: full, index: 0, network: {preset: DiT-S/2}, training: {images: 16}}"
    )
    method = "{kind: msf, scales: [{steps: 4}]}"
    write("a", f"extends: tiny\nseeds: 2\nparts: {{dit-seed-1: {part}}}\nmethods: {{dit-seed-1: {method}}}\n")
    refused(project.stage("recipe", "a", "--force"), "parts.dit-seed-1: 'dit-seed-1'", "another name")


def test_a_merge_leaves_its_base_as_it_was(recipes):
    write("base", "a: {x: 1}\n")
    write("one", "extends: base\na: {x: 2, y: 3}\n")
    recipe.resolve("one")
    assert recipe.resolve("base") == {"a": {"x": 1}}


def test_an_experiment_saved_as_a_recipe_is_a_recipe_of_its_own_name(project):
    write("mine", EXPERIMENT.read_text())
    assert project.stage("recipe", "mine").returncode == 0
    assert project.read()["recipe"] == "mine"


@pytest.mark.parametrize(
    "files, key, value, allowed",
    [
        ({"a": "extends: a"}, "extends", "'a'", "a chain without cycles (this one is a -> a)"),
        (
            {"a": "extends: b", "b": "extends: c", "c": "extends: a"},
            "extends",
            "'a'",
            "(this one is a -> b -> c -> a)",
        ),
        ({"a": "extends: b", "b": "extends: b"}, "extends", "'b'", "(this one is a -> b -> b)"),
        ({"a": "extends: none"}, "extends", "'none'", "one of a, captions32"),
        ({"a": "extends: [tiny]"}, "extends", "['tiny']", "the name of a recipe"),
        ({"a": "extends: tiny\nsed: 1"}, "sed", "'sed'", "recipe, seed, run"),
        ({"a": "extends: tiny\nvae: 3"}, "vae", "3", "dictionary"),
        ({"a": "extends: tiny\nclassifier: null"}, "classifier", "None", "dictionary"),
        ({"a": "extends: tiny\nparts: {dit: null}"}, "parts.dit", "None", "dictionary"),
        ({"a": "seed: 1"}, "data", "missing", "a value"),
        ({"a": "extends: tiny\nonly: [ddpm]"}, "only", "'ddpm'", "methods of tiny: msf, dit, ssd-2l, wmgm"),
        ({"a": "extends: tiny\nonly: [[dit]]"}, "only", "['dit']", "a list of the methods of tiny"),
        ({"a": "extends: tiny\nonly: dit-1"}, "only", "'dit-1'", "a list of the methods of tiny"),
        ({"a": "extends: tiny\nonly: dit"}, "only", "'dit'", "a list of the methods of tiny"),
        ({"a": "extends: tiny\nonly: []"}, "only", "[]", "a list of the methods of tiny"),
        ({"a": "extends: tiny\nonly: [dit, swd]"}, "students.swd.teacher", "'swd-teacher'", "one of dit"),
        ({"a": "only: [dit]"}, "only", "['dit']", "`extends`"),
        ({"a": "extends: b\nonly: [dit]", "b": "extends: tiny\nseed: -1"}, "seed", "-1", "greater than or equal to 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_one_line_and_nothing_changes(project, files, key, value, allowed):
    for name, text in files.items():
        write(name, text + "\n")
    before = project.files()
    done = project.stage("recipe", "a", "--force")
    refused(done, f": {key}: {value}", allowed)
    assert any(done.stderr.startswith(f"error: params/recipes/{name}.yaml: ") for name in files)
    assert project.files() == before


@pytest.mark.parametrize(
    "text, about", [("a: [1", "line 1"), ("", "a mapping"), ("- a", "a mapping"), ("\x00", "YAML")]
)
def test_a_recipe_that_is_no_mapping_is_refused_in_one_line(project, text, about):
    write("a", text)
    refused(project.stage("recipe", "a"), "params/recipes/a.yaml: ", about)


@pytest.mark.parametrize("edit", [("seed: 0", "seed: 1"), ("seed: 0", "sed: 0"), ("seed: 0", "seed: [")])
def test_edits_that_nothing_else_holds_are_refused_and_kept(project, edit):
    EXPERIMENT.write_text(EXPERIMENT.read_text().replace(*edit))
    before = project.files()
    refused(project.stage("recipe", "embedded"), "params.yaml: ")
    assert project.files() == before


def test_the_line_about_edits_says_how_to_go_on(project):
    project.change({"seed": 7})
    refused(project.stage("recipe", "embedded"), "uncommitted edits", "commit them", "--force")


@pytest.mark.parametrize("edit", [("seed: 0", "seed: 1"), ("seed: 0", "seed: [")])
def test_force_gives_the_edits_up(project, edit):
    EXPERIMENT.write_text(EXPERIMENT.read_text().replace(*edit))
    assert project.stage("recipe", "embedded", "--force").returncode == 0
    assert settings.load() == recipe.experiment_of("embedded")


@pytest.mark.parametrize("changes", [{}, {"parts.dit.label_dropout": 0.1, "parts.dit.seed": None}])
def test_a_recipe_as_it_stands_is_no_edit_however_it_is_laid_out(project, changes):
    project.change(changes)  # the same values as JSON, some of them defaults
    assert project.stage("recipe", "embedded").returncode == 0


def test_a_committed_experiment_is_no_edit_however_it_is_laid_out(project):
    project.change({"seed": 7})
    git("init", "-q", ".")
    git("add", "params.yaml")
    git("commit", "-qm", "mine")
    EXPERIMENT.write_text(recipe.render(settings.load()))
    assert project.stage("recipe", "embedded").returncode == 0


def test_an_experiment_of_an_older_form_may_be_left_once_it_is_committed(project):
    project.change({"seed": 7, "sed": 1})
    refused(project.stage("recipe", "embedded"), "uncommitted edits")
    git("init", "-q", ".")
    git("add", "params.yaml")
    git("commit", "-qm", "mine")
    assert project.stage("recipe", "embedded").returncode == 0


def test_a_recipe_that_was_changed_since_it_was_written_counts_as_edits(project):
    write("tiny", (RECIPES / "tiny.yaml").read_text() + "seed: 5\n")
    refused(project.stage("recipe", "embedded"), "uncommitted edits")


@pytest.mark.parametrize("root", [".", ".."], ids=["its own repository", "a folder of a larger repository"])
def test_committed_edits_may_be_left(project, root):
    project.change({"seed": 7})
    git("init", "-q", root)
    git("add", "params.yaml")
    refused(project.stage("recipe", "embedded"), "uncommitted edits")  # staged only
    git("commit", "-qm", "mine")
    assert project.stage("recipe", "embedded").returncode == 0
    assert project.read()["recipe"] == "embedded"
    project.change({"seed": 8})
    refused(project.stage("recipe", "tiny"), "uncommitted edits")


def test_a_missing_experiment_is_written(project):
    EXPERIMENT.unlink()
    assert project.stage("recipe", "embedded").returncode == 0
    assert project.read()["recipe"] == "embedded"


LEFT = ["data/latents/48/x", "data/decomposed/old/x", "models/ssd/unet/x", "models/msf/msf-2/x", "samples/ssd/x"]
LEFT += ["data/captions/words/x", "data/latents/text/words/x", "models/text/words/x"]
LEFT += ["reports/metrics/ssd.json", "reports/measurements/ssd.json", "reports/neighbours/ssd.png"]
LEFT += ["reports/neighbours/ssd-seed-1.png", "reports/paired/ssd.parquet"]
KEPT = ["data/latents/24/x", "data/decomposed/full/x", "models/msf/msf-1/x", "models/dit/dit/x", "samples/msf/x"]
KEPT += ["reports/metrics/dit.json", "reports/metrics/classifier.json", "reports/timing/msf-2.json"]
KEPT += ["reports/measurements/dit.json", "reports/measurements/real.json"]
KEPT += ["samples/real/x", "samples/autoencoder/x", "reports/metrics/real.json", "reports/neighbours/real.png"]
KEPT += ["models/vae/config.json", "models/classifier/config.json", "reports/costs.json"]
KEPT += ["reports/neighbours/dit.png", "reports/paired/dit.parquet"]
KEPT += ["reports/leaderboard.json", "reports/galleries/ssd-grid.png"]
KEPT += ["data/images.parquet", "data/pixels/train/x"]
KEPT += ["data/reference/x", "data/raw/digits/x", ".scratch/x", "samples/.gitignore"]


def test_what_the_stages_of_another_recipe_left_is_removed_and_nothing_else(project):
    for path in map(Path, LEFT + KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    before = project.files()
    recipe.switch("embedded", force=False)
    gone = set(before) - set(project.files())
    assert gone == set(LEFT)
    assert not Path("samples/ssd").exists(), "an empty folder is an output, too"


def test_a_refused_switch_removes_nothing(project):
    project.change({"seed": 7})
    Path("samples/ssd").mkdir(parents=True)
    refused(project.stage("recipe", "embedded"))
    assert Path("samples/ssd").exists()


def test_the_outputs_that_a_recipe_keeps_are_those_that_dvc_declares(project):
    """The outputs of dvc.yaml in folders that stages depend on as a whole."""
    from dvc.repo import Repo

    git("init", "-q")
    Repo.init(no_scm=False)
    with Repo() as repo:
        declared = {Path(out.def_path) for stage in repo.index.stages for out in stage.outs}
    whole = (recipe.LATENTS, recipe.DECOMPOSED, recipe.MODELS, recipe.SAMPLES)
    whole += (recipe.MEASUREMENTS, recipe.METRICS, recipe.NEIGHBOURS, recipe.PAIRED)
    of_folders = {path for path in declared if any(folder in path.parents for folder in whole)}
    singles = {recipe.VAE, recipe.CLASSIFIER}
    assert recipe.outputs(recipe.experiment_of("tiny")) == of_folders - singles
