"""The training loop of every part: counts images, averages weights, writes checkpoints.

A run that is killed and started again ends in the same weights, bit for bit on a CPU: every random number is a function
of (seed, part, step), and a checkpoint holds everything else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multiscale.core.device import allow_tf32, autocast, default_device, resolve_precision
from multiscale.core.finite import unfit
from multiscale.core.streams import Draws, Order, Randomness
from multiscale.training.checkpoint import (
    Checkpoints,
    Writer,
    flatten_optimizer,
    parameters_of,
    restore_optimizer,
)
from multiscale.training.ema import EMA
from multiscale.training.optimizers import optimizers
from multiscale.training.parallel import Workers, load_whole, local, whole
from multiscale.training.part import Part, Training, let_through, trainable
from multiscale.training.prepare import check, compile_in_place, recompute
from multiscale.training.shards import Blank
from multiscale.training.validation import NAME, validation_loss

TENTHS = 10  # of the budget, after each of which a training is observed
TURNS = "turns"  # the sum that counts a network's updates


@dataclass(frozen=True)
class Result:
    """Averaged weights on the CPU, the rows of the history, and the seconds of training over all starts.

    The first worker has the weights, the others have none.
    """

    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    seconds: float


def learning_rate(training: Training, seen: int) -> float:
    """The learning rate after `seen` images: linear warm-up, then constant or a cosine to zero."""
    rise = min(1.0, (seen + training.batch) / max(training.warmup_images, training.batch))
    if training.decay == "constant":
        return training.lr * rise
    return training.lr * rise * 0.5 * (1 + math.cos(math.pi * seen / training.images))


class Trainer:
    """The state of one training run: networks, optimisers, average, history and counters."""

    def __init__(
        self,
        part: Part,
        training: Training,
        seed: int,
        parallel: Literal["ddp", "fsdp"] = "ddp",
        randomness: Randomness = "cpu",
    ):
        self.part, self.training, self.randomness = part, training, randomness
        self.device = default_device()
        self.precision = resolve_precision(training.precision, self.device)
        self.workers = Workers(parallel, self.device)
        check(part, training, self.workers.mesh is not None)
        share = training.batch // self.workers.count
        self.rows = slice(self.workers.rank * share, (self.workers.rank + 1) * share)
        each = training.microbatch or share
        self.passes = [slice(start, min(start + each, share)) for start in range(0, share, each)]
        self.seed, self.order = seed, Order(seed, part.name, len(part.data))
        self.layout = {name: self.workers.layout(net) for name, net in part.networks.items()}
        if training.recompute:
            recompute(part)
        # Copied before the network is sharded.
        self.ema = EMA(part.networks[part.main], training.ema_images, self.workers.mesh is not None)
        # What is frozen from the start, a network beneath its adapter, is built anew and needs no checkpoint.
        self.frozen = {
            name: {key for key, p in net.named_parameters() if not p.requires_grad}
            for name, net in part.networks.items()
        }
        self.workers.place(self.ema.average, self.layout[part.main])
        self.networks = {
            name: self.workers.place(net, self.layout[name], self.precision) for name, net in part.networks.items()
        }
        if self.workers.mesh:
            self.ema.share(self.device)
        for net in part.frozen.values():
            self.workers.place(net, self.workers.layout(net), self.precision)
        if training.compile:  # torch's compiler does not differentiate a gradient
            once = [net for name, net in self.networks.items() if name not in part.twice]
            compile_in_place([*once, *part.frozen.values()])
        self.nets = {name: self.workers.wrap(net, part.partial) for name, net in self.networks.items()}
        # `_move` turns gradients on for these alone: what is frozen from the start (under an adapter) stays frozen.
        self.trained = trainable(self.networks)
        self.optimizers = {name: optimizers(net, training) for name, net in self.networks.items()}
        self.seen, self.seconds = 0, 0.0
        self.moved = 0  # images of the steps that update the main network
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}

    def fetch(self, step: int) -> dict[str, Tensor]:
        """This worker's rows of the batch of a step, laid out for its device; for a GPU in pinned memory."""
        rows = self.order.rows(step * self.training.batch, self.training.batch)[self.rows]
        layout, found = self.layout[self.part.main], {}
        for key, x in self.part.data[rows].items():
            x = x.contiguous(memory_format=layout if x.ndim == 4 else torch.contiguous_format)
            found[key] = x.pin_memory() if self.device.type == "cuda" else x
        return found

    def step(self, batch: dict[str, Tensor]) -> None:
        """Updates each network whose turn it is."""
        index = self.seen // self.training.batch
        batch = {key: x.to(self.device, non_blocking=True) for key, x in batch.items()}
        draws = Draws(self.seed, self.part.name, index, self.training.batch, self.rows, self.device, self.randomness)
        turns = self.part.turns(index)
        for name in turns:
            self._move(name, batch, draws)
        self.seen += self.training.batch
        if self.part.main in turns:
            self.moved += self.training.batch
            self.ema.update(self.training.batch, self.moved)

    def _move(self, name: str, batch: dict[str, Tensor], draws: Draws) -> None:
        let_through(self.trained, name)
        # Networks that are not updated are called without their DDP wrapper, which would wait for their gradients.
        nets = {other: self.nets[other] if other == name else self.networks[other] for other in self.networks}
        sums: dict[str, Tensor] = {}
        for rows in self.passes:
            weight = (rows.stop - rows.start) / (self.rows.stop - self.rows.start)
            own = slice(self.rows.start + rows.start, self.rows.start + rows.stop)
            with self.workers.exchanging(nets[name], rows is self.passes[-1]):
                with autocast(self.precision, self.device):
                    some = {key: x[rows] for key, x in batch.items()}
                    loss, extra = self.part.loss(name, nets, some, replace(draws, rows=own))
                (weight * loss).backward()
            for key, value in {"loss": loss, **extra}.items():
                sums[key] = sums.get(key, 0) + weight * value.detach().float()
        limit = self.training.clip or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.trained[name], limit))
        rate = learning_rate(self.training, self.seen) * self.part.rates.get(name, 1.0)
        for optimizer in self.optimizers[name]:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for key, value in {**sums, "grad_norm": norm, TURNS: torch.ones(())}.items():
            total = self.sums.setdefault(f"{name}/{key}", torch.zeros((), device=self.device))
            total += value.detach().float()  # stays on the device: reading it at each step would stall the GPU

    def log_row(self) -> dict[str, float]:
        """Averages the scalars since the last row over updates and workers, and appends them to the history."""
        if self.workers.count > 1:
            for key in sorted(self.sums):
                dist.all_reduce(self.sums[key])
        values = {key: self.sums[key].item() for key in sorted(self.sums)}  # the order does not change on resuming
        row: dict[str, float] = {"images": self.seen, "lr": learning_rate(self.training, self.seen)}
        for address, value in values.items():
            name, key = address.split("/", 1)
            if key != TURNS:
                row[key if name == self.part.main else f"{name}_{key}"] = value / values[f"{name}/{TURNS}"]
        self.sums = {}
        return self._record(row)

    def validate(self) -> list[dict[str, float]]:
        """Appends the validation loss of the averaged weights to the history, and gives its row, if there is one.

        A collective call: every worker must make it, and each computes the same number.
        """
        images, share = self.training.validation_images, self.rows.stop - self.rows.start
        with autocast(self.precision, self.device):
            loss = validation_loss(self.part, self.ema.average, images, share, self.device)
        return [] if loss is None else [self._record({"images": self.seen, NAME: loss})]

    def _record(self, row: dict[str, float]) -> dict[str, float]:
        for key, value in row.items():
            if key.endswith("loss") and not math.isfinite(value):
                raise FloatingPointError(f"the {key} of {self.part.name} became {value} by image {self.seen}")
        self.history.append(row)
        return row

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights on the CPU of the first worker; the others keep none. A collective call of all workers.

        Raises FloatingPointError for weights that are not finite, as `state` does: the loss that `log_row` looks at is
        that before an update.
        """
        found = {}
        for key, value in self.ema.average.state_dict().items():
            full = whole(value)  # one at a time: together they may not fit
            if self.workers.rank == 0:
                found[key] = full.detach().cpu().contiguous()
        self._check(found)
        return found

    def _check(self, tensors: dict[str, Tensor]) -> None:
        name = unfit({key: local(value) for key, value in tensors.items()})
        if self.workers.gather({"unfit": torch.tensor(float(name is not None))})["unfit"].any():
            raise FloatingPointError(
                f"the weights of {self.part.name} were not finite by image {self.seen} "
                f"({name or 'of another worker'}); a lower training.lr or a longer training.warmup_images may help"
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs, as (tensors, JSON), shards being this worker's.

        A collective call: every worker must make it.
        """
        tensors = self._weights()
        for name in self.networks:
            for index, optimizer in enumerate(self.optimizers[name]):
                tensors |= flatten_optimizer(f"optimizer.{name}.{index}", optimizer)
        self._check(tensors)
        tensors |= {f"sum.{key}": values for key, values in self.workers.gather(self.sums).items()}
        about = {"seen": self.seen, "moved": self.moved, "seconds": self.seconds, "history": list(self.history)}
        return tensors, about

    def blank(self) -> Blank:
        """Makes room for what a checkpoint holds under a name, sharded as this worker holds it; see `shards.load`."""
        owners = self._weights()
        for name in self.networks:
            for index, optimizer in enumerate(self.optimizers[name]):
                owners |= {f"optimizer.{name}.{index}.{k}": p for k, p in enumerate(parameters_of(optimizer))}

        def blank(key: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
            like = owners.get(key, owners.get(key.rpartition(".")[0]))
            if like is None or like.shape != size:
                return torch.empty(size, dtype=dtype)
            return torch.empty_like(like, dtype=dtype)

        return blank

    def _weights(self) -> dict[str, Tensor]:
        """The average's and the networks' weights, as a checkpoint names them."""
        tensors = {f"ema.{key}": value for key, value in self._kept(self.part.main, self.ema.average).items()}
        for name, net in self.networks.items():
            tensors |= {f"net.{name}.{key}": value for key, value in self._kept(name, net).items()}
        return tensors

    def _kept(self, name: str, net: nn.Module) -> dict[str, Tensor]:
        """What a checkpoint holds of a network."""
        return {key: value for key, value in net.state_dict().items() if key not in self.frozen[name]}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Undoes `state`."""
        load_whole(self.ema.average, _under("ema.", tensors))
        for name, net in self.networks.items():
            load_whole(net, _under(f"net.{name}.", tensors))
            for index, optimizer in enumerate(self.optimizers[name]):
                restore_optimizer(f"optimizer.{name}.{index}", optimizer, tensors)
        self.sums = self.workers.scatter(_under("sum.", tensors))
        self.seen, self.moved = state["seen"], state["moved"]
        self.seconds, self.history = state["seconds"], state["history"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@allow_tf32()
def fit(
    part: Part,
    training: Training,
    seed: int,
    checkpoints: Checkpoints,
    on_row: Sequence[Callable[[dict[str, float]], None]] = (),
    on_step: Callable[[int], None] = lambda seen: None,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    checkpoint_seconds: float = 30.0,
    observe: Callable[[int, dict[str, Tensor]], None] | None = None,
    randomness: Randomness = "cpu",
) -> Result:
    """Trains a part to its budget, rounded up to whole batches, from its newest checkpoint if there is one.

    parallel: 'ddp' or 'fsdp', see `Workers`; randomness: see `Draws`; checkpoint_seconds: see `Writer`. on_step(images
    seen) is called before the first step and after each, on_row(row) for each row of the history, observe(images seen,
    averaged weights so far) after each tenth of the budget, which also has a row with the validation loss. Of several
    workers the first has the weights, and whether it observes decides for all. Raises FloatingPointError if a loss or
    the weights stop being finite, Bad for settings that the part does not allow.
    """
    run = Trainer(part, training, seed, parallel, randomness)
    found = checkpoints.load(run.blank())
    if found:
        run.restore(*found)
    on_step(run.seen)
    for net in run.networks.values():
        net.train()
    started = time.monotonic()
    earlier = run.seconds
    writer = Writer(checkpoints, checkpoint_seconds, run.workers)
    with ThreadPoolExecutor(1) as loader, writer:  # loads the next batch during a step
        upcoming = loader.submit(run.fetch, run.seen // training.batch)
        while run.seen < training.images:
            batch = upcoming.result()
            upcoming = loader.submit(run.fetch, run.seen // training.batch + 1)
            run.step(batch)
            on_step(run.seen)
            finished = run.seen >= training.images
            before = run.seen - training.batch
            tenth = TENTHS * run.seen // training.images > TENTHS * before // training.images
            rows = []
            if run.seen // training.log_images > before // training.log_images or finished:
                rows.append(run.log_row())
            if tenth:
                rows += run.validate()
            for row in rows:
                for call in on_row:
                    call(row)
            if tenth and run.workers.agree(observe is not None):
                averaged = run.weights()  # collective
                if observe:
                    observe(run.seen, averaged)
            run.seconds = earlier + time.monotonic() - started
            if run.workers.agree(not finished and writer.due()):  # collective: each worker holds a part of the state
                writer.save(run.seen, run.state)
    return Result(run.weights(), run.history, run.seconds)
