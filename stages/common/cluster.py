"""Spreads the work of a stage over the workers of a Ray cluster, which it joins or starts.

This decides no result: results come back in the order of the items, and a lost worker is replaced.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from multiscale.core.memory import keep_freed_memory
from multiscale.core.temporary import remove_left, temporary_name
from multiscale.training.parallel import first_worker
from stages.common.errors import BadInput, one_line, refuse
from stages.common.harness import progress
from stages.common.paths import EXPERIMENT, SCRATCH
from stages.schema.data import Run

REPLACEMENTS = 3  # of lost workers, before the stage fails
TIMEOUT = 5.0  # seconds for a cluster to answer


def connect(run: Run) -> None:
    """Joins the cluster at RAY_ADDRESS, or starts one here: it asks for a token, and nothing of it listens to others.

    Raises BadInput where none answers, or where it could never hold the workers that `run` asks for.
    """
    address = os.environ.get("RAY_ADDRESS")
    if run.interface and run.interface not in (names := [name for _, name in socket.if_nameindex()]):
        raise refuse(EXPERIMENT, "run.interface", run.interface, f"null, or one of {', '.join(names)}")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # these are read when Ray is first imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else a stage would wait for all other programs, with Ray alone
    if not address:  # as Ray does by itself on systems whose firewall asks: it takes 127.0.0.1 for its node's address
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    _probe(address)
    import ray

    if not ray.is_initialized():
        before = os.umask(0o077)  # Ray writes its token with the default mask
        try:
            ray.init(
                address=address or "local",  # not one that was started here before, which may be gone
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={
                    "env_vars": {
                        # Workers import this checkout, not an installed copy, and use the cores that they asked for.
                        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
                        "OMP_NUM_THREADS": str(run.threads),
                        "OPENBLAS_NUM_THREADS": "1",  # as in stages, and so the next
                        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
                        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # or who asks for no GPU would see all, and take one
                    }
                },
            )
        except Exception as error:  # of no class of its own where a busy machine takes more than Ray's 30 seconds
            raise _unreachable(address, error) from None
        finally:
            os.umask(before)
    _check_resources(run, ray.cluster_resources())


def _probe(address: str | None) -> None:
    """Ray itself waits two minutes for an address where nothing listens."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except OSError as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str | None, error: Exception) -> BadInput:
    first = one_line(error)[:200]
    if not address:
        allowed = "another try where the machine is busy, 0, or a RAY_ADDRESS"
        return BadInput(f"{EXPERIMENT}: run.workers: Ray cannot start here: {first}; allowed: {allowed}")
    return BadInput(f"RAY_ADDRESS: {address!r}: {first}; allowed: HOST:PORT of a cluster that runs and knows the token")


def _check_resources(run: Run, offered: dict[str, float]) -> None:
    """Raises BadInput where Ray would wait for ever, without a word."""
    for key, kind in (("threads", "CPU"), ("gpus", "GPU")):
        asked, there = request(run)[kind], offered.get(kind, 0)
        if asked * run.workers > there:
            each = f"{asked:g} {kind} each, of the {there:g} that the cluster has"
            raise refuse(EXPERIMENT, "run.workers", run.workers, f"fewer, or another run.{key}: they ask for {each}")


def request(run: Run) -> dict[str, float]:
    """What one worker asks for. `gpus: null` is one GPU wherever the cluster has any."""
    import ray

    gpus = min(1.0, ray.cluster_resources().get("GPU", 0)) if run.gpus is None else run.gpus
    return {"CPU": run.threads, "GPU": gpus}


def _say_that_it_waits(title: str, run: Run) -> None:
    asked = ", ".join(f"{amount:g} {kind}" for kind, amount in request(run).items() if amount)
    print(f"{title}: waiting for {run.workers} workers of {asked} each: the cluster is in use", file=sys.stderr)


# --- work on independent items


