"""Works out what the trainings and samples of a recipe would cost, in seconds and without its data or weights.

Each part is built on blank images, and each student on its teacher; their losses and samplers are run with networks
that compute nothing and count (`multiscale.plan`). Autoencoder, text encoders and metrics are left out. Memory is that
of weights in fp32 with their gradients, AdamW's two moments and the moving average, and of activations in the precision
of the training, without micro-batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multiscale import methods, model, sampling
from multiscale.condition import conditioner_of
from multiscale.core.device import CPU, autocast
from multiscale.core.models import AUTOENCODER, CONFIG, EMBEDDINGS, TEXT
from multiscale.core.normalisation import Normalisation
from multiscale.core.settings import Fetched
from multiscale.core.storage import Table, sealed_folder, write_blocks, write_json
from multiscale.networks.autoencoder import Codec
from multiscale.plan import Call, Understudy, size
from multiscale.training.operations import Chosen, steps_of
from multiscale.training.part import Part, let_through, trainable
from multiscale.training.prepare import recompute
from stages import recipe
from stages.schema import AnyPart, Decomposition, Experiment, Student
from stages.schema.data import PublishedVAE, TrainedVAE
from stages.schema.prompts import PublishedEncoder

# FLOP/s of the SXM, dense. A training in fp32 multiplies in TF32 (`multiscale.core.device.allow_tf32`).
GPU, PEAKS, SHARE = "H100", {"fp32": 495e12, "bf16": 989e12, "auto": 989e12}, 0.4
ROWS, TOKENS, STEPS = 8, 16, 12  # blank images, tokens of a small encoder, steps looked at
CLASSES = 2  # where the experiment does not say how many
LATENT = 4  # channels of Stable Diffusion's latents
BEYOND = 16  # bytes a trained parameter: its gradient, AdamW's two moments, and the average


@dataclass(frozen=True)
class Cost:
    """What a training and a sample of a method cost. Bytes are those of a worker, FLOP those of all workers."""

    parameters: int
    """of what is sampled"""
    trained: int
    """of all networks, those of a fake score or a discriminator included"""
    weights: int
    """bytes of all networks"""
    activations: int
    """bytes of a training step, at most: as if each call of a network kept its most to the end"""
    step: dict[int, float]
    """FLOP of a training step, the mean over a cycle, by the edge of the network's input"""
    sample: dict[int, float]
    """FLOP of an image, by the edge of the network's input"""

    @property
    def memory(self) -> int:
        """Bytes of a worker in training, at most."""
        return self.weights + BEYOND * self.trained + self.activations


