"""The training loop of every part: counts images, averages weights, writes checkpoints.

A run that is killed and started again ends in the same weights, bit for bit on a CPU: every random number is a function
of (seed, part, step), and a checkpoint holds everything else.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.finite import unfit
from multiscale.core.streams import Draws, Order
from multiscale.training.checkpoint import Checkpoints, flatten_optimizer, restore_optimizer
from multiscale.training.optimizers import optimizers
from multiscale.training.parallel import Workers, load_whole, local, whole
from multiscale.training.part import Part, Training
from multiscale.training.validation import NAME, validation_loss

TENTHS = 10  # of the budget, after each of which a training is observed
TURNS = "turns"  # the sum that counts a network's updates


@dataclass(frozen=True)
class Result:
    """Averaged weights on the CPU, the rows of the history, and the seconds of training over all starts."""

    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    seconds: float


class EMA:
    """A moving average of a network's weights with a half-life in images, at most 5 % of those seen so far (EDM2).

    With a half-life of 0 it equals the network's own weights. Frozen weights are shared, unless they are to be sharded.
    """

    def __init__(self, net: nn.Module, half_life: int, sharded: bool = False):
        self.net, self.half_life = net, half_life
        shared = {} if sharded else {id(p): p for p in net.parameters() if not p.requires_grad}
        self.average = copy.deepcopy(net, dict[int, Any](shared)).requires_grad_(False)

    @torch.no_grad()
    def update(self, batch: int, seen: int) -> None:
        half_life = max(min(self.half_life, seen * 0.05), 1e-8)
        weight = 1 - 0.5 ** (batch / half_life)
        pairs = zip(self.average.parameters(), self.net.parameters())
        average, net = zip(*((local(mine), local(its)) for mine, its in pairs if mine is not its))
        torch._foreach_lerp_(average, net, weight)
        for mine, its in zip(self.average.buffers(), self.net.buffers()):
            mine.copy_(its)


def learning_rate(training: Training, seen: int) -> float:
    """The learning rate after `seen` images: linear warm-up, then constant or a cosine to zero."""
    rise = min(1.0, (seen + training.batch) / max(training.warmup_images, training.batch))
    if training.decay == "constant":
        return training.lr * rise
    return training.lr * rise * 0.5 * (1 + math.cos(math.pi * seen / training.images))


class Trainer:
    """The state of one training run: networks, optimisers, average, history and counters."""

    def __init__(self, part: Part, training: Training, seed: int, parallel: Literal["ddp", "fsdp"] = "ddp"):
        self.part, self.training = part, training
        self.device = default_device()
        self.precision = resolve_precision(training.precision, self.device)
        self.workers = Workers(parallel, self.device)
        share = training.batch // self.workers.count
        self.rows = slice(self.workers.rank * share, (self.workers.rank + 1) * share)
        self.seed, self.order = seed, Order(seed, part.name, len(part.data))
        self.layout = {name: self.workers.layout(net) for name, net in part.networks.items()}
        # Copied before the network is sharded.
        self.ema = EMA(part.networks[part.main], training.ema_images, self.workers.mesh is not None)
        # What is frozen from the start, a network beneath its adapter, is built anew and needs no checkpoint.
        self.frozen = {
            name: {key for key, p in net.named_parameters() if not p.requires_grad}
            for name, net in part.networks.items()
        }
        self.workers.place(self.ema.average, self.layout[part.main])
        self.networks = {name: self.workers.place(net, self.layout[name]) for name, net in part.networks.items()}
        for net in part.frozen.values():
            kept = net if self.workers.mesh else cast_weights(net, self.precision)  # shards are of one dtype
            self.workers.place(kept, self.workers.layout(net))
        self.nets = {name: self._wrap(net) for name, net in self.networks.items()}
        # `_move` turns gradients on for these alone: what is frozen from the start (under an adapter) stays frozen.
        self.trained = {name: [p for p in net.parameters() if p.requires_grad] for name, net in self.networks.items()}
        self.optimizers = {name: optimizers(net, training) for name, net in self.networks.items()}
        self.seen, self.seconds = 0, 0.0
        self.moved = 0  # images of the steps that update the main network
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}

    def _wrap(self, net: nn.Module) -> nn.Module:
        called = cast(nn.Module, torch.compile(net)) if self.training.compile else net
        return self.workers.wrap(called, self.part.partial)

    def fetch(self, step: int) -> dict[str, Tensor]:
        """This worker's rows of the batch of a step."""
        rows = self.order.rows(step * self.training.batch, self.training.batch)[self.rows]
        return self.part.data[rows]

    def step(self, batch: dict[str, Tensor]) -> None:
        """Updates each network whose turn it is."""
        index = self.seen // self.training.batch
        layout = self.layout[self.part.main]
        batch = {
            k: x.to(self.device, memory_format=layout if x.ndim == 4 else torch.contiguous_format)
            for k, x in batch.items()
        }
        draws = Draws(self.seed, self.part.name, index, self.training.batch, self.rows, self.device)
        turns = self.part.turns(index)
        for name in turns:
            self._move(name, batch, draws)
        self.seen += self.training.batch
        if self.part.main in turns:
            self.moved += self.training.batch
            self.ema.update(self.training.batch, self.moved)

    def _move(self, name: str, batch: dict[str, Tensor], draws: Draws) -> None:
        for other, parameters in self.trained.items():
            for parameter in parameters:
                parameter.requires_grad_(other == name)
        # Networks that are not updated are called without their DDP wrapper, which would wait for their gradients.
        nets = {other: self.nets[other] if other == name else self.networks[other] for other in self.networks}
        with autocast(self.precision, self.device):
            loss, extra = self.part.loss(name, nets, batch, draws)
        loss.backward()
        limit = self.training.clip or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.trained[name], limit))
        rate = learning_rate(self.training, self.seen) * self.part.rates.get(name, 1.0)
        for optimizer in self.optimizers[name]:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for key, value in {"loss": loss, "grad_norm": norm, **extra, TURNS: torch.ones(())}.items():
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
        """The averaged weights on the CPU. A collective call: every worker must make it.

        Raises FloatingPointError for weights that are not finite, as `state` does: the loss that `log_row` looks at is
        that before an update.
        """
        found = {key: whole(value).detach().cpu().contiguous() for key, value in self.ema.average.state_dict().items()}
        self._check(found)
        return found

    def _check(self, tensors: dict[str, Tensor]) -> None:
        if name := unfit(tensors):
            raise FloatingPointError(
                f"the weights of {self.part.name} were not finite by image {self.seen} ({name}); a lower training.lr "
                "or a longer training.warmup_images may help"
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs, as (full tensors, JSON). A collective call: every worker must make it."""
        kept = self._kept(self.part.main, self.ema.average)
        tensors = {f"ema.{k}": v for k, v in kept.items()}
        for name, net in self.networks.items():
            tensors |= {f"net.{name}.{k}": v for k, v in self._kept(name, net).items()}
            for index, optimizer in enumerate(self.optimizers[name]):
                tensors |= flatten_optimizer(f"optimizer.{name}.{index}", optimizer)
        tensors = {key: whole(value) for key, value in tensors.items()}
        self._check(tensors)
        tensors |= {f"sum.{key}": values for key, values in self.workers.gather(self.sums).items()}
        about = {"seen": self.seen, "moved": self.moved, "seconds": self.seconds, "history": self.history}
        return tensors, about

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
) -> Result:
    """Trains a part to its budget, rounded up to whole batches, from its newest checkpoint if there is one.

    parallel: 'ddp' or 'fsdp', see `Workers`. A checkpoint is written every `checkpoint_seconds`, with 0 after every
    step. on_step(images seen) is called after each step, on_row(row) for each row of the history, observe(images seen,
    averaged weights so far) after each tenth of the budget, which also has a row with the validation loss. Raises
    FloatingPointError if a loss or the weights stop being finite.
    """
    run = Trainer(part, training, seed, parallel)
    found = checkpoints.load()
    if found:
        run.restore(*found)
    on_step(run.seen)
    for net in run.networks.values():
        net.train()
    started = saved = time.monotonic()
    earlier = run.seconds
    with ThreadPoolExecutor(1) as loader:  # loads the next batch during a step
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
            if observe and tenth:
                observe(run.seen, run.weights())
            run.seconds = earlier + time.monotonic() - started
            due = not finished and time.monotonic() - saved >= checkpoint_seconds
            if run.workers.agree(due):  # a collective decision: each worker holds a part of the state
                state = run.state()
                if run.workers.rank == 0:
                    checkpoints.save(run.seen, *state)
                saved = time.monotonic()
    return Result(run.weights(), run.history, run.seconds)
