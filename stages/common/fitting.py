"""Trains a part, in this process or on `run.workers` processes of Ray Train."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from multiscale.core.device import default_device, describe, peak_memory_bytes, resolve_precision
from multiscale.core.memory import keep_freed_memory
from multiscale.core.settings import Bad
from multiscale.core.storage import Table, check_place, sealed_folder, write_json
from multiscale.training import memory, operations
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import Result, fit
from multiscale.training.parallel import first_worker
from multiscale.training.part import Part, Training
from stages.common import cluster, codec, keys, previews, texts, timings, trackers
from stages.common.errors import refuse
from stages.common.harness import progress
from stages.common.paths import DECOMPOSED, EXPERIMENT, HELD_OUT, MODELS, SCRATCH
from stages.schema import Experiment
from stages.schema import Part as PartSection
from stages.schema.data import Classifier, Run, TrainedVAE
from stages.schema.prompts import TrainedEncoder

TrainedSection = PartSection | TrainedVAE | TrainedEncoder | Classifier


@dataclass(frozen=True)
class Job:
    """A training, complete enough to run on any worker and to resume."""

    name: str
    build: Callable[[], Part]
    training: Training
    seed: int
    key: str  # of its checkpoints
    out: Path
    decomposition: Path | None = None  # whose autoencoder is copied to the model
    root: Path = field(default_factory=Path.cwd)


def job(
    name: str,
    build: Callable[[], Part],
    section: TrainedSection,
    seed: int,
    inputs: list[Path],
    out: Path,
    code: str,
    decomposition: Path | None = None,
) -> Job:
    """The training of the part that `build` returns, into `out`; `section` holds its settings.

    The key covers the settings, the contents of `inputs`, and the code: `code` names its list in `stages.code`.
    """
    training = section.training
    settings = {
        "section": section.model_dump(exclude={"training"}),
        "training": training.model_dump(),
        "precision": resolve_precision(training.precision, default_device()),
        "seed": seed,
    }
    key = keys.key(settings, inputs, [code])
    return Job(name, build, training, seed, key, Path(out).absolute(), decomposition)


def part_job(
    name: str,
    build: Callable[[], Part],
    section: PartSection,
    params: Experiment,
    inputs: list[Path],
    code: str,
) -> Job:
    """The training of a part or student of the experiment, into models/METHOD/NAME."""
    seed = params.seed if section.seed is None else section.seed
    out, decomposition = MODELS / section.method / name, DECOMPOSED / section.dataset
    return job(name, build, section, seed, inputs, out, code, decomposition)


def train(job: Job, run: Run) -> None:
    """Trains, and writes weights, config and history into `job.out` and the timing into reports/timing."""
    check_place(Path(os.path.relpath(job.out)), folder=True)
    timings.check_place(job.name)
    title, images = f"train {job.name}", job.training.images
    if run.workers:
        cluster.train(title, run, images, _worker, {"job": job, "run": run})
    else:
        with progress(title, images, resumes=True) as reach:
            work(job, run, on_step=reach)


def _worker(config: dict[str, Any]) -> None:
    """The training function of each Ray worker."""
    job, run = config["job"], config["run"]
    os.chdir(job.root)
    torch.set_num_threads(run.threads)
    keep_freed_memory()
    work(job, run, on_step=cluster.reporter(config["meter"]))


def work(
    job: Job,
    run: Run,
    on_step: Callable[[int], None],
    on_row: Sequence[Callable[[dict[str, float]], None]] = (),
    counted: bool = True,
) -> None:
    """Trains in this process, alone or as a worker of a process group; the first worker writes the result.

    counted: whether its operations are counted, for the timing.
    """
    torch.manual_seed(job.seed)  # decides the initial weights; later draws come from named streams
    part = job.build()
    if job.decomposition and (held_out := job.decomposition / HELD_OUT).exists():
        part.held_out = Table.open(held_out, *cast(Table, part.data).arrays)
    # An unsharded copy for the result, off the device.
    bare = copy.deepcopy(part.networks[part.main]) if first_worker() else None
    checkpoints = Checkpoints(Path(SCRATCH, "checkpoints"), job.name, f"{job.key} {run.randomness}")
    try:
        _check_memory(job, part, run)
        flops = _flops_per_image(job, part) if counted else None
        observe = previews.observer(part, job.training, job.decomposition, run.previews)
        with trackers.tracking(run.tracker, job.name, job.key) as told:
            result = fit(
                part,
                job.training,
                job.seed,
                checkpoints,
                on_row=[*on_row, *told],
                on_step=on_step,
                parallel=run.parallel,
                checkpoint_seconds=run.checkpoint_seconds,
                observe=observe,
                randomness=run.randomness,
            )
    except Bad as error:
        raise refuse(EXPERIMENT, error.key, error.value, error.allowed) from None
    if bare is not None:
        bare.load_state_dict(result.weights)
        part.networks[part.main] = bare
        group = torch.distributed.is_initialized()
        _write(job, part, result, torch.distributed.get_world_size() if group else 1, flops)
        checkpoints.clear()


def _check_memory(job: Job, part: Part, run: Run) -> None:
    device, workers = default_device(), max(1, run.workers)
    free = memory.free(device, [*part.networks.values(), *part.frozen.values()])
    needed = memory.need(part, job.training, device, workers, run.parallel == "fsdp" and workers > 1)
    memory.check(needed, part, job.training, free)


def _flops_per_image(job: Job, part: Part) -> float | None:
    """What an image costs in training; None for what is no row's, and on several workers, which may shard networks."""
    if job.decomposition is None or torch.distributed.is_initialized():
        return None
    device = default_device()
    return operations.flops_per_image(part, resolve_precision(job.training.precision, device), device)


def _write(job: Job, part: Part, result: Result, workers: int, flops: float | None) -> None:
    net, device = part.networks[part.main], default_device()
    net.to(device)
    examined = part.examine()
    net.to("cpu")
    with sealed_folder(job.out) as folder:
        part.save(folder)
        if job.decomposition:
            codec.carry(job.decomposition, folder)
            texts.carry(job.decomposition, folder)
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result.history))
        if examined:
            write_json(folder / "examined.json", examined)
    timings.write(
        job.name,
        job.out / "history.jsonl",
        {
            "train_seconds": round(result.seconds, 2),
            "images_per_second": round(job.training.images / max(result.seconds, 1e-9), 1),
            "parameters": sum(p.numel() for p in net.parameters()),
            "peak_memory_bytes": peak_memory_bytes(device),
            "flops": None if flops is None else flops * result.history[-1]["images"],
            "workers": workers,
            "precision": resolve_precision(job.training.precision, device),
            "device": describe(device),
        },
    )
