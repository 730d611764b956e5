"""Ours against plain torch: training steps and samplers of the embedded recipe, compared with the committed ratios.

    make bench                            # two minutes on one core; exit code 1 if a ratio is more than 5 % worse
    python -m benchmarks.floor --save     # measures, and writes results/floor.json, which the others compare with
    python -m benchmarks.floor --whole    # whole trainings instead, ten minutes; writes results/floor-whole.json

A ratio is the time of plain torch (`benchmarks.plain`) over ours, the median of pairs measured in turn: 1 is the floor,
less is slower. It hardly depends on the machine. What seems worse is measured again, and counts if it is worse again.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import plain, work
from benchmarks.common import RESULTS, in_turn, ratio, save
from multiscale.core.device import default_device, resolve_precision
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit
from multiscale.training.part import Part
from stages.schema import Experiment

OURS, FLOOR = "ours", "plain torch"
TOLERANCE = 0.05
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Pair:
    """One comparison: what runs, in the floor and in ours; repeats, calls to a repeat; what a reader needs to know."""

    what: str
    calls: Calls
    repeats: int
    block: int
    about: dict[str, object]


def trained(params: Experiment) -> Iterator[tuple[Part, Calls, int]]:
    """The recipe's DiT, UNet and student; a step of each in plain torch and in ours; steps to a block."""
    for part, data, loss, block in (
        (work.dit_part(params), work.latents(params), plain.flow_loss, 10),
        (work.unet_part(params), work.pixels(params), plain.denoising_loss, 4),
    ):
        batch, precision = _settings(part, params)
        floor = plain.trainer(copy.deepcopy(part.networks["net"]), loss, data, work.labels(), batch, precision)
        yield part, {FLOOR: floor, OURS: work.trainer(part, params)}, block
    student = work.student_part(params)
    floor = plain.distiller(copy.deepcopy(student), *_settings(student, params))
    yield student, {FLOOR: floor, OURS: work.trainer(student, params)}, student.cycle


def _settings(part: Part, params: Experiment) -> tuple[int, str]:
    """Images a batch, and the precision."""
    section = params.trained[part.name].training
    return section.batch, resolve_precision(section.precision, default_device())


def training_steps() -> Iterator[Pair]:
    """Training steps of the recipe's DiT, UNet and student, with their batches."""
    params = work.recipe()
    for part, calls, block in trained(params):
        batch, precision = _settings(part, params)
        yield Pair(f"training step, {part.name}", calls, 20, block, {"batch": batch, "precision": precision})


