"""Ours against the public peers and against plain torch, in turn in one run: times faster, with quartiles.

    python -m benchmarks.peers [SECTION ...]     # all by default; two minutes on one core

Sections: training, sampling, latents, evaluation, transform, allocator. Results go to results/peers.json, which keeps
the sections that are not run. Networks, data, precision and batch are equal. The bars: 1.2 times as fast as each peer,
and the time of the floor, plain torch (`benchmarks.plain`), within 5 %. Ours and the floor run with the allocator that
the stages set, the peers with glibc's own; the section 'allocator' shows what that makes.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial

import pywt
import torch

from benchmarks import floor, theirs, work
from benchmarks.common import RESULTS, in_turn, ratio, save
from benchmarks.floor import FLOOR, OURS
from multiscale.core.device import default_device
from multiscale.core.memory import allocate, keep_freed_memory
from multiscale.evaluation import metrics
from multiscale.methods.wmgm.wavelet import Wavelet
from stages.common.cluster import Pool
from stages.common.extraction import Extractor, extract
from stages.latents import Encoder

BAR, FLOOR_BAR = 1.2, 0.95
DEFAULT_ALLOCATOR = {"mapped_from": 2**25, "kept": 2**26}  # glibc gets there by itself after the first large blocks
GLIBC = "glibc's allocator"
REPEATS = 11


def compared(
    what: str,
    calls: dict[str, Callable[[], object]],
    repeats: int,
    block: int = 1,
    settle: bool = True,
    **about: object,
) -> dict:
    """One row: seconds of each version in turn, and how many times faster ours is than each of the others.

    A repeat is `block` calls. With `settle` a version is called once more before each, without being timed, because
    the allocator changed.
    """

    def turn(name: str) -> None:
        if name in (OURS, FLOOR):
            keep_freed_memory()
        else:
            allocate(**DEFAULT_ALLOCATOR)
        if settle:
            calls[name]()

    blocks = {name: work.times(block, call) for name, call in calls.items()}
    seconds = in_turn(blocks, repeats, warmup=1, before=turn)
    faster = {name: ratio(seconds, name, OURS) for name in calls if name != OURS}
    bars = {FLOOR: FLOOR_BAR, GLIBC: 0.0}
    holds = {name: each["median"] >= bars.get(name, BAR) for name, each in faster.items()}
    print(f"{what}: " + ", ".join(f"{each['median']:.2f}x {name}" for name, each in faster.items()), file=sys.stderr)
    return {
        "what": what,
        "repeats": repeats,
        "block": block,
        **about,
        "times_faster": faster,
        "holds": holds,
        "seconds": seconds,
    }


def training() -> list[dict]:
    params, rows = work.recipe(), []
    dit, unet = (params.parts[name].network for name in ("dit", "ddpm"))
    unet, z, x = unet.model_copy(update={"top_block": True}), work.latents(params), work.pixels(params)
    peers = (
        (theirs.dit(dit, z.shape[-1]), z, True),
        (theirs.unet(x.shape[-1], x.shape[1], unet), x / 127.5 - 1, False),
    )
    for pair, (net, data, conditional) in zip(floor.training_steps(), peers):
        step = theirs.trainer(net, data, work.labels(), pair.about["batch"], pair.about["precision"], conditional)
        calls = {**pair.calls, "diffusers": step}
        rows.append(compared(pair.what, calls, REPEATS, pair.block, **pair.about))
    return rows


def sampling() -> list[dict]:
    params, rows = work.recipe(), []
    dit, unet = (params.parts[name].network for name in ("dit", "ddpm"))
    unet, x = unet.model_copy(update={"top_block": True}), work.pixels(params, 1)
    for pair in floor.samplers():
        batch, steps = pair.about["batch"], pair.about["steps"]
        if pair.what == "sampling, dit":
            net = theirs.dit(dit, work.latents(params, 1).shape[-1], classes=1000)  # its label of 'no class' is 1000
            scale, precision = pair.about["guidance_scale"], pair.about["precision"]
            call = theirs.sample_dit(net, work.codec(params).vae, work.labels(batch), steps, scale, precision)
        else:
            call = theirs.sample_unet(theirs.unet(x.shape[-1], x.shape[1], unet), batch, steps)
        rows.append(compared(pair.what, {**pair.calls, "diffusers": call}, 5, **pair.about))
    return rows


def latents() -> list[dict]:
    params = work.recipe()
    codec, batch = work.codec(params), params.run.batch
    vae, encoder = copy.deepcopy(codec.vae), Encoder(codec, params.latents.precision)
    images, resolution, device = work.pixels(params, batch), params.data.resolution, default_device()
    placed = copy.deepcopy(vae).to(device, memory_format=torch.channels_last)
    calls = {
        FLOOR: lambda: theirs.encode(placed, images.contiguous(memory_format=torch.channels_last), encoder.precision),
        "diffusers": lambda: theirs.encode(vae, images, encoder.precision),
        OURS: partial(encoder.encode, images, resolution),
    }
    return [compared("latents", calls, REPEATS, batch=batch, precision=encoder.precision)]


def evaluation(count: int = 400) -> list[dict]:
    params = work.recipe()
    section, batch = params.evaluate, params.run.batch
    generated, real = work.pixels(params, 2 * count).split(count)
    splits, neighbourhood = section.is_splits, section.prc_neighborhood
    made: dict[str, float] = {}

    def ours() -> None:
        workers = Pool(partial(Extractor, section.extractor, section.weights))
        (features, logits), (others, _) = (
            extract("benchmark", workers, lambda rows, x=x: x[rows], count, batch) for x in (generated, real)
        )
        metrics.kid(features, others)  # part of what is timed
        found = metrics.distances(features, others, logits, is_splits=splits, prc_neighborhood=neighbourhood)
        made[OURS] = found["fd"]

    def peer() -> None:
        found = theirs.evaluate(section.extractor, theirs.Images(generated), theirs.Images(real), batch)
        made["torch-fidelity"] = found["frechet_inception_distance"]

    about = {"images": count, "extractor": section.extractor, "batch": batch, "precision": "fp32"}
    row = compared("evaluation", {"torch-fidelity": peer, OURS: ours}, 2, settle=False, **about)
    return [{**row, "frechet_distances": made}]


def allocator() -> list[dict]:
    """Ours with glibc's own allocator against ours as the stages run it."""
    params = work.recipe()
    section, images = params.evaluate, work.pixels(params, params.run.batch)
    extract = Extractor(section.extractor, section.weights)
    batches = {"features": (partial(extract.extract, images), 1, params.run.batch)}
    batches |= {pair.what: (pair.calls[OURS], pair.block, pair.about["batch"]) for pair in floor.training_steps()}
    return [
        compared(what, {GLIBC: call, OURS: call}, 5, block, batch=batch)
        for what, (call, block, batch) in batches.items()
    ]