class Blank:
    """Images, latents and captions that hold nothing: the `Source` of a decomposition."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.numbers = np.random.default_rng(0)
        self.label = np.arange(ROWS) % classes(experiment)

    def pixels(self) -> Table:
        data = self.experiment.data
        shape = (ROWS, data.channels, data.resolution, data.resolution)
        return Table({"pixels": self.numbers.integers(0, 256, shape, np.uint8), "label": self.label})

    def latents(self, resolution: int) -> Table:
        grid = resolution // self.experiment.vae.factor
        shape = (ROWS, channels(self.experiment), grid, grid)
        return Table({"mean": self.numbers.standard_normal(shape, np.float32), "label": self.label})

    def normalisation(self, resolution: int) -> Normalisation:
        count = channels(self.experiment)
        return Normalisation(shift=[0.0] * count, scale=[1.0] * count)

    def captions(self, text: str) -> Tensor:
        return torch.ones(ROWS, dtype=torch.long)


def classes(experiment: Experiment) -> int:
    """Of the images, where the experiment says how many."""
    return experiment.data.classes or CLASSES


def channels(experiment: Experiment) -> int:
    """Of the latents, which for a published autoencoder a fetched network tells, if there is one."""
    if isinstance(experiment.vae, TrainedVAE):
        return experiment.vae.latent_channels
    fetched = (part.network.channels for part in experiment.parts.values() if isinstance(part, Fetched))  # type: ignore[attr-defined]
    return next(fetched, LATENT if isinstance(experiment.vae, PublishedVAE) else experiment.data.channels)


def embedded(experiment: Experiment, name: str) -> tuple[int, int, int]:
    """Tokens, channels of a token and of the pooled prompt, of the text encoder of this name."""
    encoder = experiment.text[name].encoder
    if not isinstance(encoder, PublishedEncoder):
        return TOKENS, encoder.width, encoder.width
    network: Any = next(part for part in experiment.parts.values() if isinstance(part, Fetched)).network  # type: ignore[attr-defined]
    return network.tokens(encoder.length), *network.text


def dataset(section: Decomposition, experiment: Experiment, out: Path) -> None:
    """Writes the decomposition of blank images."""
    made = methods.decomposition(section.kind).decompose(section, Blank(experiment))
    out.mkdir(parents=True)
    path, shapes = out / "targets.safetensors", {**made.shapes, "label": (np.int64, (ROWS,))}
    write_blocks(path, shapes, [made.block(slice(0, ROWS))])
    about = {"classes": classes(experiment), **made.statistics(Table.open(path, *made.shapes))}
    write_json(out / "statistics.json", about)
    if text := getattr(section, "text", None):
        length, width, pooled = embedded(experiment, text)
        (out / TEXT).mkdir()
        blank = {"prompt": torch.zeros(2, length, width), "pooled": torch.zeros(2, pooled)}
        save_file(blank, out / TEXT / EMBEDDINGS)
    (out / AUTOENCODER).mkdir()
    write_json(out / AUTOENCODER / CONFIG, {"latent_channels": channels(experiment), "scaling_factor": 1.0})


class Planner:
    """The parts and samplers of an experiment, on blank images in a folder."""

    def __init__(self, experiment: Experiment, folder: Path):
        self.experiment, self.folder, self.workers = experiment, folder, experiment.run.workers or 1
        self.known: dict[str, Any] = {}  # what calls cost, by the structure of the network

    def cost(self, name: str) -> Cost:
        """The cost of a part or student."""
        section = self.experiment.trained[name]
        sample = self.sample(section.method)
        if isinstance(section, Fetched):
            parameters, _, weights = size(self.fetched(section)[0])
            return Cost(parameters, 0, weights, 0, {}, sample)
        part, training = self.part(name, section), section.training
        if training.recompute:
            recompute(part)
        nets = {**part.networks, **part.frozen}
        sizes = [size(net) for net in nets.values()]
        stands = {each: self.stand(net).instead() for each, net in nets.items()}
        steps = STEPS if part.cycle == 1 < len(part.networks) else part.cycle  # a network alone has equal steps
        most, times, by = 0, 0, dict[int, float]()
        for draws, often in steps_of(part, steps, training.batch // self.workers, CPU):
            calls = calls_of(part, stands, draws, training.precision)
            most, times = max(most, sum(call.activations for call in calls)), times + often
            for call in calls:
                by[call.edge] = by.get(call.edge, 0.0) + call.flops * self.workers * often
        by = {edge: flops / times for edge, flops in by.items()}
        trained, weights = (sum(each) for each in list(zip(*sizes))[1:])
        return Cost(sizes[list(nets).index(part.main)][0], trained, weights, most, by, sample)

    def stand(self, net: nn.Module) -> Understudy:
        """What stands in for a network."""
        return Understudy(net, self.known)

    def data(self, name: str) -> Path:
        """The decomposition of this name."""
        out = self.folder / "data" / name
        if not out.exists():
            dataset(self.experiment.decomposition_of(name), self.experiment, out)
        return out

    def fetched(self, section: Fetched) -> tuple[nn.Module, Any]:
        """The network of a fetched part, empty, and its config."""
        found = methods.parts(section.kind)
        config = found.published_config(section, self.data(section.dataset))
        return found.empty(config), config

    def part(self, name: str, section: AnyPart | Student, filled: bool = False) -> Part:
        """A part to train, without its weights unless it is `filled`, or a student on its teacher."""
        found, folder = methods.parts(section.kind), self.data(section.dataset)
        student = self.experiment.students.get(name)
        if student is None:
            with nullcontext() if filled else unfilled():
                part: Part = found.build_part(name, section, folder)
            return part
        ((teacher, taught),) = self.experiment.parts_of(student.teacher).items()
        if isinstance(taught, Fetched):
            part = found.student_of(name, student, folder, *self.fetched(taught), ("", ""))
        else:
            part = found.build_student(name, student, folder, self.saved(teacher, taught))
        return part

    def saved(self, name: str, section: AnyPart | Student) -> Path:
        """The folder of a part with random weights."""
        out = self.folder / "models" / section.method / name
        if not out.exists():
            with sealed_folder(out) as folder:
                self.part(name, section, filled=True).save(folder)
        return out

    def joined(self, method: str, parts: dict[str, AnyPart | Student]) -> tuple[Any, list[Understudy]]:
        """The sampler of a method, and what stands in for its networks."""
        section = self.experiment.methods[method]
        joins = methods.component(section.kind)
        if joins is None:
            for name, each in parts.items():
                self.saved(name, each)
            sampler = model.load(self.folder / "models" / method, section, "fp32")
            return sampler, [self.stand(net).instead() for net in sampler.networks.values()]
        made = [self.part(name, each) for name, each in parts.items()]
        stands = [self.stand(part.networks[part.main]).instead() for part in made]
        pairs = [(part.config, part.networks[part.main]) for part in made]
        with patch.object(sampling.NetworkSampler, "placed", lambda sampler, net: net.eval()):  # nothing can be moved
            return joins.sampler(pairs, section, Codec(None, channels(self.experiment)), "fp32"), stands

    def sample(self, method: str) -> dict[int, float]:
        """FLOP of an image of a method, by the edge of the network's input."""
        parts, section = self.experiment.parts_of(method), self.experiment.methods[method]
        if around := getattr(
            methods.sampler(section.kind), "sampler_around", None
        ):  # billions of numbers are not saved
            ((name, only),) = parts.items()
            if isinstance(only, Fetched):
                net, config = self.fetched(only)
            else:
                part = self.part(name, only)
                net, config = part.networks[part.main], part.config
            stands, codec = [self.stand(net)], Codec(None, channels(self.experiment))
            conditioner = conditioner_of(self.data(only.dataset), classes(self.experiment))
            sampler = around(stands[0], config, section, codec, "fp32", conditioner)
        else:
            sampler, stands = self.joined(method, parts)
        with torch.no_grad(), autocast("bf16", CPU):
            sampler.images([0], torch.ones(1, dtype=torch.long), None)
        found: dict[int, float] = {}
        for call in (call for stand in stands for call in stand.calls):
            found[call.edge] = found.get(call.edge, 0.0) + call.flops
        return found