class Turns:
    """Steps of the floor between those of a training, as many, and the seconds and processor seconds of both.

    It is told of the training's steps. What falls between these (history, validation, checkpoints) is the training's.
    """

    def __init__(self, floor: Callable[[], None], block: int):
        self.floor, self.block, self.steps = floor, block, 0
        self.spent: dict[str, list[list[float]]] = {OURS: [], FLOOR: []}
        self.since = _clocks()

    def __call__(self, seen: int) -> None:
        if not seen:  # the training begins
            self.since = _clocks()
            return
        self.steps += 1
        if self.steps == self.block:
            self.end()

    def end(self) -> None:
        """The turn of the training ends, and the floor takes its own."""
        self._note(OURS)
        for _ in range(self.steps):
            self.floor()
        self._note(FLOOR)
        self.steps = 0

    def overhead(self, clock: int) -> float:
        """What the training takes more than the floor, a share of the latter."""
        ours, floor = (sum(each[clock] for each in self.spent[name]) for name in (OURS, FLOOR))
        return ours / floor - 1

    def _note(self, name: str) -> None:
        now = _clocks()
        self.spent[name].append([after - before for after, before in zip(now, self.since)])
        self.since = now


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def whole(block: int = 25) -> dict[str, dict]:
    """Trainings of the recipe from start to end, with history, validation and checkpoints, and as many plain steps."""
    params, found = work.recipe(), {}
    for part, calls, _ in trained(params):
        training, part.held_out = work.training(part, params), part.data
        fresh = copy.deepcopy(part)  # the first steps below leave the networks of a student as of its last turn
        turns = Turns(calls[FLOOR], block)
        for call in calls.values():
            call()  # a first step takes longer
        with tempfile.TemporaryDirectory() as folder:
            fit(fresh, training, params.seed, Checkpoints(Path(folder), part.name, "floor"), on_step=turns)
        turns.end()
        wall, processor = turns.overhead(0), turns.overhead(1)
        print(f"training, {part.name}: {wall:+.1%}, processor time {processor:+.1%}", flush=True)
        steps = -(-training.images // training.batch)
        found[part.name] = {"steps": steps, "block": block, "overhead": wall, "processor_overhead": processor}
        found[part.name]["seconds"] = turns.spent
    return found


def samplers(batch: int = 50, steps: int = 8, scale: float = 1.5) -> Iterator[Pair]:
    """Whole samplers from noise to images: DiT, guided and decoded, and DDPM."""
    params, device = work.recipe(), default_device()
    seeds, labels, precision = list(range(batch)), work.labels(batch), resolve_precision("auto", device)
    part = work.dit_part(params)
    grid, sampler = part.resolutions[-1], work.dit_sampler(part, work.codec(params), steps, scale, precision)
    floor = partial(plain.euler, sampler.scales[0][0], sampler.codec, labels, grid, steps, scale, precision)
    about = {"batch": batch, "steps": steps, "guidance_scale": scale, "precision": precision}
    yield Pair("sampling, dit", {FLOOR: floor, OURS: partial(sampler, seeds, labels)}, 9, 1, about)
    part = work.unet_part(params)
    shape = (batch, part.config.channels, part.config.resolution, part.config.resolution)
    sampler = work.unet_sampler(part, steps, "fp32")
    floor = partial(plain.ancestral, sampler.net, shape, len(sampler.plan))
    about = {"batch": batch, "steps": len(sampler.plan), "precision": "fp32"}
    yield Pair("sampling, ddpm", {FLOOR: floor, OURS: partial(sampler, seeds, labels)}, 9, 1, about)


def measure(pair: Pair) -> dict:
    """The row of a pair: how many times faster ours is, and the seconds."""
    blocks = {name: work.times(pair.block, call) for name, call in pair.calls.items()}
    seconds = in_turn(blocks, pair.repeats, warmup=1)
    faster = ratio(seconds, FLOOR, OURS)
    print(f"{pair.what}: {faster['median']:.3f} ({faster['q1']:.3f} to {faster['q3']:.3f})")
    return {**pair.about, "block": pair.block, "ratio": faster, "seconds": seconds}


def worse(before: dict[str, float], now: dict[str, float], tolerance: float = TOLERANCE) -> list[str]:
    """The names whose ratio fell by more than the tolerance, a share of what it was, or that are no longer measured."""
    return [name for name, ratio in before.items() if now.get(name, 0.0) < ratio * (1 - tolerance)]


def verdict(names: list[str], before: dict[str, float], now: dict[str, float], tolerance: float = TOLERANCE) -> str:
    """One line that says what is worse, or that nothing is."""
    if not names:
        return f"bench: no ratio to plain torch is more than {tolerance:.0%} worse than committed"
    fell = ", ".join(f"{name} {now.get(name, 0.0):.3f} instead of {before[name]:.3f}" for name in names)
    return f"bench: slower than committed by more than {tolerance:.0%} (ratio to plain torch): {fell}"


def main(arguments: list[str]) -> int:
    if unknown := set(arguments) - {"--save", "--whole"}:
        print(f"bench: {' '.join(sorted(unknown))}: unknown; allowed: --save, --whole", file=sys.stderr)
        return 2
    work.as_stages_do(work.recipe())
    if "--whole" in arguments:
        save("floor-whole", {"rows": whole()})
        return 0
    path, keep = RESULTS / "floor.json", "--save" in arguments
    if not (keep or path.exists()):
        print(f"bench: {path}: the file is missing; python -m benchmarks.floor --save writes it", file=sys.stderr)
        return 2
    before = (
        {} if keep else {name: row["ratio"]["median"] for name, row in json.loads(path.read_text())["rows"].items()}
    )
    pairs = [*training_steps(), *samplers()]
    rows = {pair.what: measure(pair) for pair in pairs}
    if keep:
        save("floor", {"tolerance": TOLERANCE, "rows": rows})
        return 0
    now = {name: row["ratio"]["median"] for name, row in rows.items()}
    for pair in pairs:
        if pair.what in worse(before, now):
            now[pair.what] = max(now[pair.what], measure(pair)["ratio"]["median"])
    names = worse(before, now)
    print(verdict(names, before, now), file=sys.stderr if names else sys.stdout)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
