"""SwD's students: seconds per image and per training iteration, scale-wise against full resolution, in one run.

    python -m benchmarks.swd_students                # the embedded size; after `dvc repro` of the embedded recipe
    python -m benchmarks.swd_students DiT-S          # a DiT-S/2 at half the published resolutions, latents of 32 to 64

Beside each ratio stands the ratio of tokens (.551 for 4 published steps, .401 for 6), which it would be if time were
proportional to tokens: attention grows faster, what is paid once a call (decoding, launching) does not grow at all.
Weights are as initialised: they do not change the time of a call.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from benchmarks.common import in_turn, ratio, save
from multiscale.core import models
from multiscale.core.normalisation import Normalisation
from multiscale.flow import Solver
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd.config import StudentConfig, TeacherConfig
from multiscale.methods.swd.sampler import StudentSampler, SwDSampler, TeacherSampler
from multiscale.methods.swd.schedule import Schedule, few_steps
from multiscale.methods.swd.settings import Student
from multiscale.networks import autoencoder
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiTNetwork
from multiscale.training.loop import Trainer
from multiscale.training.part import Training
from stages.common.paths import VAE

CLASSES = 10
SIGMAS = {2: [1.0, 0.7371], 4: few_steps(4), 6: few_steps(6)}
LATENT = Normalisation(shift=[0.0] * 4, scale=[1.0] * 4)


@dataclass(frozen=True)
class Size:
    """What is timed: the latents' resolutions at 4 and at 6 steps, the network, how much at once and how often."""

    four: list[int]
    six: list[int]
    network: DiTNetwork
    batch: int
    guided: int  # steps of the teacher
    repeats: int
    losses: tuple[str, ...]


SIZES = {
    "embedded": Size(
        four=[4, 6, 8, 8],
        six=[4, 4, 6, 6, 6, 8],
        network=DiTNetwork(depth=4, width=192, heads=3, patch=2),
        batch=50,
        guided=24,
        repeats=9,
        losses=("mmd only", "all losses"),
    ),
    "DiT-S": Size(
        four=[32, 40, 48, 64],
        six=[16, 24, 32, 40, 48, 64],
        network=DiTNetwork.model_validate({"preset": "DiT-S/2"}),
        batch=1,
        guided=28,
        repeats=3,
        losses=("mmd only",),  # all losses would take half an hour
    ),
}
LOSSES = {"mmd only": {}, "all losses": {"dmd": {"weight": 1.0}, "gan": {"weight": 5e-3}}}


def schedules(four: list[int], six: list[int]) -> dict[str, Schedule]:
    """The scale-wise students and those at full resolution."""
    grown = {
        f"scale-wise, {len(each)} steps": Schedule(resolutions=each, sigmas=SIGMAS[len(each)]) for each in (four, six)
    }
    full = {f"full, {k} steps": Schedule(resolutions=[four[-1]] * k, sigmas=sigmas) for k, sigmas in SIGMAS.items()}
    return grown | full


def teacher_folder(root: Path, network: DiTNetwork, full: int) -> Path:
    """An untrained teacher as its stage saves it."""
    config = TeacherConfig(channels=4, resolution=full, classes=CLASSES, latent=LATENT, network=network)
    folder = root / "teacher"
    folder.mkdir()
    models.save(folder, config.build().state_dict(), config)
    return folder


def pyramid_folder(root: Path, resolutions: set[int], rows: int) -> Path:
    """Latents of noise at each resolution."""
    folder = root / "pyramid"
    folder.mkdir()
    random = np.random.default_rng(0)
    arrays = {
        f"z{resolution}": random.standard_normal((rows, 4, resolution, resolution)).astype(np.float32)
        for resolution in resolutions
    }
    save_file(arrays | {"label": np.arange(rows) % CLASSES}, folder / "targets.safetensors")
    grids = {str(resolution): resolution for resolution in resolutions}
    statistics = {"classes": CLASSES, "latent": LATENT.model_dump(), "grids": grids}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    return folder


def samplers(teacher: Path, steps: dict[str, Schedule], codec: Codec, guided: int) -> dict[str, SwDSampler]:
    net, about = swd_parts.load_teacher(teacher)
    made: dict[str, SwDSampler] = {}
    shared = about.model_dump(exclude={"role", "resolution"})
    for name, schedule in steps.items():
        config = StudentConfig.model_validate(shared | {"upscaling": "B", "schedule": schedule})
        made[name] = StudentSampler(net, config, codec, "auto")
    solver = Solver(steps=guided, guidance_scale=1.5)
    made[f"teacher, {guided} guided steps"] = TeacherSampler(net, about, codec, solver, "auto")
    return made


def cycle(teacher: Path, pyramid: Path, schedule: Schedule, losses: dict, batch: int):
    """A function that trains for one round of k: an update of the generator at each step, its fake scores included."""
    training = Training(images=10**9, batch=batch, lr=1e-4, warmup_images=0, decay="constant", clip=10.0)
    section = {"method": "s", "kind": "swd", "dataset": "p", "teacher": "t", "block": 0, "schedule": schedule}
    settings = Student.model_validate(section | {"training": training} | losses)
    part = swd_parts.build_student("s", settings, pyramid, teacher)
    run = Trainer(part, training, 0)

    def once() -> None:
        for step in range(len(schedule.resolutions) * (part.updates + 1)):
            run.step(run.fetch(step))

    return once


def compared(seconds: dict[str, list[float]], steps: dict[str, Schedule], units: dict[str, int]) -> dict:
    """Seconds a unit of each resolution, and of the scale-wise ones the share of the full one's with as many steps."""
    shares = {}
    for name, schedule in steps.items():
        if name.startswith("scale-wise"):
            full = name.replace("scale-wise", "full")
            shares[name] = {"of the full one's time": ratio(seconds, name, full), "of its tokens": schedule.cost}
    return {"seconds": {name: [s / units[name] for s in each] for name, each in seconds.items()}, "shares": shares}


def main(name: str) -> None:
    size = SIZES[name]
    steps, batch = schedules(size.four, size.six), size.batch
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        teacher = teacher_folder(root, size.network, size.four[-1])
        # Outside the embedded size latents are not decoded: no autoencoder comes with the project.
        codec = autoencoder.load(VAE, 1) if name == "embedded" else Codec(None, 4)
        labels, seeds = torch.arange(batch) % CLASSES, list(range(batch))
        made = samplers(teacher, steps, codec, size.guided)
        calls = {key: partial(sampler, seeds, labels) for key, sampler in made.items()}
        sampling = in_turn(calls, size.repeats, warmup=1)
        result = {"batch": batch, "sampling": compared(sampling, steps, dict.fromkeys(sampling, batch))}
        pyramid = pyramid_folder(root, {*size.four, *size.six}, 4 * batch)
        for losses in size.losses:
            rounds = {key: cycle(teacher, pyramid, schedule, LOSSES[losses], batch) for key, schedule in steps.items()}
            training = in_turn(rounds, max(1, size.repeats // 3), warmup=1)
            units = {key: len(schedule.resolutions) for key, schedule in steps.items()}
            result[f"training, {losses}"] = compared(training, steps, units)
    save(f"swd_students_{name}", result)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "embedded")
