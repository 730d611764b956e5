"""What takes seconds to import is imported where it is used: commands answer at once, stages load what they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multiscale.core.compat import absent
from multiscale.core.terminal import announce

ROOT = Path(__file__).parent.parent
# Of each, the import takes a tenth of a second or more.
SLOW = {"torch", "pydantic", "polars", "pyarrow", "matplotlib", "diffusers", "prefect", "dvc", "ray", "optuna"}
FILES = [*(ROOT / "stages").glob("*.py"), *(ROOT / "flows").rglob("*.py"), ROOT / "multiscale" / "__main__.py"]
COMMANDS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for file in FILES
    if 'if __name__ == "__main__":' in file.read_text() and file.name != "call.py"  # which stands for `python`
)
STAGES = [name for name in COMMANDS if name.startswith("stages.")]


def run(code: str) -> tuple[str, set[str]]:
    """What code prints in a process of its own, in the project, and the modules that the process has at its end."""
    told = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    done = subprocess.run([sys.executable, "-B", "-c", told + code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, set(done.stderr.splitlines()[-1].split())


def command(name: str, *arguments: str, before: str = "") -> tuple[str, set[str]]:
    """`run` of what `python -m NAME arguments...` does, after the code `before`."""
    code = f"import runpy; sys.argv = {['', *arguments]}; runpy.run_module('{name}', None, '__main__', alter_sys=True)"
    return run(f"{before}\n{code}")


def test_every_command_is_known():
    assert {"flows.dashboard", "flows.reproduce", "flows.sweeps", "multiscale", "stages.recipe"} < set(COMMANDS)
    assert {"stages.download", "stages.train", "stages.sample", "stages.report"} < set(STAGES)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_before_the_imports(name):
    out, modules = command(name, "--help")
    assert out.startswith(f"usage: python -m {name} ")
    assert sorted(modules & SLOW) == []


@pytest.mark.parametrize(
    "command_line",
    [
        "flows.dashboard",
        "flows.reproduce msf",
        "flows.sweeps dit",
        "multiscale sample models/none",
        "stages.code",
        "stages.compare",
        "stages.recipe embedded",
        "stages.recipe new mine --images nowhere",
        "stages.train dit",
    ],
)
def test_who_waits_at_a_terminal_is_told_for_what_before_the_imports(command_line):
    told = "from multiscale.core import terminal; terminal.announce = lambda what: (print(what), sys.exit())"
    name, *arguments = command_line.split()
    out, modules = command(name, *arguments, before=told)
    assert out.count("\n") == 1 and out.split()[0] in ("loading", "checking", "looking", "reading")
    assert sorted(modules & SLOW) == []


def test_only_a_terminal_is_told(capsys, monkeypatch):
    announce("loading torch")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    announce("loading torch")
    assert capsys.readouterr() == ("", "loading torch ...\n")


@pytest.mark.parametrize("name, folder", [("stages.recipe", "recipes"), ("flows.sweeps", "sweeps")])
def test_a_list_needs_no_imports(name, folder):
    out, modules = command(name)
    listed = [line.split()[0] for line in out.splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "params" / folder).glob("*.yaml"))
    assert sorted(modules & SLOW) == []


def test_stages_start_with_what_every_run_of_them_needs(tmp_path):
    """Not with Ray, with what one branch needs, or with torch's compiler or shards, as slow as the rest of torch."""
    out, modules = run(f"""
import torch, {", ".join(STAGES)}
from pathlib import Path
from multiscale.evaluation import features
from multiscale.networks import autoencoder
from stages.common import settings
print(len(settings.load().parts) > 0)
print(autoencoder.codec_of(Path({str(tmp_path)!r})).vae)  # of a model of pixels
net = features.create("efficientnet-lite0", None, torch.device("cpu"))
print(*(tuple(found.shape) for found in features.extract(net, torch.zeros(2, 1, 32, 32, dtype=torch.uint8))))
""")
    assert out == "True\nNone\n(2, 1280) (2, 1000)\n"
    assert {"torch", "polars", *STAGES} <= modules
    later = {"torch._dynamo", "torchvision", "torch_fidelity", "scipy", "diffusers", "transformers", "peft", "ray"}
    later |= {"sympy", "torch.distributed.fsdp", "torch.distributed.tensor"}
    assert sorted(modules & later) == []


