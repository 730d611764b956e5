"""An exported method is a pipeline of diffusers that makes the images of its sampler, without the project around it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, called, sealed
from torch import nn

import multiscale
from multiscale import card, methods
from multiscale.core import models
from multiscale.core.storage import write_sealed_json
from multiscale.methods.msf.component import built as scale
from multiscale.methods.msf.settings import MSFMethod
from multiscale.methods.pyramidal.component import built as pyramidal
from multiscale.methods.shift.component import built as shifted
from multiscale.methods.ssd.component import built as denoiser
from multiscale.methods.ssd.settings import AncestralSolver, SSDMethod
from multiscale.methods.swd.component import built as student
from multiscale.methods.wmgm.component import built as bands
from multiscale.networks import autoencoder

SEEDS, CLASSES = [3, 4, 5], [2, 0, 1]
LATENT = {"shift": [0.1, -0.2], "scale": [0.8, 1.2]}
DIT = {"depth": 1, "width": 16, "heads": 2, "patch": 2}
UNET = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "heads": 1, "groups": 4, "top_block": False}
ONE, THREE = {"shift": [0.1], "scale": [0.3]}, {"shift": [0.0] * 3, "scale": [0.2] * 3}
SCALES = {"kind": "msf", "role": "scale", "resolutions": [4, 8], "target": LATENT, "latent": LATENT, "network": DIT}
COARSE = {"kind": "wmgm", "role": "coarse", "channels": 1, "resolution": 8, "wavelet": "haar", "levels": 1}
COARSE |= {"whitening": "scale", "predicts": "x0", "network": UNET}
LEVELS = {"wavelet": "haar", "standardised": True, "coarse": [ONE, ONE], "details": [THREE]}
DETAILS = {"kind": "wmgm", "role": "details", "covers": [1], "levels": LEVELS, "noisy": True}
DETAILS |= {"generator": {"widths": [8, 16], "norm": "group", "head": "linear"}}
SSD = {"kind": "ssd", "role": "denoiser", "channels": 1, "resolution": 16, "predicts": "x0", "unet": "flexi"}
SSD |= {"process": {"steps": 250, "levels": 2}, "network": UNET}
SCHEDULE = {"resolutions": [4, 8], "sigmas": [1.0, 0.7]}
STUDENT = {"kind": "swd", "role": "student", "channels": 2, "latent": LATENT, "schedule": SCHEDULE, "upscaling": "B"}
STUDENT |= {"network": DIT}
PYRAMIDAL = {"kind": "pyramidal", "role": "flow", "channels": 2, "resolution": 8, "latent": LATENT, "jumps": [0.5]}
PYRAMIDAL |= {"network": DIT}
SHIFT = {"kind": "shift", "role": "teacher", "channels": 2, "latent": LATENT, "network": DIT}
SHIFT |= {"schedule": {"resolutions": [4, 8], "levels": [1.0, 0.7]}}

PARTS = {
    "msf": {"msf-0": (scale, SCALES | {"index": 0}), "msf-1": (scale, SCALES | {"index": 1})},
    "wmgm": {"wmgm-low": (bands, COARSE), "wmgm-details": (bands, DETAILS)},
    "ssd-2l": {"ssd-2l": (denoiser, SSD)},
    "swd": {"swd": (student, STUDENT)},
    "pyramidal": {"pyramidal": (pyramidal, PYRAMIDAL)},
    "shift": {"shift": (shifted, SHIFT)},
}
COMPONENTS = {
    "msf": ["msf_0", "msf_1", "vae"],
    "wmgm": ["wmgm_details", "wmgm_low"],
    "ssd-2l": ["ssd_2l"],
    "swd": ["swd", "vae"],
    "pyramidal": ["pyramidal", "vae"],
    "shift": ["shift", "vae"],
}

FAST = {"ssd-2l": (["--set", "solver.steps=4"], SSDMethod(kind="ssd", solver=AncestralSolver(steps=4)))}

# What an environment without the project has not, nor anything that only other methods need. `diffusers` takes some of
# them where it finds them.
MISSING = "stages flows dvc prefect ray polars ruamel scipy mlxtend torch_fidelity torchvision transformers peft psutil"
OTHER = """
import os, sys
sys.modules |= dict.fromkeys(sys.argv[1].split())
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
for line in sys.stdin:  # each pipeline in a process of its own, forked after these imports, which take seconds
    if child := os.fork():
        print(os.waitpid(child, 0)[1], flush=True)
    else:
        break
