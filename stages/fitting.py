"""Trains a part: inside this process by default, over `run.workers` processes of Ray Train otherwise."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from multiscale.core.device import default_device, describe, peak_memory_bytes, resolve_precision
from multiscale.core.storage import atomic_folder, write_json
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import Result, Training, fit
from multiscale.training.part import Part
from stages import cluster
from stages.common import keys
from stages.common.harness import progress
from stages.common.paths import SCRATCH, TIMINGS
from stages.schema import Run

Save = Callable[[Path, Part, dict], None]  # (folder, part holding the averaged weights, its config)


def save_weights(folder: Path, part: Part, config: dict) -> None:
    """The default form of a result: the averaged weights and the config that rebuilds the network."""
    save_file(part.players[part.main].state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@dataclass(frozen=True)
class Job:
    """One training: what it takes to run it anywhere, or to go on with it."""

    name: str
    build: Callable[[], tuple[Part, dict]]
    training: Training
    seed: int
    key: str  # under which an interrupted run is resumed
    out: Path
    save: Save = save_weights
    root: Path = field(default_factory=Path.cwd)


def job(
    name: str,
    build: Callable[[], tuple[Part, dict]],
    section: BaseModel,
    training: BaseModel,
    seed: int,
    inputs: list[Path],
    out: Path,
    save: Save = save_weights,
    code: Iterable[Path] | None = None,
) -> Job:
    """The training of what `build` makes, into `out`.

    Its key holds the settings, the contents of `inputs` and the files of `code`, by default what this process has
    loaded.
    """
    settings = {
        "section": section.model_dump(exclude={"training"}),
        "training": training.model_dump(exclude={"checkpoint_seconds"}),
        "precision": resolve_precision(training.precision, default_device()),
        "seed": seed,
    }
    key = keys.key(settings, inputs, keys.loaded() if code is None else code)
    return Job(name, build, Training(**training.model_dump()), seed, key, Path(out).absolute(), save)


def train(job: Job, run: Run) -> None:
    """Leaves weights, config and history in `job.out`, the timing in reports/timing."""
    title, images = f"train {job.name}", job.training.images
    if run.workers:
        cluster.train(title, run, images, _worker, {"job": job, "parallel": run.parallel, "threads": run.threads})
    else:
        with progress(title, images) as reach:
            work(job, on_step=reach)


def _worker(config: dict) -> None:
    """The training function of each Ray worker."""
    os.chdir(config["job"].root)
    torch.set_num_threads(config["threads"])
    work(config["job"], on_step=cluster.reporter(config["meter"]), parallel=config["parallel"])


def work(
    job: Job,
    on_step: Callable[[int], None],
    on_row: Sequence[Callable[[dict[str, float]], None]] = (),
    parallel: str = "ddp",
) -> None:
    """Trains in this process, alone or as one of the workers of a process group; the first writes the result."""
    torch.manual_seed(job.seed)  # initial weights; every later draw is addressed, not drawn in turn
    part, config = job.build()
    bare = copy.deepcopy(part.players[part.main])  # training may spread the other over the workers
    checkpoints = Checkpoints(Path(SCRATCH, "checkpoints"), job.name, job.key)
    result = fit(part, job.training, job.seed, checkpoints, on_row, on_step, parallel)
    group = torch.distributed.is_initialized()
    if not group or torch.distributed.get_rank() == 0:
        bare.load_state_dict(result.weights)
        part.players[part.main] = bare
        _write(job, part, config, result, torch.distributed.get_world_size() if group else 1)
        checkpoints.clear()


def _write(job: Job, part: Part, config: dict, result: Result, workers: int) -> None:
    net, device = part.players[part.main], default_device()
    net.to(device)
    examined = part.examine()
    net.to("cpu")
    with atomic_folder(job.out) as folder:
        job.save(folder, part, config)
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result.history))
        if examined:
            write_json(folder / "examined.json", examined)
    write_json(
        TIMINGS / f"{job.name}.json",
        {
            "train_seconds": round(result.seconds, 2),
            "images_per_second": round(job.training.images / max(result.seconds, 1e-9), 1),
            "parameters": sum(p.numel() for p in net.parameters()),
            "peak_memory_bytes": peak_memory_bytes(device),
            "workers": workers,
            "precision": resolve_precision(job.training.precision, device),
            "device": describe(device),
        },
    )
