"""Whatever is wrong with the settings is one line that names file, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, changed

from stages import download, recipe, reference
from stages.common import settings
from stages.common.settings import BadInput, load

SHA = "0" * 64
URL = {"data.source": "url", "data.sha256": SHA}
DIT, LR = "parts.dit", "parts.msf-1.training.lr"
MIXED = ("methods.msf.parts", "['msf-0', 'msf-1']", "parts that read one decomposition")
DETAILS = "parts.wmgm-details"
ORDER = ("methods.wmgm.parts", "'wmgm-details'", "first")
FACTOR = (f"{DETAILS}.discriminator.lr_factor", "0", "greater than 0")
SECOND = ("evaluate.second_extractor", "'efficientnet-lite0'", "another than extractor")
NO_VAE = {"vae.kind": "none", "vae.training": None}
SWD = "students.swd"
STEPS = f"{SWD}.schedule"
STUDENT = {"method": "swd", "kind": "swd", "reads": "pyramid", "teacher": "dit", "block": 0}
STUDENT |= {"schedule": {"sides": [32], "sigmas": [1.0]}, "training": {"images": 1}}
DEEP = (f"{DETAILS}.generator.widths", "[8, 8", "a side of 16 is no multiple of 32")
LATENT = ["decompose.full", "decompose.residual", "decompose.pyramid", "parts.dit", "parts.msf-0", "parts.msf-1"]
LATENT += ["parts.swd-teacher", "students.swd", "methods.dit", "methods.msf", "methods.swd-teacher", "methods.swd"]
LARGE = dict.fromkeys(LATENT, ...) | {"data.size": 256, "parts.wmgm-low.whitening": "full"}
WHITE = ("parts.wmgm-low.whitening", "'full'", "scale (full up to 4096 numbers, the band has 16384)")
SSD, CHAIN = "parts.ssd-2l", "methods.ssd-2l.solver"
UNDIVIDED = (f"{SSD}.network.multipliers", "1, 1", "multiples of 64")
SOLVER = {"steps": 4, "method": "euler", "cfg": 2.0}
METHOD = {"kind": "msf", "parts": ["dit"], "scales": [SOLVER]}
PART = {
    "method": "dit",
    "kind": "msf",
    "reads": "full",
    "index": 0,
    "network": {"preset": "DiT-S/2"},
    "training": {"images": 1},
}

# (claim, changes to a valid experiment, the key that the line names, its value as shown, a fragment of what is allowed)
INVALID = [
    ("unknown key at the top", {"sed": 1}, "sed", "'sed'", "recipe, seed, run"),
    ("unknown key in a section", {"data.sise": 32}, "data.sise", "'sise'", "name, source, path"),
    ("unknown key in a part", {f"{DIT}.lr": 0.1}, f"{DIT}.lr", "'lr'", "method, seed, kind, reads"),
    ("unknown key in a network", {f"{DIT}.network.deep": 3}, f"{DIT}.network.deep", "'deep'", "depth, width, heads"),
    ("unknown key in a training", {"vae.training.epochs": 3}, "vae.training.epochs", "'epochs'", "images, batch, lr"),
    (
        "unknown key in a decomposition",
        {"decompose.full.side": 3},
        "decompose.full.side",
        "'side'",
        "kind, reads, sides",
    ),
    ("unknown key in a method", {"methods.dit.steps": 3}, "methods.dit.steps", "'steps'", "kind, parts, scales"),
    (
        "unknown key in a solver",
        {"methods.dit.scales.0.eta": 0},
        "methods.dit.scales.0.eta",
        "'eta'",
        "steps, method, cfg",
    ),
    ("text for an integer", {"data.size": "32"}, "data.size", "'32'", "integer"),
    (
        "text for an integer in a method",
        {"methods.dit.scales.0.steps": "4"},
        "methods.dit.scales.0.steps",
        "'4'",
        "integer",
    ),
    ("a fraction for an integer", {"sample.images": 64.5}, "sample.images", "64.5", "integer"),
    ("yes for a number", {LR: "yes"}, LR, "'yes'", "number"),
    ("true for a number", {LR: True}, LR, "True", "number"),
    ("no for a boolean", {"vae.training.compile": "no"}, "vae.training.compile", "'no'", "boolean"),
    ("a number for a section", {"vae": 3}, "vae", "3", "dictionary"),
    ("a number for a method", {"methods.dit": 3}, "methods.dit", "3", "dictionary"),
    ("a negative learning rate", {LR: -0.001}, LR, "-0.001", "greater than 0"),
    ("an infinite learning rate", {LR: float("inf")}, LR, "inf", "finite"),
    ("a learning rate that is no number", {LR: float("nan")}, LR, "nan", "finite"),
    ("zero training images", {f"{DIT}.training.images": 0}, f"{DIT}.training.images", "0", "greater than 0"),
    ("a negative seed", {"seed": -1}, "seed", "-1", "greater than or equal to 0"),
    ("a seed that torch cannot hold", {"seed": 2**70}, "seed", "1180591620717411303424", "9007199254740992"),
    ("an empty path", {"data.path": ""}, "data.path", "''", "at least 1 character"),
    ("null for a mapping", {"sample": None}, "sample", "None", "dictionary"),
    ("a list for a section", {"data": []}, "data", "[]", "dictionary"),
    ("a mapping for a list", {"latents.sides": {}}, "latents.sides", "{}", "list"),
    ("a name in a method that is a kind's", {"methods.dit.ssd": 3}, "methods.dit.ssd", "'ssd'", "scales"),
    ("a method without kind", {"methods.msf.kind": ...}, "methods.msf.kind", "missing", "no default"),
    ("a share below zero", {"data.max_unreadable": -0.1}, "data.max_unreadable", "-0.1", "0"),
    ("a beta of one", {"vae.training.beta2": 1.0}, "vae.training.beta2", "1.0", "less than 1"),
    ("an unknown precision", {"latents.precision": "fp16"}, "latents.precision", "'fp16'", "'fp32' or 'bf16'"),
    ("an unknown decay", {"vae.training.decay": "step"}, "vae.training.decay", "'step'", "'constant' or 'cosine'"),
    ("a judge whose width is odd", {"classifier.width": 12}, "classifier.width", "12", "multiple of 8"),
    ("a method named as a folder of models", {"methods.vae": METHOD}, "methods.vae", "'vae'", "another name"),
    ("a part named as another's timing", {"parts.sample-dit": PART}, "parts.sample-dit", "'sample-dit'", "another"),
    ("zero steps", {"methods.msf.scales.1.steps": 0}, "methods.msf.scales.1.steps", "0", "greater than 0"),
    ("a share above one", {"data.test_share": 1.5}, "data.test_share", "1.5", "less than or equal to 1"),
    ("shares that leave nothing", {"data.test_share": 0.96}, "data.test_share", "0.96", "below 1"),
    ("two channels", {"data.channels": 2}, "data.channels", "2", "1 or 3"),
    ("zero scales", {"decompose.residual.sides": []}, "decompose.residual.sides", "[]", "at least 1"),
    (
        "sides out of order",
        {"decompose.residual.sides": [32, 24]},
        "decompose.residual.sides",
        "[32, 24]",
        "sides that grow",
    ),
    ("a side twice", {"decompose.residual.sides": [32, 32]}, "decompose.residual.sides", "[32, 32]", "sides that grow"),
    (
        "a last side below the full size",
        {"decompose.residual.sides": [16, 24]},
        "decompose.residual.sides",
        "[16, 24]",
        "data.size (32)",
    ),
    (
        "a side that the autoencoder does not divide",
        {"decompose.residual.sides": [22, 32]},
        "decompose.residual.sides",
        "[22, 32]",
        "factor 4",
    ),
    ("a latents side that it does not divide", {"latents.sides": [24, 30, 32]}, "latents.sides", "30", "factor 4"),
    ("a side that is not encoded", {"latents.sides": [32]}, "latents.sides", "[32]", "24 among them"),
    ("a side encoded twice", {"latents.sides": [24, 24, 32]}, "latents.sides", "[24, 24, 32]", ""),
    ("a side above the full size", {"latents.sides": [24, 32, 64]}, "latents.sides", "64", "32"),
    ("a side to train at above the full size", {"vae.sides": [32, 64]}, "vae.sides", "64", "data.size (32)"),
    ("no side to train the autoencoder at", {"vae.sides": []}, "vae.sides", "[]", "at least one"),
    ("a side that it cannot divide", {"vae.sides": [30]}, "vae.sides", "[30]", "factor 4"),
    ("widths that the groups do not divide", {"vae.widths": [8, 12]}, "vae.widths", "[8, 12]", "groups (8)"),
    ("a published autoencoder without source", {"vae.kind": "published"}, "vae.source", "None", "hub name or a folder"),
    (
        "a published autoencoder without revision",
        {"vae.kind": "published", "vae.source": "a/b"},
        "vae.revision",
        "None",
        "commit or tag",
    ),
    ("training without training settings", {"vae.training": None}, "vae.training", "None", "kind: train"),
    ("a patch that does not divide", {"parts.msf-0.network.patch": 4}, "parts.msf-0.network.patch", "4", "side 6"),
    ("a width that is no multiple of heads", {f"{DIT}.network.heads": 3}, f"{DIT}.network.width", "32", "heads (3)"),
    ("an unknown preset", {f"{DIT}.network": {"preset": "XXL"}}, f"{DIT}.network.preset", "'XXL'", "DiT-XL/2"),
    ("an unknown decomposition", {f"{DIT}.reads": "wavelet"}, f"{DIT}.reads", "'wavelet'", "full, residual"),
    ("an unknown method", {f"{DIT}.method": "ssd"}, f"{DIT}.method", "'ssd'", "dit, msf"),
    (
        "a part of another kind than its method",
        {"methods.dit": {"kind": "ssd", "parts": ["dit"], "solver": {"steps": 4}}},
        f"{DIT}.kind",
        "'msf'",
        "methods.dit",
    ),
    ("an index beyond the scales", {"parts.msf-1.index": 2}, "parts.msf-1.index", "2", "2 scales"),
    ("two parts of one index", {"parts.msf-1.index": 0}, "methods.msf.parts", "['msf-0', 'msf-1']", "2 scales"),
    (
        "parts in the wrong order",
        {"methods.msf.parts": ["msf-1", "msf-0"]},
        "methods.msf.parts",
        "['msf-1', 'msf-0']",
        "2 scales",
    ),
    ("parts of two decompositions", {"parts.msf-1.reads": "full", "parts.msf-1.index": 0}, *MIXED),
    (
        "two parts for the control",
        {"methods.dit.parts": ["dit", "msf-0"]},
        "methods.dit.parts",
        "'msf-0'",
        "method is dit: dit",
    ),
    ("a method without parts", {"methods.msf.parts": []}, "methods.msf.parts", "[]", "at least 1"),
    ("a part that is not there", {"methods.dit.parts": ["unet"]}, "methods.dit.parts", "['unet']", "dit"),
    ("fewer solvers than scales", {"methods.msf.scales": [SOLVER]}, "methods.msf.scales", "1", "2 solvers"),
    ("a method of zero scales", {"methods.msf.scales": []}, "methods.msf.scales", "[]", "at least 1"),
    ("more solvers than scales", {"methods.msf.scales": [SOLVER] * 3}, "methods.msf.scales", "3", "2 solvers"),
    ("an unknown kind of method", {"methods.msf.kind": "gan"}, "methods.msf.kind", "'gan'", "'msf', 'ssd'"),
    ("an unknown solver", {"methods.dit.scales.0.method": "rk4"}, "methods.dit.scales.0.method", "'rk4'", "'euler'"),
    ("images that a flow cannot read", {f"{DIT}.reads": "pixels"}, f"{DIT}.reads", "'pixels'", "full, residual"),
    ("latents that a UNet cannot read", {f"{SSD}.reads": "full"}, f"{SSD}.reads", "'full'", "pixels"),
    ("a size that the UNet cannot divide", {f"{SSD}.network.multipliers": [1] * 7}, *UNDIVIDED),
    ("more levels than the UNet has", {f"{SSD}.process.levels": 5}, f"{SSD}.network.multipliers", "1, 1", "1 to 4"),
    ("more levels than halvings", {f"{SSD}.process.levels": 7}, f"{SSD}.process.levels", "7", "multiples of 64"),
    ("sides that have no level", {f"{SSD}.process.sizes": "gradual"}, f"{SSD}.network.multipliers", "1, 1", "32, 16"),
    ("an unknown schedule", {f"{SSD}.process.schedule": "cosine"}, f"{SSD}.process.schedule", "'cosine'", "'equal'"),
    (
        "an exponent with which the sides grow again",
        {f"{SSD}.process.schedule": "tanh-like"},
        f"{SSD}.process.gamma",
        "0.5",
        "1 to 1000 (the schedule tanh-like",
    ),
    ("too few diffusion steps", {f"{SSD}.process.steps": 19}, f"{SSD}.process.steps", "19", "equal to 20"),
    ("more steps than the process", {f"{CHAIN}.steps": 1001}, f"{CHAIN}.steps", "1001", "at most the process's 1000"),
    ("the noise of a state that shrank", {f"{SSD}.predicts": "noise"}, f"{SSD}.predicts", "'noise'", "x0, since"),
    ("a large variance where sides change", {f"{CHAIN}.variance": "large"}, f"{CHAIN}.variance", "'large'", "the side"),
    (
        "a large variance of a chain that draws less",
        {f"{SSD}.process.levels": 1, f"{CHAIN}.variance": "large", f"{CHAIN}.eta": 0.5},
        f"{CHAIN}.variance",
        "'large'",
        "small, since an eta of 0.5",
    ),
    ("an eta above one", {f"{CHAIN}.eta": 1.5}, f"{CHAIN}.eta", "1.5", "less than or equal to 1"),
    ("guidance without classes", {f"{SSD}.conditional": False}, f"{CHAIN}.cfg", "1.75", "not conditional"),
    (
        "an unknown published schedule",
        {STEPS: {"preset": "SD4"}},
        f"{STEPS}.preset",
        "'SD4'",
        "SD3.5-M 4 steps, SD3.5-M 2025",
    ),
    (
        "a schedule of no rectified flow",
        {STEPS: {"preset": "SDXL"}},
        f"{STEPS}.preset",
        "'SDXL'",
        "one of SD3.5-M, SD3.5-M 4 steps, SD3.5-M 2025, SD3.5-L, FLUX, FLUX released (its times belong to a variance-p",
    ),
    (
        "a schedule beside a published one",
        {STEPS: {"preset": "FLUX", "sigmas": [1.0]}},
        f"{STEPS}.preset",
        "'FLUX'",
        "without sides, sigmas",
    ),
    ("an unknown UNet preset", {f"{SSD}.network": {"preset": "XL"}}, f"{SSD}.network.preset", "'XL'", "SSD-64"),
    ("zero levels", {"decompose.wavelet.levels": 0}, "decompose.wavelet.levels", "0", "greater than 0"),
    ("a size that 2^levels does not divide", {"decompose.wavelet.levels": 6}, "decompose.wavelet.levels", "6", "64"),
    ("an unknown wavelet", {"decompose.wavelet.filter": "nope"}, "decompose.wavelet.filter", "'nope'", "haar"),
    (
        "a biorthogonal wavelet",
        {"decompose.wavelet.filter": "bior2.2"},
        "decompose.wavelet.filter",
        "'bior2.2'",
        "db1",
    ),
    ("a detail level that is not there", {f"{DETAILS}.level": 2}, f"{DETAILS}.level", "2", "which has 1"),
    ("details without a generator", {f"{DETAILS}.generator": None}, f"{DETAILS}.generator", "None", "model: gan"),
    ("a generator too deep", {f"{DETAILS}.generator.widths": [8] * 6}, *DEEP),
    ("a band too large to whiten", LARGE, *WHITE),
    ("an unknown loss preset", {f"{DETAILS}.loss": {"preset": "wgan"}}, f"{DETAILS}.loss.preset", "'wgan'", "official"),
    ("a low band after its details", {"methods.wmgm.parts": ["wmgm-details", "wmgm-low"]}, *ORDER),
    ("sides of steps that shrink", {f"{STEPS}.sides": [24, 16, 24, 32]}, f"{STEPS}.sides", "[24, 16", "never shrink"),
    (
        "a last step below the full side",
        {f"{STEPS}.sides": [16, 24, 24, 24]},
        f"{STEPS}.sides",
        "24]",
        "data.size (32)",
    ),
    ("a step at a side without latents", {f"{STEPS}.sides": [8, 24, 24, 32]}, f"{STEPS}.sides", "[8", "[16, 24, 32]"),
    ("a step without noise", {f"{STEPS}.sigmas.3": 0.0}, f"{STEPS}.sigmas", "0.0]", "(0, 1]"),
    ("a noise level above one", {f"{STEPS}.sigmas.0": 1.2}, f"{STEPS}.sigmas", "[1.2", "(0, 1]"),
    ("noise that rises", {f"{STEPS}.sigmas.3": 0.8}, f"{STEPS}.sigmas", "0.8]", "fall from 1"),
    ("more sides than noise levels", {f"{STEPS}.sigmas": [1.0]}, f"{STEPS}.sigmas", "[1.0]", "one for each side"),
    ("a block that the teacher lacks", {f"{SWD}.block": 1}, f"{SWD}.block", "1", "0 to 0, the blocks of swd-teacher"),
    ("a teacher of another class", {f"{SWD}.teacher": "ssd-2l"}, f"{SWD}.teacher", "'ssd-2l'", "dit, swd-teacher"),
    ("a teacher of two scales", {f"{SWD}.teacher": "msf"}, f"{SWD}.teacher", "'msf'", "dit, swd-teacher"),
    ("a student as a teacher", {f"{SWD}.teacher": "swd"}, f"{SWD}.teacher", "'swd'", "dit, swd-teacher"),
    ("a student of another kind", {f"{SWD}.kind": "msf"}, f"{SWD}.kind", "'msf'", "'swd'"),
    ("latents that a student cannot read", {f"{SWD}.reads": "full"}, f"{SWD}.reads", "'full'", "one of pyramid"),
    ("a student without any loss", {f"{SWD}.mmd.weight": 0.0}, f"{SWD}.mmd.weight", "0.0", "mmd, dmd or gan"),
    ("features of no fake score", {f"{SWD}.mmd.features": "fake"}, f"{SWD}.mmd.features", "'fake'", "without dmd"),
    ("a student with a part's name", {"students.dit": STUDENT}, "students.dit", "'dit'", "another name"),
    ("a solver for a student", {"methods.swd.solver": SOLVER}, "methods.swd.solver", "'steps': 4", "null"),
    (
        "a teacher without solver",
        {"methods.swd-teacher.solver": None},
        "methods.swd-teacher.solver",
        "None",
        "a solver",
    ),
    ("a pyramid of unsorted sides", {"decompose.pyramid.sides": [32, 16]}, "decompose.pyramid.sides", "[32", "grow"),
    ("a pyramid that is not encoded", {"decompose.pyramid.sides": [8, 32]}, "latents.sides", "[16", "8 among them"),
    ("an opponent that never learns", {f"{DETAILS}.discriminator.lr_factor": 0}, *FACTOR),
    (
        "an unknown decomposition kind",
        {"decompose.full.kind": "fft"},
        "decompose.full.kind",
        "'fft'",
        "'msf', 'ssd', 'swd', 'wmgm'",
    ),
    ("an unknown extractor", {"evaluate.extractor": "vgg"}, "evaluate.extractor", "'vgg'", "'efficientnet-lite0'"),
    ("an unknown source", {"data.source": "ftp"}, "data.source", "'ftp'", "'digits', 'files', 'url' or 'hub'"),
    ("two extractors that are one", {"evaluate.second_extractor": "efficientnet-lite0"}, *SECOND),
    ("an unknown floor", {"evaluate.floors": ["fake"]}, "evaluate.floors.0", "'fake'", "'real' or 'autoencoder'"),
    ("a floor twice", {"evaluate.floors": ["real", "real"]}, "evaluate.floors", "['real', 'real']", "each floor once"),
    ("an autoencoder's floor without one", NO_VAE, "evaluate.floors", "['real', 'autoencoder']", "vae.kind is none"),
    ("a method with a floor's name", {"methods.real": METHOD}, "methods.real", "'real'", "another name: samples"),
    ("a repeat of no method", {"methods.msf.repeat_of": "nope"}, "methods.msf.repeat_of", "'nope'", "one of dit, "),
    ("a repeat of itself", {"methods.msf.repeat_of": "msf"}, "methods.msf.repeat_of", "'msf'", "one of dit, "),
    ("a negative seed of a part", {f"{DIT}.seed": -1}, f"{DIT}.seed", "-1", "greater than or equal to 0"),
    ("too few images for an interval", {"sample.images": 3}, "sample.images", "3", "greater than or equal to 4"),
    ("more neighbours than images", {"evaluate.prc_neighborhood": 40}, "evaluate.prc_neighborhood", "40", "at most 39"),
    ("more splits than images", {"evaluate.is_splits": 41}, "evaluate.is_splits", "41", "at most 40"),
    ("more neighbours than real images", {"evaluate.reference_images": 3}, "evaluate.prc_neighborhood", "3", "most 2"),
    ("a url of another kind", {**URL, "data.url": "ftp://x/y.zip"}, "data.url", "'ftp://x/y.zip'", "http or file"),
    ("a checksum of digits", {"data.sha256": SHA}, "data.sha256", "'000000", "null with source: digits"),
    ("a hub set without name", {"data.source": "hub", "data.revision": "v1"}, "data.url", "None", "source: hub"),
    ("a url without checksum", {"data.source": "url", "data.url": "http://x/y.zip"}, "data.sha256", "None", "SHA-256"),
    ("a checksum without url", {"data.source": "url", "data.sha256": SHA}, "data.url", "None", "source: url"),
    ("a malformed checksum", {"data.sha256": "ABC"}, "data.sha256", "'ABC'", "[0-9a-f]{64}"),
    ("a hub set without revision", {"data.source": "hub", "data.url": "a/b"}, "data.revision", "None", "commit or tag"),
    ("workers that do not divide the batch", {"run.workers": 3}, "run.workers", "3", "divisor of every batch"),
    ("a name with capitals", {"data.name": "Digits"}, "data.name", "'Digits'", "[a-z0-9]"),
    ("a decomposition with capitals", {"decompose.Half": {}}, "decompose.Half", "'Half'", "[a-z0-9]"),
    ("a missing section", {"classifier": ...}, "classifier", "missing", ""),
    ("a missing key", {f"{DIT}.training.batch": ...}, f"{DIT}.training.batch", "missing", "every key spelled out"),
]

BROKEN = {
    "a: [1": "line 1",
    "seed: 0\nseed: 1\n": "line 2",
    "seed: \x00": "not valid YAML",
    "seed: !lambda x": "line 1",
    "": "a mapping of sections",
    "- seed": "a mapping of sections",
    "3: 4": "3: 3 is not allowed; allowed: the keys recipe, seed",
    "seed: 0\n\tdata: 1": "line 2",
}


def line_of(error: pytest.ExceptionInfo) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.fixture
def refused(tiny, monkeypatch):
    """Loads a changed experiment, and gives the line that it is refused with. Parsing YAML each time would be slow."""

    def refused(changes: dict) -> str:
        monkeypatch.setattr(settings, "read_yaml", lambda path: changed(tiny, changes))
        with pytest.raises(BadInput) as error:
            load()
        return line_of(error)

    return refused


def test_the_table_has_at_least_thirty_rows_that_differ():
    assert len({claim for claim, *_ in INVALID}) == len(INVALID) >= 30


@pytest.mark.parametrize("changes, key, value, allowed", [pytest.param(*row[1:], id=row[0]) for row in INVALID])
def test_an_invalid_setting_is_one_line_with_file_key_value_and_what_is_allowed(refused, changes, key, value, allowed):
    line = refused(changes)
    assert line.startswith(f"params/experiment.yaml: {key}: ")
    shown, _, rest = line.removeprefix(f"params/experiment.yaml: {key}: ").partition("allowed: ")
    assert value in shown and allowed in rest


@pytest.mark.parametrize("text, about", BROKEN.items())
def test_a_file_that_is_no_experiment_is_one_line(project, text, about):
    settings.EXPERIMENT.write_text(text)
    with pytest.raises(BadInput) as error:
        load()
    assert line_of(error).startswith("params/experiment.yaml: ") and about in line_of(error)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00seed", None])
def test_a_file_that_is_no_text_is_one_line(project, content):
    settings.EXPERIMENT.unlink()
    settings.EXPERIMENT.mkdir() if content is None else settings.EXPERIMENT.write_bytes(content)
    with pytest.raises(BadInput) as error:
        load()
    assert line_of(error).startswith("params/experiment.yaml: ") and "YAML" in line_of(error)


def test_a_missing_experiment_is_one_line(project):
    settings.EXPERIMENT.unlink()
    with pytest.raises(BadInput, match=r"^params/experiment.yaml: the file is missing") as error:
        load()
    line_of(error)


@pytest.mark.parametrize(
    "stage, changes, key, value, allowed",
    [
        (["train", "dit"], {"sed": 1}, "sed", "'sed'", "recipe, seed, run"),
        (["classifier"], {"classifier.training.lr": -1}, "classifier.training.lr", "-1", "greater than 0"),
        (["decompose", "full"], {"decompose.full.sides": []}, "decompose.full.sides", "[]", "at least 1"),
        (["report"], {"methods.dit.scales.0.steps": "4"}, "methods.dit.scales.0.steps", "'4'", "integer"),
        (["download"], {"data.source": "files", "data.path": "none"}, "data.path", "'none'", "an existing folder"),
    ],
)
def test_a_stage_refuses_with_one_line_and_exit_code_2_and_writes_nothing(project, stage, changes, key, value, allowed):
    project.change(changes)
    before = project.files()
    # A process of its own takes seconds: one stage has it, and stands for the others.
    done = project.run("-m", "stages.train", "dit") if stage[0] == "train" else project.stage(*stage)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: params/experiment.yaml: {key}: {value} ") and done.stderr.count("\n") == 1
    assert allowed in done.stderr.partition("allowed: ")[2]
    assert project.files() == before


def test_a_missing_weights_file_is_one_line(project):
    project.change({"evaluate.extractor": "inception-v3-compat", "evaluate.weights": "none.pth"})
    with pytest.raises(BadInput, match=r"^params/experiment.yaml: evaluate.weights: 'none.pth' .*allowed: ") as error:
        reference.main()
    line_of(error)
    assert not Path("data/reference").exists()


def test_a_wrong_checksum_is_one_line_and_leaves_no_images(project):
    Path("set.zip").write_bytes(b"anything")
    project.change({"data.source": "files", "data.path": "set.zip", "data.sha256": SHA})
    with pytest.raises(BadInput, match=rf"^params/experiment.yaml: data.sha256: '{SHA}' .*allowed: ") as error:
        download.main()
    line_of(error)
    assert not Path("data/images.parquet").exists()


def leaves(tree: object, at: str = "") -> list[str]:
    """The dotted keys of everything in a tree that is no mapping, those in lists of mappings included."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return [at]
    return [leaf for key, value in tree.items() for leaf in leaves(value, f"{at}.{key}" if at else f"{key}")]