def test_the_autoencoder_starts_without_what_diffusers_loads_for_its_pipelines():
    out, modules = run("""
from multiscale.networks import autoencoder
net = autoencoder.kl_class()(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=["DownEncoderBlock2D"] * 2,
                             up_block_types=["UpDecoderBlock2D"] * 2)
import torch
print(tuple(net.encode(torch.zeros(1, 3, 8, 8)).latent_dist.mean.shape))
autoencoder.kl_class()  # again: what diffusers has missed is not loaded either
hidden = {"peft", "scipy", "sympy", "torch._dynamo", "torchvision", "transformers"}
print(sorted(hidden & sys.modules.keys()))
import scipy.stats  # hidden only while diffusers was imported, as is the compiler
latent = torch.ones(1, 4, 4, 4)
compiled = torch.compile(net.decoder, backend="eager", fullgraph=True)
print(torch.equal(compiled(latent), net.decoder(latent)))
""")
    assert out == "(1, 4, 4, 4)\n[]\nTrue\n"
    assert {"diffusers", "scipy"} <= modules


def test_what_diffusers_has_found_stays():
    out, _ = run("""
import diffusers  # before us, as users may
from multiscale.networks import autoencoder
print(autoencoder.kl_class().__name__, diffusers.utils.is_peft_available())
""")
    assert out == "AutoencoderKL True\n"


def test_what_transformers_has_not_loaded_yet_diffusers_finds():
    out, _ = run("""
import transformers  # before us, as users may: most of it loads when it is named
from multiscale.networks import autoencoder
print(autoencoder.kl_class().__name__)
""")
    assert out == "AutoencoderKL\n"


def test_what_is_loaded_already_is_not_hidden(monkeypatch):
    import colorsys

    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with absent("colorsys", "wave"):
        import colorsys as again

        assert again is colorsys
        with pytest.raises(ImportError):
            import wave
    import wave

    assert wave.__name__ == "wave" and sys.modules["colorsys"] is colorsys


def test_metrics_start_without_torchs_compiler_which_still_loads_where_it_is_used():
    out, modules = run("""
import torch
from multiscale.core.compat import make_torchvision_importable
make_torchvision_importable()
import torch_fidelity.metric_fid
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
import torch._dynamo
print(torch._dynamo.utils.is_compile_supported.__module__)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
""")
    assert out == "[]\ntorch._dynamo.utils\n2.0\n"
    assert {"torchvision", "torch_fidelity"} <= modules


def test_a_stage_computes_with_its_threads_and_one_of_numpy_and_scipy_whatever_the_shell_says():
    toy = """
import os, sys, types
os.environ |= {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}

def main(params):
    import numpy, scipy.linalg, torch
    from threadpoolctl import threadpool_info
    openblas = (each["num_threads"] for each in threadpool_info() if each["internal_api"] == "openblas")
    print(torch.get_num_threads(), *openblas)

sys.modules["stages.toy"] = types.SimpleNamespace(main=main)
from stages.common import harness
harness._run("stages.toy", {})
"""
    out, _ = run(toy)
    assert len(out.split()) > 1 and set(out.split()) == {"1"}


LOADS = {
    "warm": "from flows import warm; warm.load()",
    "harness": "from stages.common import harness; harness._run('', {})",
}


@pytest.mark.parametrize("own", [None, "ACTIVE"])
@pytest.mark.parametrize("load", LOADS)
def test_threads_sleep_while_they_wait_unless_the_shell_says_otherwise(load, own, monkeypatch):
    """torch's read the variable when torch is loaded."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    out, _ = run(f"""
import os, sys

class Told:
    def find_spec(self, name, *about):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.exit()

sys.meta_path.insert(0, Told())
{LOADS[load]}
""")
    assert out == f"{own or 'PASSIVE'}\n"
