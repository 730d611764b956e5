"""Times a four-step student of captions32 against its teacher with ten and with 28 guided steps, as SD3.5 samples.

python -m benchmarks.swd_captions    # after: python -m stages.recipe captions32; make repro; here models/ is read

Batches of 8 with one thread, decoding included, in turn.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import in_turn, ratio, save
from multiscale import methods, model
from stages.common.paths import MODELS

BATCH, REPEATS, GUIDANCE = 8, 15, 3.5


def main() -> None:
    torch.set_num_threads(1)
    method = methods.settings("swd").METHOD
    solvers = {steps: {"steps": steps, "guidance_scale": GUIDANCE} for steps in (10, 28)}
    samplers = {
        f"teacher, {steps} steps": model.load(
            MODELS / "swd-teacher", method.model_validate({"kind": "swd", "solver": solver})
        )
        for steps, solver in solvers.items()
    } | {name: model.load(MODELS / name) for name in ("swd", "swd-full")}
    seeds, prompts = list(range(BATCH)), torch.arange(1, BATCH + 1)
    with torch.inference_mode():
        calls = {name: partial(sampler, seeds, prompts) for name, sampler in samplers.items()}
        seconds = in_turn(calls, REPEATS)
    ratios = {name: ratio(seconds, name, "swd") for name in seconds if name != "swd"}
    save("swd_captions", {"batch": BATCH, "seconds": seconds, "over swd": ratios}, ("diffusers",))


if __name__ == "__main__":
    main()
