"""Runs a sweep with Ray Tune: Optuna or a grid proposes, ASHA stops what falls behind, every trial is recorded.

A killed sweep goes on from its records in .scratch/sweeps: finished trials are not run again, and Optuna learns from
them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flows import inputs
from flows.cluster import connect
from flows.sweeps import outcome, trial
from flows.sweeps.space import Plan, Point, load
from flows.sweeps.trial import Pipeline, Records
from stages.common import cluster, images
from stages.common.errors import one_line, refuse
from stages.common.harness import progress
from stages.common.paths import SCRATCH

LOSS = "validation_loss"  # what trials are compared by, until they sample
OnTrial = Callable[[list[dict[str, Any]], int], None]  # (records so far, how many there will be)


@inputs.alone()  # trials link to the results that stand here
def run(name: str, on_trial: OnTrial = lambda records, total: None) -> Path:
    """Runs what is left of a sweep and writes reports/sweeps/NAME and the winner's recipe. Gives the table's path."""
    plan = load(name)
    pipeline = Pipeline.read(plan)
    if plan.sweep.stop_early and not images.count("validation"):
        raise refuse(plan.file, "stop_early", True, "false, as the data has no validation split: see validation_share")
    scratch = Path(SCRATCH, "sweeps", f"{name}-{pipeline.key}").absolute()
    records = Records(scratch / "records")
    records.forget_damaged()
    total = plan.sweep.count
    with progress(f"sweep {name}", total, "trial") as reach:

        def tell() -> None:
            found = records.all()
            reach(len(found))
            on_trial(found, total)

        tell()
        if len(records.all()) < total:
            _search(plan, pipeline, scratch, records, tell)
            total = len(records.all())  # fewer where a setting with few values was proposed twice
            tell()
    return outcome.write(plan, records.all())


def _search(plan: Plan, pipeline: Pipeline, scratch: Path, records: Records, tell: Callable[[], None]) -> None:
    """Runs the trials that have no record yet."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # only the last report holds the objective
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end the search as if all trials had been run
    one = plan.experiment.run.model_copy(update={"workers": 1})
    connect(one)
    from ray import tune

    asked = cluster.request(one)
    space, options = _grid(plan, records) if plan.sweep.points else _searched(plan, records)
    if plan.sweep.stop_early:
        options["scheduler"] = _stopping(plan)
    trainable = partial(_trial, plan=plan, pipeline=pipeline, scratch=scratch)
    run_config = tune.RunConfig(
        storage_path=str(scratch / "tune"), verbose=0, callbacks=[_watcher(plan, records, tell)]
    )
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": asked["CPU"], "gpu": asked["GPU"]}),
        param_space=space,
        tune_config=tune.TuneConfig(max_concurrent_trials=plan.sweep.concurrency, **options),
        run_config=run_config,
    ).fit()


def _grid(plan: Plan, records: Records) -> tuple[dict[str, Any], dict[str, Any]]:
    from ray import tune

    left = [index for index, point in enumerate(plan.sweep.points) if not records.path(point).exists()]
    return {"index": tune.grid_search(left)}, {}


def _searched(plan: Plan, records: Records) -> tuple[dict[str, Any], dict[str, Any]]:
    """Optuna's search, told of the trials that are done."""
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Search(OptunaSearch):
        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """Reports on the way hold the validation loss, not the objective."""

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep, found = plan.sweep, records.all()
    domains = {
        "log": tune.loguniform,
        "uniform": tune.uniform,
        "int": lambda low, high: tune.randint(low, high + 1),
        "choice": lambda *values: tune.choice(range(len(values))),  # Optuna takes no lists
    }
    (axes,) = sweep.spaces
    done = [record for record in found if record["state"] == "done"]
    search = Search(
        Search.convert_search_space({key: domains[axis.kind](*axis.values) for key, axis in axes.items()}),
        metric="objective",
        mode=sweep.mode,
        points_to_evaluate=[record["config"] for record in done],
        evaluated_rewards=[record["metrics"][sweep.metric] for record in done],
        seed=sweep.seed + len(found),  # the seed of before would propose the same again
    )
    return {}, {"search_alg": search, "num_samples": sweep.trials - len(found)}


def _stopping(plan: Plan) -> Any:
    """ASHA on the images seen."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        time_attr="images",
        metric=LOSS,
        mode="min",
        grace_period=max(1, plan.images // 6),  # rungs at a sixth and at half of the images
        reduction_factor=3,
        max_t=2 * plan.images,  # at plan.images it would end a trial before its samples
    )


def _point(config: dict[str, Any], plan: Plan) -> Point:
    """The settings that Tune's config stands for."""
    if "index" in config:
        return plan.sweep.points[config["index"]]
    (axes,) = plan.sweep.spaces
    return {key: axes[key].values[v] if axes[key].kind == "choice" else v for key, v in config.items()}


def _trial(config: dict[str, Any], plan: Plan, pipeline: Pipeline, scratch: Path) -> None:
    """The trainable: runs a trial and records it, also where it fails; of a point with a record it tells that."""
    from ray import tune

    os.chdir(pipeline.folder)
    point, records, started = _point(config, plan), Records(scratch / "records"), time.monotonic()

    if known := records.of(point):  # of few values Optuna proposes some again
        # Without a number in it Ray would print a line.
        tune.report({"images": 0, "objective": known.get("metrics", {}).get(plan.sweep.metric)})
        return

    def on_row(before: int, row: dict[str, float]) -> None:
        if LOSS in row:
            tune.report({"images": before + row["images"], LOSS: row[LOSS]})

    try:
        found = trial.run(plan.sweep.method, plan.trial(point), pipeline, scratch, on_row)
        value = found["metrics"].get(plan.sweep.metric)
        if value is None or not math.isfinite(value):  # a dataset without classes has no label accuracy
            raise ArithmeticError(f"the {plan.sweep.metric} of the samples is {value}")
    except Exception as error:
        line = one_line(f"{type(error).__name__}: {error}")
        records.add(point, "failed", error=line, seconds=time.monotonic() - started)
        raise
    records.add(point, "done", config=config, **found, seconds=time.monotonic() - started)
    tune.report({"objective": value})


def _watcher(plan: Plan, records: Records, tell: Callable[[], None]) -> Any:
    """Records the trials that could not record themselves, and tells of each that has ended."""
    from ray import tune

    class Watcher(tune.Callback):
        def __reduce__(self) -> tuple[Any, ...]:
            """Tune stores its callbacks for a restore that is not used here; `tell` cannot be stored."""
            return tune.Callback, ()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            last = trial.last_result or {}
            row = {"part": "", "images": last.get("images"), LOSS: last.get(LOSS)}
            records.add(_point(trial.config, plan), "stopped", history=[row], seconds=last.get("time_total_s"))
            tell()

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            records.add(_point(trial.config, plan), "failed", error="its process was lost", seconds=None)
            tell()

    return Watcher()