@contextmanager
def unfilled() -> Iterator[None]:
    """The networks that are built meanwhile have parameters without memory and numbers; their buffers are real."""
    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, given: nn.Parameter | None) -> None:
        register(module, name, given if given is None else nn.Parameter(given.to("meta"), given.requires_grad))

    with patch.object(nn.Module, "register_parameter", empty):
        yield


def calls_of(part: Part, stands: dict[str, Understudy], draws: Chosen, precision: str) -> list[Call]:
    """The calls of the networks in a training step of one worker, on its share of a batch.

    precision: of the training; 'auto' is bf16, which the GPU multiplies natively.
    """
    batch = part.data[torch.arange(draws.batch) % ROWS]
    trained = trainable({name: stand.net for name, stand in stands.items()})
    for stand in stands.values():
        stand.calls.clear()
    for turn in part.turns(draws.step):
        let_through(trained, turn)
        with autocast("bf16" if precision == "auto" else precision, CPU):
            part.loss(turn, part.networks, batch, draws)
    let_through(trained, *trained)
    return [call for stand in stands.values() for call in stand.calls]


def lines(name: str, cost: Cost, section: AnyPart | Student, experiment: Experiment) -> list[str]:
    """What is printed of a part or student."""
    found = [f"{name}: {cost.parameters:,} parameters, {cost.trained:,} trained, weights {cost.weights / 1e9:.3g} GB"]
    if not isinstance(section, Fetched):
        training, workers, total = section.training, experiment.run.workers or 1, sum(cost.step.values())
        steps = -(-training.images // training.batch)
        hours = steps * total / (PEAKS[training.precision] * SHARE * workers) / 3600
        found += [
            f"  a step of {training.batch} images: {total / 1e12:.3g} TFLOP{_apart(cost.step)}; activations of "
            f"{training.batch // workers} images at most {cost.activations / 1e9:.3g} GB, memory with all else "
            f"{cost.memory / 1e9:.3g} GB",
            f"  {steps:,} steps: {steps * total / 1e15:.3g} PFLOP, {hours:.3g} hours on {workers} {GPU}",
        ]
    found.append(f"  an image: {sum(cost.sample.values()) / 1e12:.3g} TFLOP{_apart(cost.sample)}")
    if synthetic := experiment.synthetic.get(section.dataset):
        found.append(f"  its teacher makes {synthetic.images:,} images before")
    return found


def _apart(flops: dict[int, float]) -> str:
    """The shares of the edges of inputs, where there are several."""
    each = (f"{value / 1e12:.3g} at {edge}" for edge, value in sorted(flops.items()))
    return f" ({', '.join(each)})" if len(flops) > 1 else ""


def run(name: str) -> None:
    """Prints the plan of a recipe."""
    experiment = recipe.experiment_of(name)
    print(f"{name}, without autoencoder, text encoders and metrics; by the edge of the networks' inputs. Assumed:")
    half, full = (f"{PEAKS[precision] / 1e12:g}" for precision in ("bf16", "fp32"))
    print(f"{SHARE:.0%} of an {GPU}'s peak, {half} TFLOP/s in bf16, {full} in TF32, in which fp32 is multiplied.")
    with tempfile.TemporaryDirectory() as folder:
        planner = Planner(experiment, Path(folder))
        for part, section in experiment.trained.items():
            print("\n".join(lines(part, planner.cost(part), section, experiment)), flush=True)