def test_no_default_of_the_code_enters_a_result(refused, tiny):
    """Leaving out any one key is refused, with a line that names it."""
    keys = leaves(tiny)
    assert len(keys) > 90
    lines = {key: refused({key: ...}) for key in keys}
    assert not {key: line for key, line in lines.items() if not line.startswith(f"params/experiment.yaml: {key}: ")}


def test_a_load_gives_the_sections_asked_for_and_no_other(project):
    assert set(vars(load("seed", "data"))) == {"seed", "data"}


def test_scientific_notation_is_the_number_that_dvc_reads(project):
    from dvc.utils.serialize import parse_yaml

    text = recipe.render(recipe.experiment_of("tiny")).replace("kl_weight: 0.001", "kl_weight: 1e-3")
    settings.EXPERIMENT.write_text(text)
    assert "1e-3" in text
    assert load("vae").vae.kl_weight == parse_yaml(text, "experiment.yaml")["vae"]["kl_weight"] == 0.001


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("params/recipes/*.yaml")))
def test_every_shipped_recipe_is_a_whole_experiment(project, name):
    settings.EXPERIMENT.write_text(recipe.render(recipe.experiment_of(name)))
    assert load("recipe").recipe == name


def test_the_shipped_experiment_is_what_its_recipe_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert settings.EXPERIMENT.read_text() == recipe.render(recipe.experiment_of(load("recipe").recipe))
