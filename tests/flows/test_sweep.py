"""Sweeps: valid or one line; searched, resumed after a kill, failures kept; the winner is a recipe that runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT, Project, as_yaml, called, sealed
from filelock import FileLock, Timeout
from PIL import Image

from flows import graph, inputs
from flows.sweeps import charts, outcome, search, space, trial
from flows.sweeps.space import load
from flows.sweeps.trial import Pipeline
from multiscale.core.intact import Damaged
from multiscale.core.storage import write_json, write_sealed_json
from stages import recipe
from stages.common import keys, paths, settings
from stages.common.errors import BadInput
from stages.schema import Experiment

LR = "parts.dit.training.lr"
STEPS = "methods.msf.scales.0.steps"
DROPOUT = "parts.dit.label_dropout"
SEARCH = {
    "method": "dit",
    "metric": "kid",
    "trials": 3,
    "images": 12,
    "concurrency": 2,
    "space": {LR: {"log": [1e-4, 0.1]}},
}


@pytest.fixture
def swept(trained, working_copy, monkeypatch):
    """Writes params/sweeps/NAME.yaml into a copy of the trained project, which is the working directory."""
    folder = working_copy(trained)
    monkeypatch.setattr(keys, "ROOT", folder)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")

    def swept(name: str, sweep: dict) -> Project:
        Path("params/sweeps", f"{name}.yaml").write_text(as_yaml(sweep))
        return Project(folder)

    return swept


INVALID = [
    ("an unknown key", {"trails": 3}, "trails: 'trails'", "method, metric, trials"),
    ("an unknown metric", {"metric": "fid"}, "metric: 'fid'", "'kid', 'fd'"),
    ("an unknown method", {"method": "nope"}, "method: 'nope'", "msf, dit"),
    ("no space", {"space": {}}, "space: {}", "at least one setting"),
    (
        "a missing key",
        {"space": {"parts.dit.training.lrr": {"log": [1e-4, 1e-2]}}},
        "parts.dit.training.lrr: 'lrr'",
        "images, batch, lr",
    ),
    (
        "a key of another method",
        {"space": {"parts.msf-0.training.lr": {"log": [1e-4, 1e-2]}}},
        "'parts.msf-0",
        "parts.dit",
    ),
    ("an empty range", {"space": {LR: {"log": [1e-2, 1e-2]}}}, f"space.{LR}.log: [0.01, 0.01]", "a lower and a higher"),
    (
        "a reversed range",
        {"space": {LR: {"uniform": [1, 0.5]}}},
        f"space.{LR}.uniform: [1, 0.5]",
        "a lower and a higher",
    ),
    ("a log range from zero", {"space": {LR: {"log": [0, 1]}}}, f"space.{LR}.log: [0, 1]", "above 0"),
    ("one end", {"space": {LR: {"log": [1]}}}, f"space.{LR}.log: [1]", "two numbers"),
    (
        "a grid without end",
        {"space": dict.fromkeys("ab", {"grid": [*range(32)]})},
        "space: 'over 1000",
        "at most 1000",
    ),
    ("grids without end", {"space": [{LR: {"grid": [0.1]}}] * 1001}, "space: 'over 1000", "at most 1000"),
    ("choices without end", {"space": {LR: {"choice": [0.1] * 1001}}}, "space: 'over 1000", "at most 1000"),
    ("trials without end", {"trials": 2**53}, f"trials: {2**53}", "10000"),
    ("trials at once without end", {"concurrency": 2**53}, f"concurrency: {2**53}", "1024"),
    ("images without end", {"images": 2**900}, f"images: {2**900}"[:100], "10000000"),
    ("no choice", {"space": {LR: {"choice": []}}}, f"space.{LR}.choice: []", "at least one value"),
    ("an unknown kind", {"space": {LR: {"normal": [0, 1]}}}, f"space.{LR}: ", "log, uniform, int, choice, grid"),
    (
        "a grid beside a range",
        {"space": {LR: {"log": [1, 2]}, DROPOUT: {"grid": [0.1]}}},
        "space: ",
        "grid",
    ),
    ("an end that no experiment has", {"space": {LR: {"uniform": [-1, 1]}}}, f"{LR}: -1", "greater than 0"),
    (
        "a range of numbers for a whole one",
        {"space": {"parts.dit.training.ema_images": {"uniform": [500, 8000]}}},
        "ema_images: 500.0",
        "integer",
    ),
    ("a text for a number", {"space": {"parts.dit.network.depth": {"choice": ["deep"]}}}, "depth: 'deep'", "integer"),
    (
        "a grid point that cannot be",
        {"space": {"parts.dit.network.patch": {"grid": [1, 3]}}},
        "network.patch: 3",
        "divisor",
    ),
    ("too few images a trial", {"images": 3}, "images: 3", "greater than or equal to 4"),
    ("too few images for its metrics", {"images": 9}, "evaluate.is_splits: 10", "at most 9 with this number of images"),
    (
        "a loss that changes",
        {"stop_early": True, "space": {DROPOUT: {"choice": [0.1]}}},
        "stop_early: True",
        DROPOUT,
    ),
    (
        "a loss over other images",
        {"stop_early": True, "space": {"parts.dit.training.validation_images": {"int": [1, 32]}}},
        "stop_early: True",
        "validation_images changes what the loss means",
    ),
]


@pytest.mark.parametrize("change, fault, allowed", [pytest.param(*row[1:], id=row[0]) for row in INVALID])
def test_an_invalid_sweep_is_one_line(swept, change, fault, allowed):
    swept("bad", SEARCH | change)
    with pytest.raises(BadInput) as error:
        load("bad")
    line = str(error.value)
    assert line.startswith("params/sweeps/bad.yaml: ") and "\n" not in line
    shown, _, rest = line.partition("allowed: ")
    assert fault in shown and allowed in rest


def test_a_sweep_whose_name_the_dashboard_would_not_take_is_one_line(swept):
    swept("My_sweep", SEARCH)
    with pytest.raises(BadInput, match=r"^params/sweeps: sweep: 'My_sweep' is not allowed; allowed: a name of a-z, 0-"):
        load("My_sweep")


def test_early_stopping_without_a_validation_loss_is_one_line(swept):
    setting = "parts.dit.training.validation_images"
    swept("none", SEARCH | {"stop_early": True, "settings": {setting: 0}})
    with pytest.raises(BadInput, match="stop_early: True is not allowed; allowed: false, or a training.validation_im"):
        load("none")
    swept("early", SEARCH | {"stop_early": True})
    rows = pl.read_parquet(paths.IMAGES).with_columns(split=pl.col("split").replace("validation", "test"))
    rows.write_parquet(paths.IMAGES), sealed(paths.IMAGES)
    with pytest.raises(BadInput, match="stop_early: True is not allowed; allowed: false, as the data has no validat"):
        search.run("early")


def test_trials_are_stopped_by_their_validation_loss(swept, monkeypatch):
    from ray import tune

    told = []
    monkeypatch.setattr(tune, "report", told.append)
    swept("early", SEARCH | {"stop_early": True})
    plan = load("early")
    assert search._stopping(plan).metric == "validation_loss"

    def run(method, params, pipeline, scratch, on_row):
        on_row(100, {"images": 8, "loss": 1.0})
        on_row(100, {"images": 16, "validation_loss": 0.5})
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "run", run)
    with pytest.raises(KeyboardInterrupt):
        search._trial({LR: 1e-3}, plan, Pipeline(Path.cwd(), plan.experiment, {}, ""), Path("scratch"))
    assert told == [{"images": 116, "validation_loss": 0.5}]


@pytest.mark.parametrize("axis", [{"grid": [1e-3, 1e-2]}, {"log": [1e-3, 1e-2]}], ids=["grid", "search"])
@pytest.mark.parametrize("early", [True, False], ids=["early", "to the end"])
def test_a_grid_as_a_search_is_stopped_early_where_that_is_asked_for(swept, monkeypatch, axis, early):
    from ray import tune

    class Tuner:
        def __init__(self, trainable: object, tune_config: tune.TuneConfig, **others: object):
            asked.append(tune_config.scheduler)

        def fit(self) -> None:
            pass

    asked: list[object] = []
    monkeypatch.setattr(search, "connect", lambda run: None)
    monkeypatch.setattr(search.cluster, "request", lambda run: {"CPU": 1, "GPU": 0})
    monkeypatch.setattr(tune, "Tuner", Tuner)
    swept("early", SEARCH | {"stop_early": early, "space": {LR: axis}})
    plan, records = load("early"), trial.Records(Path("records"))
    search._search(
        plan, Pipeline(Path.cwd(), plan.experiment, {}, ""), Path("scratch").absolute(), records, lambda: None
    )
    assert [scheduler is not None for scheduler in asked] == [early]


def test_a_point_that_is_proposed_again_is_not_run_again(swept, monkeypatch):
    from ray import tune

    told, ran = [], []
    monkeypatch.setattr(tune, "report", told.append)

    def run(method, params, pipeline, scratch, on_row):
        ran.append(params.parts["dit"].training.lr)
        if ran[-1] == 0.2:
            raise FloatingPointError("the loss diverged")
        return {"metrics": {"kid": 0.5}}

    monkeypatch.setattr(trial, "run", run)
    swept("few", SEARCH | {"space": {LR: {"choice": [0.1, 0.2]}}})
    plan = load("few")
    pipeline = Pipeline.read(plan)
    scratch = Path(".scratch/sweeps", f"few-{pipeline.key}").absolute()
    for index in (0, 0):
        search._trial({LR: index}, plan, pipeline, scratch)
    with pytest.raises(FloatingPointError):
        search._trial({LR: 1}, plan, pipeline, scratch)
    search._trial({LR: 1}, plan, pipeline, scratch)
    assert ran == [0.1, 0.2] and [each["objective"] for each in told] == [0.5, 0.5, None]

    monkeypatch.setattr(outcome, "write", lambda plan, records: [record["state"] for record in records])
    monkeypatch.setattr(search, "_search", None)
    assert search.run("few") == ["done", "failed"], "with both values tried it ends, though it may have three trials"


@pytest.mark.parametrize("kind, values, count", [("int", [1, 2], 2), ("int", [1, 9], 3), ("choice", [1, 2, 4, 8], 3)])
def test_a_search_has_no_more_trials_than_its_space_has_points(kind, values, count, swept):
    swept("few", SEARCH | {"space": {"parts.dit.network.depth": {kind: values}}})
    assert load("few").sweep.count == count
    swept("more", SEARCH | {"space": {"parts.dit.network.depth": {kind: values}, LR: {"log": [1e-4, 1e-2]}}})
    assert load("more").sweep.count == 3


def test_an_unknown_sweep_ends_in_one_line_that_lists_those_there_are(swept):
    swept("mine", SEARCH)
    done = called("flows.sweeps", "nope")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: params/sweeps: sweep: 'nope' is not allowed; allowed: "
    )
    assert "mine" in done.stderr and done.stderr.count("\n") == 1


def test_before_the_pipeline_has_run_a_sweep_is_one_line_and_no_trial_is_taken_for_failed(swept):
    swept("mine", SEARCH)
    shutil.rmtree("data/reference")
    with pytest.raises(BadInput, match=r"^data/reference: missing; an earlier stage makes it: run dvc repro$"):
        search.run("mine")
    assert not Path(".scratch/sweeps").exists()


def test_beside_a_run_in_the_same_folder_a_sweep_is_refused(swept, monkeypatch):
    monkeypatch.setattr(inputs, "ENDS", 0.1)
    monkeypatch.setattr(search, "load", None)
    swept("mine", SEARCH)
    with inputs.alone(), pytest.raises(BadInput, match="another run is at work here"):
        search.run("mine")
    with pytest.raises(TypeError, match="not callable"):  # it would begin
        search.run("mine")


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("params/sweeps/*.yaml")))
def test_every_shipped_sweep_suits_the_shipped_experiment(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = load(name)
    assert len(plan.sweep.points or range(plan.sweep.trials)) > 5
    assert plan.file.read_text().startswith("# ")


def test_a_trial_is_the_one_method_at_the_budget(swept):
    project = swept("half", SEARCH | {"budget": 0.5})
    write_json(Path("dino/config.json"), {})
    project.change({"evaluate.dinov2": "dino", "run.tracker": "tensorboard"})
    found = load("half").trial({LR: 0.25})
    assert set(found.methods) == set(found.parts) == {"dit"} and found.sample.images == 12
    assert found.parts["dit"].training.images == 16, "at least one batch"
    assert found.parts["dit"].training.lr == 0.25
    assert load("half").changed({LR: 0.25}).parts["dit"].training.images == 16
    assert found.evaluate.second_extractor is found.evaluate.dinov2 is None, "one extractor ranks"
    assert found.run.tracker is None and found.run.previews == 0, "a trial's folder goes with what is told there"
    more = swept("more", SEARCH | {"method": "msf", "space": {STEPS: {"grid": [1]}}})
    more.change({"methods.msf.steps": [2]})
    plan = load("more")
    assert plan.trial({STEPS: 1}).methods["msf"].steps == [] and plan.changed({STEPS: 1}).methods["msf"].steps == [2]


def test_a_key_may_be_one_that_the_experiment_leaves_at_its_default(swept):
    project = swept("default", SEARCH | {"space": {DROPOUT: {"grid": [0.25]}}})
    assert "label_dropout" not in project.read()["parts"]["dit"]
    assert load("default").trial({DROPOUT: 0.25}).parts["dit"].label_dropout == 0.25


def test_a_trial_that_copies_comes_after_those_that_do_not_and_before_those_that_failed(swept):
    swept("mine", SEARCH)
    found = [("copier", 0.1, True), ("good", 0.2, False), ("bad", 0.3, False)]
    records = [{"state": "done", "name": name, "metrics": {"kid": kid, "copies": c}} for name, kid, c in found]
    ranked = outcome.ranked(load("mine"), [{"state": "failed", "name": "failed"}, *records])
    assert [record["name"] for record in ranked] == ["good", "bad", "copier", "failed"]


def test_a_damaged_record_is_forgotten_with_a_line_so_that_its_trial_runs_again(swept, monkeypatch, capsys):
    swept("mine", SEARCH | {"space": {LR: {"grid": [0.1, 0.2]}}})
    records = trial.Records(Path(".scratch/sweeps", f"mine-{Pipeline.read(load('mine')).key}", "records").absolute())
    for rate in (0.1, 0.2):
        records.add({LR: rate}, "done", metrics={"kid": rate})
    whole, damaged = (records.path({LR: rate}) for rate in (0.1, 0.2))
    damaged.write_text(damaged.read_text().replace('"kid": 0.2', '"kid": 0.0'))
    with pytest.raises(Damaged):
        records.all()
    monkeypatch.setattr(search, "_search", None)
    with pytest.raises(TypeError, match="not callable"):  # it would search on
        search.run("mine")
    assert [record["point"] for record in records.all()] == [{LR: 0.1}] and whole.exists() and not damaged.exists()
    line = f"{damaged}: damaged: it does not have the checksum that it holds; its trial runs again"
    assert line in capsys.readouterr().err.splitlines()


def test_a_student_is_swept_with_its_own_settings_after_its_teacher(swept):
    swept("few", SEARCH | {"method": "swd", "space": {"students.swd.mmd.kernel": {"grid": ["linear", "rbf"]}}})
    plan, root = load("few"), Path.cwd()
    params = plan.trial({"students.swd.mmd.kernel": "rbf"})
    assert set(params.methods) == {"swd", "swd-teacher"} and set(params.decompose) == {"pyramid"}
    assert params.students["swd"].mmd.kernel == "rbf" and plan.images == params.students["swd"].training.images

    made = {"kind": "swd", "teacher": "swd-teacher", "dataset": "pyramid", "images": 4, "solver": {"steps": 1}}
    tree = plan.experiment.model_dump() | {"synthetic": {"made": made, "unused": made}}
    tree["students"]["swd"]["dataset"] = "made"
    of_images = replace(plan, experiment=settings.validate(tree, plan.file))
    assert trial.stages_of(of_images.trial({}))[-4:] == [
        *("decompose@pyramid", "train@swd-teacher", "synthetic@made", "distill@swd")
    ]
    assert "synthetic.made" in of_images.open_to and "decompose.pyramid" in of_images.open_to

    found = trial.run("swd", params, Pipeline.read(plan), root / ".scratch/sweeps/few", lambda *row: None)
    assert {row["part"] for row in found["history"]} == {"swd"} and found["metrics"]["network_calls"] == 4
    swept("teacher", SEARCH | {"method": "swd", "space": {"parts.swd-teacher.training.lr": {"log": [1e-4, 1e-2]}}})
    with pytest.raises(
        BadInput, match="keys below methods.swd, students.swd, decompose.pyramid, and latents.resolutions"
    ):
        load("teacher")


def test_where_a_trial_does_not_have_a_setting_its_line_leaves_it_out(swept):
    details = "parts.wmgm-details"
    width = f"{details}.discriminator.width"
    off = {f"{details}.discriminator": None, f"{details}.loss.adversarial": 0.0, f"{details}.loss.draws": 1}
    spaces = [{width: {"grid": [8]}}, {key: {"grid": [value]} for key, value in off.items()}]
    swept("details", SEARCH | {"method": "wmgm", "space": spaces})
    plan = load("details")
    rows = [{"point": point, "state": "done", "metrics": {"kid": 0.1}} for point in plan.sweep.points]
    charts.parallel(plan, [width, *off], rows, Path("parallel.png"))
    assert Image.open("parallel.png").width > 300


def test_points_of_several_grids_are_tried_once_each(swept):
    steps, guidance_scale = "methods.dit.scales.0.steps", "methods.dit.scales.0.guidance_scale"
    swept(
        "grids",
        SEARCH | {"space": [{steps: {"grid": [1, 2]}}, {steps: {"grid": [2]}}, {guidance_scale: {"grid": [1.0, 2.0]}}]},
    )
    assert load("grids").sweep.points == [{steps: 1}, {steps: 2}, {guidance_scale: 1.0}, {guidance_scale: 2.0}]


def test_a_recipe_says_what_differs_and_no_more():
    base = {"a": {"b": 1, "c": [{"d": 2}]}, "e": {"f": 3}, "g": {"h": 4}, "i": {"kind": "one", "j": 5, "k": 6}}
    other = {"a": {"b": 1, "c": [{"d": 5}]}, "e": {"f": 3, "l": 6}, "g": None, "i": {"kind": "two", "j": 5}}
    changes = {"a": {"c": [{"d": 5}]}, "e": {"l": 6}, "g": None, "i": {"kind": "two", "j": 5}}
    assert outcome.difference(base, other) == changes


def won(plan: space.Plan, point: dict) -> Experiment:
    """The experiment of the recipe that a sweep leaves."""
    name = f"{plan.name}-best"
    Path("params/recipes", f"{name}.yaml").write_text(outcome.winner(plan, {"point": point, "metrics": {"kid": 0.1}}))
    return recipe.experiment_of(name)


def same(winner: Experiment, plan: space.Plan, point: dict) -> bool:
    """Whether a winner is the experiment with the values of a point, but for its name and how it runs."""
    given, tied = plan.changed(point), {"recipe", "run"}
    return winner.model_dump(exclude=tied) == given.model_dump(exclude=tied)


def test_a_sweep_of_its_own_winner_leaves_a_winner_again(swept):
    Path("params/recipes/other.yaml").write_text("extends: mine-best\n")
    for name in ("mine-best", "other"):
        swept("mine", SEARCH)
        first = load("mine")
        assert same(won(first, {LR: 3e-3}), first, {LR: 3e-3})
        recipe.switch(name, force=True)
        second = load("mine")
        assert second.experiment.recipe == name and second.experiment.parts["dit"].training.lr == 3e-3
        assert same(won(second, {DROPOUT: 0.3}), second, {DROPOUT: 0.3}), "the values of both sweeps"
    Path("params/recipes/mine-best.yaml").write_text(Path("params.yaml").read_text())
    recipe.switch("mine-best", force=True)
    third = load("mine")
    assert same(won(third, {LR: 1e-4}), third, {LR: 1e-4}), "a recipe of that name that stands on its own"


def test_a_winner_does_not_bring_back_methods_that_the_experiment_has_lost(swept):
    swept("mine", SEARCH)
    plan = load("mine")
    tree = plan.experiment.model_dump()
    del tree["methods"]["msf"], tree["parts"]["msf-0"], tree["parts"]["msf-1"]
    fewer = replace(plan, experiment=settings.validate(tree, plan.file))
    winner = won(fewer, {LR: 3e-3})
    assert "msf" not in winner.methods and same(winner, fewer, {LR: 3e-3})


def test_a_winner_of_repeated_trainings_changes_all_of_them(swept):
    swept("mine", SEARCH)
    Path("params/recipes/twice.yaml").write_text("extends: tiny\nonly: [dit, msf]\nseeds: 2\n")
    recipe.switch("twice", force=True)
    plan = load("mine")
    tree = plan.experiment.model_dump()
    for part in tree["parts"].values():
        part["training"]["beta2"] = 0.95
    edited = replace(plan, experiment=settings.validate(tree, plan.file))
    parts = won(edited, {LR: 3e-3}).parts
    assert parts["dit"].training == parts["dit-seed-1"].training and parts["dit"].training.lr == 3e-3
    assert {part.training.beta2 for part in parts.values()} == {0.95} and "msf-1-seed-1" in parts


def test_whole_numbers_stand_beside_others_in_the_table():
    rows = [{"state": "done", "point": {"a": a, "b": b}, "metrics": {}} for a, b in ((1, 1), (1.5, [2]), (None, 1.5))]
    found = outcome.frame(["a", "b"], rows)
    assert found["a"].to_list() == [1.0, 1.5, None] and found["b"].to_list() == ["1", "[2]", "1.5"]


def test_a_sweep_that_is_interrupted_says_so_and_names_no_winner(swept):
    project = swept("mine", SEARCH | {"trials": 50, "concurrency": 1, "settings": {"parts.dit.training.images": 16}})
    command = [sys.executable, "-m", "flows.sweeps", "mine"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as child:
        while not list(project.folder.glob(".scratch/sweeps/mine-*/records/*.json")):
            assert child.poll() is None
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=120)
    assert child.returncode == 130 and said.splitlines()[-1].startswith("interrupted; the next run resumes"), said
    assert not Path("reports/sweeps/mine").exists() and not Path("params/recipes/mine-best.yaml").exists()


def test_a_killed_sweep_goes_on_keeps_what_failed_and_leaves_a_winner_that_runs(swept):
    # One learning rate diverges: its trials fail, the others go on.
    axes = {LR: {"choice": [1e-3, 1e-2, 1e30]}, DROPOUT: {"uniform": [0, 0.5]}}
    project = swept("mine", SEARCH | {"trials": 5, "space": axes, "settings": {"parts.dit.training.images": 32}})
    command = [sys.executable, "-m", "flows.sweeps", "mine"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as child:
        while not (kept := sorted(Path(".scratch").glob("sweeps/mine-*/records/*.json"))):
            assert child.poll() is None
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    before = {path: path.read_bytes() for path in kept}
    done = project.run(*command[1:])
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in kept} == before, "finished trials are not run again"

    folder = Path("reports/sweeps/mine")
    rows = pl.read_parquet(folder / "trials.parquet")
    assert len(rows) == 5 and set(rows["state"]) <= {"done", "failed"}
    finished = rows.filter(pl.col("state") == "done")
    assert finished["kid"].to_list() == sorted(finished["kid"]) and finished["rank"].to_list() == list(
        range(1, len(finished) + 1)
    )
    assert {LR, DROPOUT, "fd", "seconds_per_image", "history"} <= set(rows.columns)
    history = finished["history"][0].struct
    assert history.field("images").to_list() == [16, 16, 32, 32], "a row of steps and one of held-out images at each"
    assert history.field("loss").is_null().to_list() == [False, True] * 2
    assert history.field("validation_loss").is_null().to_list() == [True, False] * 2
    failed = rows.filter(pl.col("state") == "failed")
    assert failed["error"].str.contains("Error: ").all()
    assert (folder / "trials.md").read_text() == done.stdout.rstrip("\n") + "\n"
    for name in ("settings", "parallel"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 300 and len(picture.convert("L").getcolors(256)) > 10

    assert recipe.experiment_of("mine-best").parts["dit"].training.lr == finished[LR][0]
    assert project.stage("recipe", "mine-best", "--force").returncode == 0
    assert settings.load().parts["dit"].label_dropout == pytest.approx(finished[DROPOUT][0])
    assert project.stage("train", "dit").returncode == 0


def test_a_sweep_in_the_dashboard_stops_trials_early_and_shows_its_table_and_pictures(swept, server):
    rates = [1e-5, 3e-3, 1e-2, 1e-1]
    sweep = {"trials": 4, "stop_early": True, "concurrency": 1, "space": {LR: {"choice": rates}}}
    training = {"images": 96, "log_images": 16, "warmup_images": 0}
    fixed = {f"parts.dit.training.{key}": value for key, value in training.items()}
    project = swept("early", SEARCH | sweep | {"budget": 1.0, "settings": fixed})
    done = project.run("-c", "from flows.sweeps.board import sweep; print(sweep('early', return_state=True).message)")
    assert "reports/sweeps/early/trials.md ranks the trials" in done.stdout, done.stdout + done.stderr
    rows = pl.read_parquet("reports/sweeps/early/trials.parquet")
    stopped = rows.filter(pl.col("state") == "stopped")
    assert 0 < len(stopped) < 4 and stopped["kid"].is_null().all()
    from prefect import get_client

    artifacts = {each.key: each for each in get_client(sync_client=True).read_artifacts() if "early" in each.key}
    assert artifacts["sweep-early"].data == 100
    assert "stopped" in artifacts["sweep-early-trials"].data
    assert artifacts["sweep-early-plots"].data.count("data:image/png") == 2


@pytest.fixture
def recorded():
    """Has DVC record what the stages have left, as if it had run them."""
    from dvc.repo import Repo

    def record(*addresses: str) -> None:
        with Repo() as repo:
            for address in addresses:
                repo.commit(address, force=True)

    return record


MSF = ("latents@24", "latents@32", "decompose@residual", "train@msf-0", "train@msf-1")


def edited(file: str) -> None:
    """One more line of code."""
    with open(file, "a") as opened:
        opened.write("EDITED = True\n")


def commented(file: str) -> None:
    """One more comment."""
    with open(file, "a") as opened:
        opened.write("# EDITED\n")


def test_settings_of_the_sampler_train_nothing_and_take_the_models_of_the_experiment(swept, recorded, monkeypatch):
    steps = "methods.msf.scales.1.steps"
    swept("steps", SEARCH | {"method": "msf", "space": {steps: {"grid": [1, 2]}}})
    recorded(*MSF)
    models = {path: path.stat().st_mtime_ns for path in Path("models").rglob("*")}
    plan, root = load("steps"), Path.cwd()
    pipeline = Pipeline.read(plan)
    for name in ("stages.common.fitting.work", "stages.latents.main", "stages.decompose.main"):
        monkeypatch.setattr(name, None)  # nothing is made anew
    found = [
        trial.run("msf", plan.trial(point), pipeline, root / ".scratch/sweeps/steps", lambda *row: None)
        for point in plan.sweep.points
    ]
    assert [result["metrics"]["network_calls"] for result in found] == [4 * 2 + 1, 4 * 2 + 2]
    assert {path: path.stat().st_mtime_ns for path in Path("models").rglob("*")} == models
    other = plan.trial(plan.sweep.points[0] | {"parts.msf-1.training.lr": 1e-5})
    with pytest.raises(TypeError, match="not callable"):  # it would train
        trial.run("msf", other, pipeline, root / ".scratch/sweeps/steps", lambda *row: None)


def test_a_result_of_the_pipeline_fits_while_its_code_its_inputs_and_itself_are_as_recorded(swept, recorded):
    swept("msf", SEARCH | {"method": "msf", "space": {"methods.msf.scales.1.steps": {"grid": [1]}}})
    recorded(*MSF)
    plan = load("msf")

    def fitting() -> set[str]:
        return {address for address, stage in Pipeline.read(plan).stages.items() if stage.current}

    assert fitting() == set(MSF)
    edited("multiscale/methods/ssd/parts.py")
    edited("flows/sweeps/search.py")
    commented("multiscale/flow.py")
    assert fitting() == set(MSF), "code of another method, code that orders, a comment"
    model = Path("models/msf/msf-1/model.safetensors")
    before = model.read_bytes()
    model.write_bytes(before + b" ")
    assert fitting() == set(MSF) - {"train@msf-1"}, "another result"
    model.write_bytes(before)
    edited("multiscale/flow.py")
    assert fitting() == {"latents@24", "latents@32", "decompose@residual"}, "another loss"
    Path("data/latents/24/statistics.json").write_text("{}")
    assert fitting() == {"latents@32"}, "other inputs"


def test_a_flow_runs_what_an_edit_makes_stale_though_the_lists_of_code_are_older(swept, recorded):
    swept("msf", SEARCH)
    recorded("code", "download", "vae", "latents@32")

    def stale() -> set[str]:
        return {stage.address for stage in graph.plan(["latents@32"]) if not stage.current}

    assert stale() == set()
    commented("stages/latents.py")
    assert stale() == {"code"}
    edited("stages/latents.py")
    assert stale() == {"code", "latents@32"}


@pytest.fixture
def unmeasured(monkeypatch):
    """Trials that end with their trainings: nothing is sampled."""

    def measured(params: Experiment, method: str) -> None:
        write_sealed_json(paths.MEASUREMENTS / f"{method}.json", {"protocol": {}})
        write_json(paths.SAMPLES / method / paths.COSTS.name, {})

    monkeypatch.setattr("stages.sample.main", measured)
    monkeypatch.setattr("stages.evaluate.main", measured)
    monkeypatch.setattr("stages.timing.measure", lambda methods, params: {"methods": {name: {} for name in methods}})


def made_in(scratch: Path) -> dict[str, int]:
    """How many of each thing that trials share lie there."""
    names = [path.name.rpartition("-")[0] for path in (scratch / "made").iterdir() if path.is_dir()]
    return {name: names.count(name) for name in sorted(set(names))}


def test_where_a_trial_encodes_anew_it_takes_nothing_that_came_of_the_old_latents(swept, recorded, unmeasured):
    swept("msf", SEARCH | {"method": "msf", "space": {"methods.msf.scales.1.steps": {"grid": [1]}}})
    recorded(*MSF)
    edited("multiscale/networks/autoencoder.py")  # code of the latents alone
    plan, root = load("msf"), Path.cwd()
    pipeline = Pipeline.read(plan)
    current = {address for address, stage in pipeline.stages.items() if stage.current}
    assert current == set(MSF) - {"latents@24", "latents@32"}
    trial.run("msf", plan.trial({}), pipeline, root / ".scratch/sweeps/msf", lambda *row: None)
    assert made_in(root / ".scratch/sweeps/msf") == dict.fromkeys(["24", "32", "msf-0", "msf-1", "residual"], 1)


def test_trials_that_share_a_part_are_compared_at_the_same_images(swept, unmeasured):
    rate = "parts.msf-1.training.lr"
    swept("shared", SEARCH | {"method": "msf", "stop_early": True, "space": {rate: {"log": [1e-4, 1e-2]}}})
    plan, root = load("shared"), Path.cwd()
    pipeline = Pipeline.read(plan)

    def run(value: float) -> list[tuple[int, dict]]:
        rows: list[tuple[int, dict]] = []
        params = plan.trial({rate: value})
        trial.run("msf", params, pipeline, root / ".scratch/sweeps/shared", lambda *row: rows.append(row))
        return rows

    first, second = run(1e-3), run(2e-3)
    assert [(before, row["images"]) for before, row in first] == [(before, row["images"]) for before, row in second]
    assert [row for before, row in first if not before] == [row for before, row in second if not before] != []
    losses = [[row.get("validation_loss") for before, row in rows if before] for rows in (first, second)]
    assert losses[0] != losses[1]


def test_points_that_are_the_same_experiment_do_not_work_in_one_folder_at_once(swept, unmeasured, monkeypatch):
    swept("mine", SEARCH)
    plan, root, held = load("mine"), Path.cwd(), []

    def timed(methods: list[str], params: Experiment) -> dict:
        with pytest.raises(Timeout):
            FileLock(Path.cwd().with_suffix(".lock"), timeout=0).acquire()
        held.append(Path.cwd())
        return {"methods": {name: {} for name in methods}}

    monkeypatch.setattr("stages.timing.measure", timed)
    for point in ({DROPOUT: plan.experiment.parts["dit"].label_dropout}, {}):
        trial.run("dit", plan.trial(point), Pipeline.read(plan), root / ".scratch/sweeps/mine", lambda *row: None)
    assert held[0] == held[1] and not held[0].exists()


def test_a_trial_of_other_code_finds_nothing_of_before(swept, unmeasured):
    """Of the records of a sweep, and of what its trials share."""
    swept("mine", SEARCH)
    plan, root = load("mine"), Path.cwd()
    pipeline, params = Pipeline.read(plan), plan.trial({LR: 0.01})
    for file in (
        "multiscale/methods/ssd/parts.py",
        "flows/sweeps/search.py",
        "stages/common/cluster.py",
    ):
        edited(file)
    assert Pipeline.read(plan).key == pipeline.key, "code of another method, code that orders, code that spreads"
    found = [pipeline.key]
    for file in ("multiscale/flow.py", "stages/evaluate.py", "data/reference/reference.json"):
        edited(file)
        found.append(Pipeline.read(plan).key)
    assert len(set(found)) == 4

    def made() -> dict[str, int]:
        trial.run("dit", params, pipeline, root / ".scratch/sweeps/mine", lambda *row: None)
        return made_in(root / ".scratch/sweeps/mine")

    assert made() == made() == {"32": 1, "full": 1, "dit": 1}
    edited("multiscale/flow.py")
    assert made() == {"32": 1, "full": 1, "dit": 2}
    edited("stages/decompose.py")
    assert made() == {"32": 1, "full": 2, "dit": 2}, "equal data train equal networks"
    edited("multiscale/networks/autoencoder.py")
    assert made() == {"32": 2, "full": 2, "dit": 2}


def test_a_decomposition_is_swept_with_the_latents_that_it_needs(swept, monkeypatch):
    resolutions = "decompose.residual.resolutions"
    sweep = {
        "method": "msf",
        "settings": {"latents.resolutions": [8, 16, 24, 32]},
        "space": {resolutions: {"grid": [[8, 32], [24, 32]]}},
    }
    swept("ratio", SEARCH | sweep)
    plan, root = load("ratio"), Path.cwd()
    scratch, pipeline = root / ".scratch/sweeps/ratio", Pipeline.read(plan)
    assert "latents@8" not in pipeline.stages
    params = plan.trial({resolutions: [8, 32]})
    first = trial.run("msf", params, pipeline, scratch, lambda *row: None)
    monkeypatch.setattr("stages.common.fitting.work", None)  # nothing trains again
    again = trial.run("msf", params, pipeline, scratch, lambda *row: None)
    assert first["metrics"]["kid"] == again["metrics"]["kid"]
    assert [row["part"] for row in first["history"] if row["loss"]] == ["msf-0", "msf-1"]
    made = {path.name.rpartition("-")[0] for path in (scratch / "made").iterdir() if path.is_dir()}
    assert made == {"8", "32", "residual", "msf-0", "msf-1"}


def test_the_space_is_told_in_the_words_of_the_file():
    assert all(f"{kind}" in space.__doc__ for kind in space.KINDS)