def transform() -> list[dict]:
    x, rows, mode = torch.rand(16, 3, 256, 256), [], "periodization"
    peer = importlib.import_module("ptwt") if importlib.util.find_spec("ptwt") else None
    if peer is None:
        print("ptwt is not installed: PyWavelets is the only peer of the transform", file=sys.stderr)
    for name in ("haar", "db4"):
        wavelet, array = Wavelet(name), x.numpy()
        low, details = wavelet.split(x)
        theirs_ = pywt.dwt2(array, name, mode)
        forward = {"pywt": partial(pywt.dwt2, array, name, mode), OURS: partial(wavelet.split, x)}
        inverse = {"pywt": partial(pywt.idwt2, theirs_, name, mode), OURS: partial(wavelet.merge, low, details)}
        if peer:
            made = peer.wavedec2(x, name, mode="periodic", level=1)
            forward["ptwt"] = partial(peer.wavedec2, x, name, mode="periodic", level=1)
            inverse["ptwt"] = partial(peer.waverec2, made, name)
        for kind, calls in (("forward", forward), ("inverse", inverse)):
            rows.append(compared(f"transform, {name} {kind}", calls, REPEATS, shape=list(x.shape), precision="fp32"))
    return rows


SECTIONS = {each.__name__: each for each in (training, sampling, latents, evaluation, transform, allocator)}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(SECTIONS):
        sys.exit(f"{', '.join(sorted(unknown))}: no such section; allowed: {', '.join(SECTIONS)}")
    path = RESULTS / "peers.json"
    before = json.loads(path.read_text())["sections"] if path.exists() else {}
    work.as_stages_do(work.recipe())
    made = {name: SECTIONS[name]() for name in names or SECTIONS}
    sections = {name: made.get(name, before.get(name)) for name in SECTIONS if name in made or name in before}
    packages = ["torch-fidelity", "PyWavelets", "accelerate"]
    packages += ["ptwt"] if importlib.util.find_spec("ptwt") else []
    save("peers", {"bars": {"peers": BAR, FLOOR: FLOOR_BAR}, "sections": sections}, packages)


if __name__ == "__main__":
    main(sys.argv[1:])