class Pool:
    """Copies of one object, in this process alone (`run.workers: 0`) or on the workers of a cluster."""

    def __init__(self, make: Callable[[], Any], actors: list[Any] | None = None):
        self.actors = actors
        self.object = make() if actors is None else None

    def map(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """object.method(*item) of each item, in the order of the items, whoever finishes first."""
        if self.actors is None:
            yield from (getattr(self.object, method)(*item) for item in items)
            return
        from ray.exceptions import RayTaskError
        from ray.util import ActorPool

        pool = ActorPool(self.actors)
        try:
            for item in items:
                if not pool.has_free():
                    yield pool.get_next()
                pool.submit(lambda actor, item: actor.call.remote(method, item), item)
            while pool.has_next():
                yield pool.get_next()
        except RayTaskError as error:
            raise error.cause from None


class _Remote:
    """The object of a pool on one worker, in the folder of the stage."""

    def __init__(self, folder: Path, threads: int, make: Callable[[], Any]):
        os.chdir(folder)
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.make, self.object = make, None

    def call(self, method: str, item: tuple[Any, ...]) -> Any:
        self.object = self.object or self.make()  # not earlier: only a call can raise in the stage
        return getattr(self.object, method)(*item)


@contextmanager
def pool(title: str, run: Run, make: Callable[[], Any]) -> Iterator[Pool]:
    """A pool of `run.workers` copies of make(). It gets all of them at once, or waits its turn and says so."""
    if not run.workers:
        yield Pool(make)
        return
    connect(run)
    import ray
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    asked = request(run)
    group = placement_group([asked] * run.workers)
    try:
        if not group.wait(1):
            _say_that_it_waits(title, run)
            ray.get(group.ready())
        remote = ray.remote(_Remote).options(
            num_cpus=asked["CPU"],
            num_gpus=asked["GPU"],
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
            max_restarts=REPLACEMENTS,
            max_task_retries=REPLACEMENTS,
        )
        yield Pool(make, [remote.remote(Path.cwd(), run.threads, make) for _ in range(run.workers)])
    finally:
        remove_placement_group(group)


# --- data-parallel training


class Meter:
    """The training images that the first worker has seen; the stage draws its bar from them."""

    def __init__(self) -> None:
        self.seen: int | None = None  # until it has begun

    def reach(self, seen: int) -> None:
        self.seen = seen

    def read(self) -> int | None:
        return self.seen


def train(title: str, run: Run, total: int, function: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    """Runs function(config) on `run.workers` workers of Ray Train, which form one process group.

    When a worker is lost, the group starts again, and the function goes on from its own checkpoint. What the function
    raises is raised here and not tried again. Its config also holds `meter`, for `reporter`.
    """
    connect(run)
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from stages.common import rendezvous

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # its failures are raised or printed below
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    meter = ray.remote(Meter).options(num_cpus=0, scheduling_strategy=here).remote()
    asked = request(run)
    scaling = ScalingConfig(num_workers=run.workers, use_gpu=bool(asked["GPU"]), resources_per_worker=asked)
    storage = Path(SCRATCH, "ray").absolute()
    remove_left(storage)
    for attempt in range(REPLACEMENTS + 1):
        name = temporary_name(uuid.uuid4().hex)  # with a name that it knows, Ray would restore that run
        try:
            if not attempt and not _is_free(run, ray.available_resources()):  # later Ray is still freeing what was lost
                _say_that_it_waits(title, run)
            with _watched(title, total, meter):
                TorchTrainer(
                    function,
                    train_loop_config={**config, "meter": meter},
                    torch_config=rendezvous.config(run.interface),
                    scaling_config=scaling,
                    run_config=RunConfig(name=name, storage_path=str(storage)),
                ).fit()
            return
        except Exception as error:
            cause, lost = _cause(error)
            if not lost or attempt == REPLACEMENTS:
                raise cause from None
            first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            print(f"{title}: lost a worker ({first}); going on from the last checkpoint", file=sys.stderr)
            _free_reserved()
        finally:
            shutil.rmtree(storage / name, ignore_errors=True)


def _free_reserved() -> None:
    """Gives back what this process has reserved: a controller of Ray Train that dies early leaves it to nobody."""
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    job = ray.get_runtime_context().get_job_id()
    for name, about in placement_group_table().items():
        if name.endswith(job) and about["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _cause(error: Exception) -> tuple[Exception, bool]:
    """What a worker raised, and whether that means that a worker was lost.

    When one dies, Ray says so in an error of its own, and the others fail too: their collective operations break off,
    which torch calls a RuntimeError, or one of its own kinds of it. Out of memory is another kind.
    """
    failures = [getattr(cause, "_base_exc", cause) for cause in getattr(error, "worker_failures", {}).values()]
    own = [cause for cause in failures if not (_breaks_off(cause) or _of_ray(cause))]
    if own:
        return own[0], False
    return (failures or [error])[0], bool(failures) or _of_ray(error)


def _breaks_off(error: Exception) -> bool:
    return type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)


def _of_ray(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] == "ray"


@contextmanager
def _watched(title: str, total: int, meter: Any) -> Iterator[None]:
    """A bar on stderr that follows the meter."""
    import ray

    done = threading.Event()

    def follow(reach: Callable[[int], None]) -> None:
        while not done.wait(1):
            with suppress(ray.exceptions.RayError):
                if (seen := ray.get(meter.read.remote())) is not None:
                    reach(seen)

    with progress(title, total, resumes=True) as reach:
        thread = threading.Thread(target=follow, args=(reach,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        reach(total)  # now that nothing older can follow


def _is_free(run: Run, free: dict[str, float]) -> bool:
    return all(free.get(kind, 0) >= amount * run.workers for kind, amount in request(run).items())


def reporter(meter: Any) -> Callable[[int], None]:
    """Tells the meter the images that this worker has seen, at most twice a second; only the first worker does."""
    is_first, last = first_worker(), 0.0

    def reach(seen: int) -> None:
        nonlocal last
        if is_first and time.monotonic() - last > 0.5:
            last = time.monotonic()
            meter.reach.remote(seen)

    return reach
