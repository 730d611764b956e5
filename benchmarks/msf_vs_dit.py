"""MSF against DiT: seconds per image in turn, with the trained networks of the pipeline, and FLOPs at published sizes.

    python -m benchmarks.msf_vs_dit        # after `dvc repro`

MSF's published steps are 100 at the first scale (guided) and 50 at the second (not guided); here it takes 24 and 12,
whatever the recipe says. DiT is timed with as many guided steps as MSF's first scale ("equal steps", the 4x of version
2), and with as many as both scales together.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import in_turn, ratio, save
from multiscale import model
from multiscale.flow import Solver
from multiscale.methods.msf.settings import MSFMethod
from multiscale.networks.dit import DiTNetwork
from stages.common import settings
from stages.common.paths import MODELS

REPEATS = 9
STEPS, GUIDANCE = (24, 12), 1.5  # of MSF's scales; the first one is guided, and DiT
LONGER = "dit, steps of both scales"


def flops(preset: str, resolution: int, inputs: int) -> int:
    """One forward pass of a published network on one latent of a resolution."""
    with torch.device("meta"):
        net = DiTNetwork(preset=preset).build(inputs, 4, classes=1000)
        x, t, label = torch.empty(1, inputs, resolution, resolution), torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(x, t, label)
    return counter.get_total_flops()


def method(*scales: Solver) -> MSFMethod:
    return MSFMethod(kind="msf", scales=list(scales))


def main() -> None:
    params = settings.load()
    guided, both = Solver(steps=STEPS[0], guidance_scale=GUIDANCE), Solver(steps=sum(STEPS), guidance_scale=GUIDANCE)
    msf, dit, longer = method(guided, Solver(steps=STEPS[1], guidance_scale=1.0)), method(guided), method(both)
    folders = {"msf": ("msf", msf), "dit": ("dit", dit), LONGER: ("dit", longer)}
    samplers = {
        name: model.load(MODELS / folder, section, params.sample.precision)
        for name, (folder, section) in folders.items()
    }
    whole = params.sample.batch
    labels = torch.arange(whole) % 10
    found = {}
    for batch in (whole, 1):
        calls = {name: partial(made, list(range(batch)), labels[:batch]) for name, made in samplers.items()}
        seconds = in_turn(calls, REPEATS, warmup=1)
        found[f"batch {batch}"] = {
            "msf_times_faster": {name: ratio(seconds, name, "msf") for name in samplers if name != "msf"},
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
    about = {
        "steps": {"msf": STEPS, "dit": STEPS[0]},
        "guidance_scale": GUIDANCE,
        "repeats": REPEATS,
        "parameters": {
            name: sum(p.numel() for net in made.networks.values() for p in net.parameters())
            for name, made in samplers.items()
        },
    }
    save("msf_vs_dit", {**about, **found, "published_sizes": published})


if __name__ == "__main__":
    main()