else:
    sys.exit()
folder, out = line.split()
sys.path.insert(0, folder)
import multiscale
assert multiscale.__file__.startswith(folder), multiscale.__file__
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
asked = {"classes": CLASSES, "seeds": SEEDS}
pictures = pipeline(**asked).images
half = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.float16)
torch.save({
    "names": list(pipeline.components),
    "pt": pipeline(**asked, output_type="pt").images,
    "np": torch.from_numpy(pipeline(**asked, output_type="np", return_dict=False)[0]),
    "pil": [(each.size, each.mode, list(each.getdata())) for each in pictures],
    "half": half(**asked, output_type="pt").images,
    "types": [str(net.dtype) for net in (*pipeline.components.values(), *half.components.values())],
}, out)
"""


def trained(root: Path, name: str) -> Path:
    """A method with random weights, as the stages leave it."""
    folder, random = root / "models" / name, torch.Generator().manual_seed(1)
    for part, (built, about) in PARTS[name].items():
        (folder / part).mkdir(parents=True)
        config, net = built({"format": 1, "classes": 3} | about if "covers" not in about else {"format": 1} | about)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2, generator=random)
        models.save(folder / part, net.state_dict(), config)
        (folder / part / "history.jsonl").write_text('{"images": 512, "loss": 1}\n{"images": 12345, "loss": 0.5}\n')
        if "latent" in about:
            torch.manual_seed(0)
            vae = autoencoder.build(1, 2, (8, 8), 1, 4)
            vae.save_pretrained(folder / part / "autoencoder", safe_serialization=True)
            (folder / part / "autoencoder" / "images.json").write_text('{"channels": 1}')
        sealed(folder / part)
    return folder


def exported(folder: Path, to: Path, *more: str) -> Path:
    done = called("multiscale", "export", str(folder), "--to", str(to), *more)
    assert done.returncode == 0 and done.stdout == f"{to}\n", done.stderr
    return to


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[Callable[[Path], dict]]:
    """What a pipeline makes in a process that finds nothing of the project but what is in the folder."""
    place = tmp_path_factory.mktemp("apart")
    code = OTHER.replace("CLASSES", str(CLASSES)).replace("SEEDS", str(SEEDS))
    environment = os.environ | {"PYTHONPATH": "", "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, MISSING], cwd=place, env=environment, **pipes) as other:

        def opened(folder: Path) -> dict:
            print(folder, place / "made.pt", file=other.stdin, flush=True)
            assert other.stdout.readline() == "0\n", "its traceback is among what was printed"
            return torch.load(place / "made.pt")

        yield opened
        other.kill()


@pytest.mark.parametrize("name", PARTS)
def test_an_exported_method_makes_the_same_images_without_the_project(name, tmp_path, opened):
    folder = trained(tmp_path, name)
    given, settings = FAST.get(name, ([], None))
    made = opened(exported(folder, tmp_path / "out" / name, *given))
    wanted = multiscale.load(folder, settings).sample(CLASSES, SEEDS)
    assert made["names"] == COMPONENTS[name]
    assert torch.equal(made["pt"], wanted) and wanted.std() > 0.01
    assert torch.equal(made["np"], wanted.permute(0, 2, 3, 1))
    for (size, mode, pixels), image in zip(made["pil"], wanted):
        assert size == (16, 16) and mode == "L" and pixels == (image.flatten() * 255).round().int().tolist()
    count = len(made["names"])
    assert made["types"] == ["torch.float32"] * count + ["torch.float16"] * count, "sampling leaves components alone"
    assert (made["half"] - wanted).abs().mean() < 0.05


def test_a_student_keeps_its_schedule_and_a_pipeline_the_solvers_it_is_given(tmp_path, opened):
    out = exported(trained(tmp_path, "swd"), tmp_path / "swd")
    assert json.loads((out / "swd" / "config.json").read_text())["about"]["schedule"] == SCHEDULE
    folder, given = trained(tmp_path, "msf"), ["scales.0.steps=2", "scales.1.steps=3", "scales.1.guidance_scale=2.0"]
    made = opened(exported(folder, tmp_path / "msf", "--set", *given))
    solvers = [{"steps": 2}, {"steps": 3, "guidance_scale": 2.0}]
    settings = MSFMethod.model_validate({"kind": "msf", "scales": solvers})
    assert torch.equal(made["pt"], multiscale.load(folder, settings).sample(CLASSES, SEEDS))
    assert not torch.equal(made["pt"], multiscale.load(folder).sample(CLASSES, SEEDS))


def test_a_folder_holds_the_code_of_its_method_alone_and_what_installs_it(tmp_path):
    out = exported(trained(tmp_path, "wmgm"), tmp_path / "wmgm")
    kept = {path.name for path in (out / "multiscale" / "methods").iterdir() if path.is_dir()}
    assert kept == {"wmgm"} and not list(out.rglob("__pycache__")) and (out / "LICENSE").exists()
    project = (out / "pyproject.toml").read_text()
    assert '"PyWavelets>=' in project and not re.search("dvc|prefect|ray|polars|[+]", project)
    assert {path.name for path in tmp_path.iterdir()} == {"models", "wmgm"}, "nothing is left beside it"


def test_each_method_has_its_papers_which_the_documentation_cites():
    told = "".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    for component in filter(None, map(methods.component, methods.names())):
        papers = getattr(component, "PAPERS", {})
        assert papers and all(f"](https://arxiv.org/abs/{number})" in told for number in papers)


def test_the_card_tells_data_budget_metrics_with_their_protocol_licence_and_an_example(tmp_path):
    folder = trained(tmp_path, "msf")
    text = (exported(folder, tmp_path / "bare") / "README.md").read_text()
    assert "Not measured." in text and "Unknown: no params.yaml" in text and "| msf-1 | 12,345 |" in text
    data = "data: {name: digits, source: url, url: 'https://a.b/c', resolution: 16, channels: 1}\n"
    methods = "methods: {msf: {kind: msf, scales: [{steps: 2}, {steps: 3}]}}\n"
    (tmp_path / "params.yaml").write_text(data + methods)
    (tmp_path / "reports" / "measurements").mkdir(parents=True)
    found = {"kid": 0.01234, "kid_se": 0.0021, "fd": 60.5, "memorised": None, "recall": 0.5}
    protocol = {"metric": "EffLite0", "extractor": "efficientnet-lite0", "n": 1000, "second_metric": None}
    measurements = tmp_path / "reports" / "measurements" / "msf.json"
    write_sealed_json(measurements, found | {"protocol": protocol})
    out = exported(folder, tmp_path / "told", "--license", "cc-by-4.0")
    text = (out / "README.md").read_text()
    for part in (
        "license: cc-by-4.0\n",
        "| KID-EffLite0 | 0.01234 +- 0.0021 |",
        "| FD-EffLite0 | 60.5 |",
        "- n: 1000\n",
        "digits (url, https://a.b/c), 16 pixels, grey.",
        "made with other solvers than those above: `settings={'kind': 'msf', 'scales': [{'steps': 2}, {'steps': 3}]}`",
        'DiffusionPipeline.from_pretrained("told", trust_remote_code=True)',
        "pipeline(classes=[0, 1], seeds=[0, 1])",
        "Multi-Scale Latent Factorize](https://arxiv.org/abs/2501.13349), or the control",
    ):
        assert part in text, part
    assert "memorised" not in text and "second" not in text
    given = ["--set", "scales.0.steps=2", "scales.1.steps=3"]
    assert "made with the solvers above" in (exported(folder, tmp_path / "same", *given) / "README.md").read_text()
    (tmp_path / "params.yaml").write_text("data: [")
    done = called("multiscale", "export", str(folder), "--to", str(tmp_path / "other"))
    assert done.returncode == 2 and "params.yaml: " in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "params.yaml").unlink()
    measurements.write_text(measurements.read_text().replace("60.5", "50.5"))
    done = called("multiscale", "export", str(folder), "--to", str(tmp_path / "other"))
    assert done.returncode == 2 and "msf.json: damaged" in done.stderr and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["--to", "there"], "error: --to: there is there already; allowed: "),
        (["--to", "file/x"], "error: --to: file/x: "),
        (["--to", "new", "--push", "a/b"], "error: --license: --push publishes the weights"),
        (
            ["--to", "new", "--license", "mit", "--push", "a/b/c"],
            "error: --push: 'a/b/c' is not allowed; allowed: OWNER/NAME",
        ),
        (["--to", "new", "--set", "wrong=2"], "error: --set: settings: {"),
        (["--to", "new", "--set", "scales.2.steps=2"], "error: scales: 3 is not allowed; allowed: 2, one a scale"),
    ],
    ids=["exists", "cannot be written", "no licence", "no repository", "no setting", "another scale"],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(asked, line, tmp_path, monkeypatch):
    folder = trained(tmp_path, "msf")
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").write_text("")
    before = sorted(map(str, tmp_path.rglob("*")))
    done = called("multiscale", "export", str(folder), *asked)
    assert done.returncode == 2 and done.stderr.count("\n") <= 2 and "Traceback" not in done.stderr
    assert line in done.stderr
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_method_without_components_is_neither_exported_nor_opened(tmp_path, monkeypatch):
    from multiscale.pipeline import Network

    folder, out = trained(tmp_path, "ssd-2l"), tmp_path / "out"
    monkeypatch.setattr(methods, "component", lambda kind: None)
    done = called("multiscale", "export", str(folder), "--to", str(out))
    line = "kind: 'ssd' is not allowed; allowed: a method with a module `component`"
    assert done.returncode == 2 and f"{line}\n" in done.stderr and not out.exists()
    with pytest.raises(ValueError, match=f"^{line}$"):
        Network(SSD)


def test_what_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    folder = trained(tmp_path, "ssd-2l")

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(card, "written", interrupted)
    with pytest.raises(KeyboardInterrupt):
        called("multiscale", "export", str(folder), "--to", str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("role", ["lora", "published"])
def test_a_published_network_is_not_exported_again(role):
    with pytest.raises(models.ForeignModel, match=f"role: '{role}' is not allowed; allowed: "):
        student({"format": 1, "classes": 3} | STUDENT | {"role": role})


def test_a_method_is_pushed_to_the_hub_or_one_line_says_why_not(tmp_path, monkeypatch):
    from huggingface_hub import HfApi, constants

    folder, asked, done = trained(tmp_path, "ssd-2l"), [], []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    failed = called(
        "multiscale", "export", str(folder), "--to", str(tmp_path / "a"), "--push", "me/digits", "--license", "mit"
    )
    assert failed.returncode == 2 and re.search(r"error: --push: me/digits: .+; allowed: .+\n$", failed.stderr)
    assert "Traceback" not in failed.stderr
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, exist_ok: asked.append(repo) or "https://hub/x")
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, repo_id, folder_path: done.append((repo_id, folder_path)))
    pushed = called(
        "multiscale", "export", str(folder), "--to", str(tmp_path / "b"), "--push", "me/digits", "--license", "mit"
    )
    assert pushed.stdout == f"{tmp_path / 'b'}\nhttps://hub/x\n"
    assert asked == ["me/digits"] and done == [("me/digits", tmp_path / "b")]
    assert 'from_pretrained("me/digits"' in (tmp_path / "b" / "README.md").read_text()
