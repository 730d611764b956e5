"""The one training loop: counts images, averages weights, writes checkpoints, and serves every part of every method.

Killed at any moment and started again it ends in the same weights, bit for bit on a processor: every random number is
a function of (seed, part, step), and a checkpoint holds everything else.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multiscale.core.device import autocast, default_device, resolve_precision
from multiscale.core.streams import Draws, Order
from multiscale.training.checkpoint import Checkpoints, flatten_optimizer, restore_optimizer
from multiscale.training.parallel import Workers, load_whole, local, whole
from multiscale.training.part import Part

TURNS = "turns"  # the sum that counts a player's moves


@dataclass(frozen=True)
class Training:
    """How a part is trained. All budgets and intervals count images, so they survive another batch size."""

    images: int  # training images to see in all
    batch: int  # images a step, over all workers
    lr: float  # peak learning rate
    warmup_images: int  # linear rise of the learning rate
    decay: str  # 'constant', or 'cosine' to zero
    weight_decay: float
    beta2: float
    clip: float  # largest gradient norm; 0 does not clip
    ema_images: int  # half-life of the moving average, in images of the main player's own updates; 0: no average
    precision: str  # 'auto', 'fp32', 'bf16'
    compile: bool  # torch.compile each network
    log_images: int  # one history row each so many images
    checkpoint_seconds: float  # one checkpoint each so many seconds; 0 after every step


@dataclass(frozen=True)
class Result:
    """What training leaves: averaged weights on the CPU, the history rows, and the seconds all sessions took."""

    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    seconds: float


class EMA:
    """A moving average of a network's weights with a half-life in images, short while the run is young (EDM2).

    A half-life of 0 leaves the network's own weights.
    """

    def __init__(self, net: nn.Module, half_life: int):
        self.net, self.half_life = net, half_life
        self.average = copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def update(self, batch: int, seen: int) -> None:
        half_life = max(min(self.half_life, seen * 0.05), 1e-8)
        weight = 1 - 0.5 ** (batch / half_life)
        average, net = (local(list(found.parameters())) for found in (self.average, self.net))
        torch._foreach_lerp_(average, net, weight)
        for mine, its in zip(self.average.buffers(), self.net.buffers()):
            mine.copy_(its)


def learning_rate(training: Training, seen: int) -> float:
    """The learning rate after `seen` images: linear warm-up, then constant or a cosine to zero."""
    rise = min(1.0, (seen + training.batch) / max(training.warmup_images, training.batch))
    if training.decay == "constant":
        return training.lr * rise
    return training.lr * rise * 0.5 * (1 + math.cos(math.pi * seen / training.images))


class Run:
    """The state of one training run: networks, optimisers, average, history and counters."""

    def __init__(self, part: Part, training: Training, seed: int, parallel: str = "ddp"):
        self.part, self.training = part, training
        self.device = default_device()
        self.precision = resolve_precision(training.precision, self.device)
        self.workers = Workers(parallel, self.device)
        share = training.batch // self.workers.count
        self.rows = slice(self.workers.rank * share, (self.workers.rank + 1) * share)
        self.seed, self.order = seed, Order(seed, part.name, len(part.data))
        self.layout = {name: self.workers.layout(net) for name, net in part.players.items()}
        self.ema = EMA(part.players[part.main], training.ema_images)  # copied before the network is spread out
        self.workers.place(self.ema.average, self.layout[part.main])
        self.players = {name: self.workers.place(net, self.layout[name]) for name, net in part.players.items()}
        for net in part.frozen.values():
            self.workers.place(net, self.workers.layout(net))
        self.nets = {name: self._wrap(net) for name, net in self.players.items()}
        # What is frozen from the start (the base of an adapter) stays so: `_move` turns gradients on for these alone.
        self.trained = {name: [p for p in net.parameters() if p.requires_grad] for name, net in self.players.items()}
        self.optimizers = {
            name: torch.optim.AdamW(
                self.trained[name],
                lr=training.lr,
                betas=(0.9, training.beta2),
                weight_decay=training.weight_decay,
                fused=True,
            )
            for name in self.players
        }
        self.seen, self.seconds = 0, 0.0
        self.moved = 0  # images of the main player's own updates: without those that its opponents learn from
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}

    def _wrap(self, net: nn.Module) -> nn.Module:
        if self.training.compile:
            net = torch.compile(net)
        return self.workers.wrap(net, self.part.partial)

    def fetch(self, step: int) -> dict[str, Tensor]:
        """The rows of this worker's share of the batch of a step."""
        rows = self.order.rows(step * self.training.batch, self.training.batch)[self.rows]
        return self.part.data[rows]

    def step(self, batch: dict[str, Tensor]) -> None:
        """One turn of every player that moves at this step."""
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
        # A player that only listens is called bare: its wrapper would wait for gradients that never come.
        nets = {other: self.nets[other] if other == name else self.players[other] for other in self.players}
        optimizer = self.optimizers[name]
        with autocast(self.precision, self.device):
            loss, extra = self.part.loss(name, nets, batch, draws)
        loss.backward()
        limit = self.training.clip or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.trained[name], limit))
        rate = learning_rate(self.training, self.seen) * self.part.rates.get(name, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for key, value in {"loss": loss, "grad_norm": norm, **extra, TURNS: torch.ones(())}.items():
            total = self.sums.setdefault(f"{name}/{key}", torch.zeros((), device=self.device))
            total += value.detach().float()  # stays on the device: reading it each step would stall the queue

    def log_row(self) -> dict[str, float]:
        """Averages the scalars since the last row over turns and workers, and appends them to the history."""
        if self.workers.count > 1:
            for key in sorted(self.sums):
                dist.all_reduce(self.sums[key])
        values = {key: self.sums[key].item() for key in sorted(self.sums)}  # sorted: the same rows after resuming
        row: dict[str, float] = {"images": self.seen, "lr": learning_rate(self.training, self.seen)}
        for address, value in values.items():
            name, key = address.split("/", 1)
            if key != TURNS:
                row[key if name == self.part.main else f"{name}_{key}"] = value / values[f"{name}/{TURNS}"]
        self.sums = {}
        for key, value in row.items():
            if key.endswith("loss") and not math.isfinite(value):
                raise FloatingPointError(f"the {key} of {self.part.name} became {value} by image {self.seen}")
        self.history.append(row)
        return row

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Everything a resumed run needs, as (tensors, JSON): full tensors. Every worker has to ask for it."""
        tensors = {f"ema.{k}": v for k, v in self.ema.average.state_dict().items()}
        for name, net in self.players.items():
            tensors |= {f"net.{name}.{k}": v for k, v in net.state_dict().items()}
            tensors |= flatten_optimizer(f"optimizer.{name}", self.optimizers[name])
        tensors |= {f"sum.{key}": values for key, values in self.workers.gather(self.sums).items()}
        about = {"seen": self.seen, "moved": self.moved, "seconds": self.seconds, "history": self.history}
        return {key: whole(value) for key, value in tensors.items()}, about

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Undoes `state`."""
        load_whole(self.ema.average, _under("ema.", tensors))
        for name, net in self.players.items():
            load_whole(net, _under(f"net.{name}.", tensors))
            restore_optimizer(f"optimizer.{name}", self.optimizers[name], tensors)
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
    parallel: str = "ddp",
) -> Result:
    """Trains a part to its budget, from its newest checkpoint where there is one.

    parallel says how networks are spread over several workers ('ddp' or 'fsdp', see `Workers`).
    on_step(images seen) is called after each step, on_row(row) for each history row. The budget is rounded up to
    whole batches. Raises FloatingPointError when the loss stops being finite.
    """
    run = Run(part, training, seed, parallel)
    found = checkpoints.load()
    if found:
        run.restore(*found)
    on_step(run.seen)
    for net in run.players.values():
        net.train()
    started = saved = time.monotonic()
    earlier = run.seconds
    with ThreadPoolExecutor(1) as loader:  # the next batch is read while this one computes
        upcoming = loader.submit(run.fetch, run.seen // training.batch)
        while run.seen < training.images:
            batch = upcoming.result()
            upcoming = loader.submit(run.fetch, run.seen // training.batch + 1)
            run.step(batch)
            on_step(run.seen)
            finished = run.seen >= training.images
            if run.seen // training.log_images > (run.seen - training.batch) // training.log_images or finished:
                row = run.log_row()
                for call in on_row:
                    call(row)
            run.seconds = earlier + time.monotonic() - started
            due = not finished and time.monotonic() - saved >= training.checkpoint_seconds
            if run.workers.agree(due):  # all take part: each holds something that the others lack
                state = run.state()
                if run.workers.rank == 0:
                    checkpoints.save(run.seen, *state)
                saved = time.monotonic()
    weights = {key: whole(value).detach().cpu().contiguous() for key, value in run.ema.average.state_dict().items()}
    return Result(weights, run.history, run.seconds)
