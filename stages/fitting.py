"""Trains a part through Ray Train: inside this process by default, data-parallel over `run.workers` processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from multiscale.core.device import default_device, describe, peak_memory_bytes, resolve_precision, set_threads
from multiscale.core.storage import atomic_folder, write_json
from multiscale.training.checkpoint import Checkpoints, digest_files
from multiscale.training.loop import Result, Training, fit
from multiscale.training.part import Part
from stages.common.harness import progress
from stages.common.paths import SCRATCH, TIMINGS
from stages.common.settings import BadInput

Save = Callable[[Path, Part, dict], None]  # (folder, part holding the averaged weights, its config)


def save_weights(folder: Path, part: Part, config: dict) -> None:
    """The default form of a result: the averaged weights and the config that rebuilds the network."""
    save_file(part.players[part.main].state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(
    name: str,
    build: Callable[[], tuple[Part, dict]],
    section: BaseModel,
    training: BaseModel,
    seed: int,
    inputs: list[Path],
    out: Path,
    workers: int,
    save: Save = save_weights,
) -> None:
    """Trains what `build` makes and leaves weights, config and history in `out`, the timing in reports/timing.

    `section` and the contents of `inputs` are the key under which an interrupted run is resumed.
    """
    job = {
        "name": name,
        "build": build,
        "training": Training(**training.model_dump()),
        "seed": seed,
        "key": _key(section, training, seed, inputs),
        "out": Path(out).absolute(),
        "root": Path.cwd(),
        "save": save,
        "workers": max(1, workers),
    }
    if workers:
        _connect(workers)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    run = f"{name}-{uuid.uuid4().hex[:8]}"  # a name seen before would mean to Ray: restore that run
    storage = Path(SCRATCH, "ray").absolute()
    trainer = TorchTrainer(
        _worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(workers) and torch.cuda.is_available(),
        ),
        run_config=RunConfig(name=run, storage_path=str(storage)),
    )
    try:
        trainer.fit()
    except Exception as error:
        causes = getattr(error, "worker_failures", None)  # Ray wraps what a worker raised
        cause = getattr(next(iter(causes.values())), "_base_exc", error) if causes else error
        raise cause from None
    finally:
        shutil.rmtree(storage / run, ignore_errors=True)


def _connect(workers: int) -> None:
    """Joins the cluster at RAY_ADDRESS, or starts one here that asks for a token and has no dashboard."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # both are read when Ray is first imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    before = os.umask(0o077)  # Ray writes its token with the default mask
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={
                "env_vars": {
                    # Workers import this checkout, not an installed copy, and share the cores.
                    "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
                    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)),
                }
            },
        )
    except ConnectionError as error:
        first = str(error).splitlines()[0]
        raise BadInput(
            f"RAY_ADDRESS: {os.environ.get('RAY_ADDRESS')!r}: {first}; allowed: a cluster that runs"
        ) from None
    finally:
        os.umask(before)


def _worker(job: dict[str, Any]) -> None:
    """The training function of each worker; rank 0 writes the result."""
    os.chdir(job["root"])
    set_threads()
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.manual_seed(job["seed"])  # initial weights; every later draw is addressed, not drawn in turn
    part, config = job["build"]()
    training: Training = job["training"]
    checkpoints = Checkpoints(Path(SCRATCH, "checkpoints"), job["name"], job["key"])
    with progress(f"train {job['name']}", training.images) as reach:
        result = fit(part, training, job["seed"], checkpoints, on_step=reach if rank == 0 else lambda seen: None)
    if rank == 0:
        _write(job, part, config, result)
        checkpoints.clear()


def _write(job: dict[str, Any], part: Part, config: dict, result: Result) -> None:
    net = part.players[part.main]
    net.load_state_dict(result.weights)
    examined = part.examine()
    net.to("cpu", memory_format=torch.contiguous_format)
    with atomic_folder(job["out"]) as folder:
        job["save"](folder, part, config)
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result.history))
        if examined:
            write_json(folder / "examined.json", examined)
    device = default_device()
    write_json(
        TIMINGS / f"{job['name']}.json",
        {
            "train_seconds": round(result.seconds, 2),
            "images_per_second": round(job["training"].images / max(result.seconds, 1e-9), 1),
            "parameters": sum(p.numel() for p in net.parameters()),
            "peak_memory_bytes": peak_memory_bytes(device),
            "workers": job["workers"],
            "precision": resolve_precision(job["training"].precision, device),
            "device": describe(device),
        },
    )


def _key(section: BaseModel, training: BaseModel, seed: int, inputs: list[Path]) -> str:
    """Everything that decides the weights: settings, seed, contents of inputs, code and torch's version."""
    for path in inputs:
        if not path.exists():
            raise BadInput(f"{path}: the file is missing; allowed: the output of an earlier stage (dvc repro makes it)")
    code = sorted(
        Path(module.__file__)
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "multiscale" and getattr(module, "__file__", None)
    )
    resolved = {
        "section": section.model_dump(exclude={"training"}),
        "training": training.model_dump(exclude={"checkpoint_seconds"}),
        "precision": resolve_precision(training.precision, default_device()),
        "seed": seed,
        "inputs": digest_files(inputs),
        "code": hashlib.sha256(digest_files(code).encode()).hexdigest(),
        "torch": torch.__version__,
    }
    return json.dumps(resolved, sort_keys=True)
