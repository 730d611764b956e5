"""MSF against DiT: seconds per image in turn, with the trained networks of the pipeline, and FLOPs at published sizes.

    python -m benchmarks.msf_vs_dit        # after `dvc repro`

The published ratio of steps is 100 on the first scale (guided) to 50 on the second (not guided). Against it stand DiT
with as many guided steps as MSF's first scale ("equal steps", v2's claim of 4x), and DiT with 150, as many as both
scales together.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import in_turn, ratio, save
from multiscale import methods
from multiscale.networks import autoencoder
from multiscale.networks.dit import PRESETS, DiT
from stages.common import settings
from stages.common.paths import MODELS, VAE
from stages.sample import labels_of

REPEATS = 9


def sampler(name: str, section: dict, params):
    codec = autoencoder.load(VAE, params.data.channels)
    folders = [MODELS / name / part for part in section["parts"]]
    return methods.sampler(section["kind"]).load_sampler(folders, section, codec, params.sample.precision)


def flops(preset: str, side: int, inputs: int) -> int:
    """One forward of a published network on one latent of a side."""
    depth, width, heads, patch = PRESETS[preset]
    with torch.device("meta"):
        net = DiT(inputs, 4, depth, width, heads, patch, 1000)
        x, t, label = torch.empty(1, inputs, side, side), torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(x, t, label)
    return counter.get_total_flops()


def main() -> None:
    params = settings.load("data", "sample", "methods")
    msf, dit = params.methods["msf"].model_dump(), params.methods["dit"].model_dump()
    longer = sum(scale["steps"] for scale in msf["scales"])
    sections = {
        "msf": msf,
        "dit": dit,
        "dit, steps of both scales": {**dit, "scales": [{**dit["scales"][0], "steps": longer}]},
    }
    samplers = {name: sampler(name.split(",")[0], section, params) for name, section in sections.items()}
    whole = params.sample.batch
    labels = labels_of(whole, 10)
    found = {}
    for batch in (whole, 1):
        calls = {name: partial(made, list(range(batch)), labels[:batch]) for name, made in samplers.items()}
        seconds = in_turn(calls, REPEATS, warmup=1)
        found[f"batch {batch}"] = {
            "msf_times_faster": {name: ratio(seconds, name, "msf") for name in sections if name != "msf"},
            "seconds_per_image": {name: [s / batch for s in each] for name, each in seconds.items()},
        }
    first, second, full = flops("MSF-0", 24, 4), flops("MSF-1", 32, 8), flops("DiT-XL/2", 32, 4)
    published = {
        "msf_gflops": (100 * 2 * first + 50 * second) / 1e9,
        "dit_xl_gflops_100_steps": 100 * 2 * full / 1e9,
        "dit_xl_gflops_250_steps": 250 * 2 * full / 1e9,
    }
    published["ratio_100_steps"] = published["dit_xl_gflops_100_steps"] / published["msf_gflops"]
    published["ratio_250_steps"] = published["dit_xl_gflops_250_steps"] / published["msf_gflops"]
    parameters = {
        name: sum(p.numel() for net in made.networks.values() for p in net.parameters())
        for name, made in samplers.items()
    }
    steps = {"msf": [scale["steps"] for scale in msf["scales"]], "dit": dit["scales"][0]["steps"]}
    about = {"steps": steps, "cfg": dit["scales"][0]["cfg"], "repeats": REPEATS, "parameters": parameters}
    save("msf_vs_dit", {**about, **found, "published_sizes": published})


if __name__ == "__main__":
    main()
