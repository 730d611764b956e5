"""Every error in the settings is one line that names the file, the key, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
from conftest import ROOT, changed, write_images

from multiscale.training.part import Training
from stages import download, recipe, reference
from stages.common import settings
from stages.common.errors import BadInput
from stages.common.paths import EXPERIMENT
from stages.common.settings import load
from stages.schema import Experiment
from stages.schema.data import Run

SHA = "0" * 64
URL = {"data.source": "url", "data.sha256": SHA}
DIT, LR = "parts.dit", "parts.msf-1.training.lr"
MIXED = ("methods.msf", "['full', 'residual']", "parts of one dataset")
DETAILS = "parts.wmgm-details"
OPPONENT = (f"{DETAILS}.discriminator.lr_factor", "0", "greater than 0")
SECOND = ("evaluate.second_extractor", "'efficientnet-lite0'", "other than `extractor`")
NO_VAE = {"vae": {"kind": "none"}}
HUB = {"kind": "published", "source": "a/b"}
SWD = "students.swd"
WITHOUT_STUDENTS = {"students": ..., "methods.swd": ..., "methods.shift": ...}
SHIFT, JUMPS = "students.shift", "parts.pyramidal.jumps"
SEGMENTS = "methods.pyramidal.steps", "[4]", "[], unless `scales` has the solvers"
UNSEEN = (f"{SHIFT}.schedule.resolutions", "[8, 32]", "[16, 24, 32], up to the last")
LACKING = ("decompose.pyramid.resolutions", "[16, 24, 32]", "[8, 16, 32] among them")
LEVELS = (f"{SHIFT}.schedule.levels", "[0.9, 0.5]", "fall from 1")
STEPS = f"{SWD}.schedule"
STUDENT = {"method": "swd", "kind": "swd", "dataset": "pyramid", "teacher": "dit", "block": 0}
STUDENT |= {"schedule": {"resolutions": [32], "sigmas": [1.0]}, "training": {"images": 1}}
DEEP = (f"{DETAILS}.generator.widths", "[8, 8", "a resolution of 16 is no multiple of 32")
LATENT = ["decompose.full", "decompose.residual", "decompose.pyramid", "parts.dit", "parts.msf-0", "parts.msf-1"]
LATENT += ["parts.swd-teacher", "students.swd", "methods.dit", "methods.msf", "methods.swd-teacher", "methods.swd"]
LATENT += ["students.shift", "methods.shift", "parts.pyramidal", "methods.pyramidal"]
LARGE = dict.fromkeys(LATENT, ...) | {"data.resolution": 256, "parts.wmgm-low.whitening": "full"}
WHITE = ("parts.wmgm-low.whitening", "'full'", "scale (full up to 4096 numbers, the band has 16384)")
SSD, CHAIN = "parts.ssd-2l", "methods.ssd-2l.solver"
UNDIVIDED = (f"{SSD}.network.multipliers", "1, 1", "multiples of 64")
SOLVER = {"steps": 4, "name": "euler", "guidance_scale": 2.0}
METHOD = {"kind": "msf", "scales": [SOLVER]}
PART = {
    "method": "dit",
    "kind": "msf",
    "dataset": "full",
    "index": 0,
    "network": {"preset": "DiT-S/2"},
    "training": {"images": 1},
}
PAIRS = {"data.source": "digit-pairs", "data.validation_share": 0.05}  # the tiny recipe tests on 0.02
ENCODER, PROMPTS = "text.words.encoder", "text.words.prompts"
WORDS = {
    "words": {
        "encoder": {"kind": "train", "width": 8, "layers": 1, "heads": 2, "patch": 8},
        "prompts": {"source": "pictures", "path": "data/images.parquet", "split": "test", "column": "caption"},
    }
}
TEXT = {"data.source": "files", "data.caption_column": "text", "text": WORDS}
IMAGES = {"kind": "swd", "teacher": "swd-teacher", "dataset": "pyramid", "images": 8, "solver": SOLVER}
MADE = {"synthetic.made": IMAGES}
PART_OF_IMAGES = ("parts.swd-teacher.dataset", "'made'", "one of pyramid")
OTHER_TEXT = ("parts.swd-teacher.network", "{'depth': 1", "a dataset without text")
OF_HUB = WORDS["words"]["prompts"] | {"source": "hub", "path": "data/raw/prompts"}

# (claim, changes to a valid experiment, the key that the line names, its value as shown, a fragment of what is allowed)
INVALID = [
    ("unknown key at the top", {"sed": 1}, "sed", "'sed'", "recipe, seed, run"),
    ("unknown key in a section", {"data.sise": 32}, "data.sise", "'sise'", "name, source, path"),
    ("unknown key in a part", {f"{DIT}.lr": 0.1}, f"{DIT}.lr", "'lr'", "method, seed, kind, dataset"),
    ("unknown key in a network", {f"{DIT}.network.deep": 3}, f"{DIT}.network.deep", "'deep'", "depth, width, heads"),
    ("unknown key in a training", {"vae.training.epochs": 3}, "vae.training.epochs", "'epochs'", "images, batch, lr"),
    (
        "unknown key in a decomposition",
        {"decompose.full.resolution": 3},
        "decompose.full.resolution",
        "'resolution'",
        "kind, source, resolutions",
    ),
    ("unknown key in a method", {"methods.dit.stpes": 3}, "methods.dit.stpes", "'stpes'", "repeat_of, steps, scales"),
    ("a step count twice", {"methods.dit.steps": [4, 4]}, "methods.dit.steps", "[4, 4]", "each number of steps once"),
    ("steps of a student", {"methods.swd.steps": [4]}, "methods.swd.steps", "[4]", "[], since no `solver` is set"),
    ("steps of default solvers", {"methods.dit": {"kind": "msf", "steps": [4]}}, "methods.dit.steps", "[4]", "unless"),
    ("steps of segments", {"methods.pyramidal": {"kind": "pyramidal", "steps": [4]}}, *SEGMENTS),
    ("too few steps of a chain", {"methods.ssd-2l.steps": [1]}, "methods.ssd-2l.steps", "1", "equal to 2"),
    ("too many", {"methods.ssd-2l.steps": [10**5]}, "methods.ssd-2l.solver.steps", "100000", "at most the process's"),
    (
        "unknown key in a solver",
        {"methods.dit.scales.0.eta": 0},
        "methods.dit.scales.0.eta",
        "'eta'",
        "guidance_scale, guidance_interval, name, steps",
    ),
    ("text for an integer", {"data.resolution": "32"}, "data.resolution", "'32'", "integer"),
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
    ("zero training images", {f"{DIT}.training": {"images": 0}}, f"{DIT}.training.images", "0", "greater than 0"),
    ("a negative seed", {"seed": -1}, "seed", "-1", "greater than or equal to 0"),
    ("an image of 10 GB", {"data.resolution": 100_000}, "data.resolution", "100000", "less than or equal to 4096"),
    ("a process without end", {f"{SSD}.process.steps": 2**53}, f"{SSD}.process.steps", str(2**53), "100000"),
    ("a process of all levels", {f"{SSD}.process.levels": 2**53}, f"{SSD}.process.levels", str(2**53), "4096"),
    ("a solver without end", {f"{CHAIN}.steps": 2**53}, f"{CHAIN}.steps", str(2**53), "100000"),
    ("wavelets without end", {"decompose.wavelet.levels": 2**53}, "decompose.wavelet.levels", str(2**53), "12"),
    ("layers without end", {f"{DIT}.network.depth": 2**53}, f"{DIT}.network.depth", str(2**53), "1024"),
    ("channels without end", {"classifier.width": 2**900}, "classifier.width", str(2**900)[:100], "65536"),
    ("levels without end", {"vae.widths": [8] * 20_000}, "vae.widths", "[8, 8, 8", "at most 13 items"),
    (
        "levels of details without end",
        {f"{DETAILS}.generator.widths": [8] * 20_000},
        f"{DETAILS}.generator.widths",
        "[8, 8",
        "at most 13",
    ),
    (
        "numbers of steps without end",
        {"methods.dit.steps": [*range(2, 103)]},
        "methods.dit.steps",
        "[2, 3",
        "at most 100",
    ),
    (
        "held-out images without end",
        {"vae.training.validation_images": 2**53},
        "vae.training.validation_images",
        str(2**53),
        "1000000",
    ),
    ("threads without end", {"run.threads": 10**6}, "run.threads", "1000000", "1024"),
    ("a classifier that halves for ever", {"classifier.stages": 2**53}, "classifier.stages", str(2**53), "12"),
    ("samples without end", {"sample.images": 2**900}, "sample.images", str(2**900)[:100], "10000000"),
    ("a training without end", {f"{DIT}.training.images": 2**53}, f"{DIT}.training.images", str(2**53), "100000000000"),
    ("a seed that torch cannot hold", {"seed": 2**70}, "seed", "1180591620717411303424", "9007199254740992"),
    ("an empty path", {"data.path": ""}, "data.path", "''", "at least 1 character"),
    ("null for a mapping", {"sample": None}, "sample", "None", "dictionary"),
    ("a list for a section", {"data": []}, "data", "[]", "dictionary"),
    ("a mapping for a list", {"latents.resolutions": {}}, "latents.resolutions", "{}", "list"),
    ("a name in a method that is a kind's", {"methods.dit.ssd": 3}, "methods.dit.ssd", "'ssd'", "scales"),
    ("a method without kind", {"methods.msf.kind": ...}, "methods.msf.kind", "missing", "no default"),
    ("a share below zero", {"data.max_unreadable": -0.1}, "data.max_unreadable", "-0.1", "0"),
    ("a beta of one", {"vae.training.beta2": 1.0}, "vae.training.beta2", "1.0", "less than 1"),
    ("an unknown precision", {"latents.precision": "fp16"}, "latents.precision", "'fp16'", "'fp32' or 'bf16'"),
    ("an unknown decay", {"vae.training.decay": "step"}, "vae.training.decay", "'step'", "'constant' or 'cosine'"),
    ("a classifier whose width is odd", {"classifier.width": 12}, "classifier.width", "12", "multiple of 8"),
    ("a method named as a folder of models", {"methods.vae": METHOD}, "methods.vae", "'vae'", "another name"),
    ("a part named as another's timing", {"parts.sample-dit": PART}, "parts.sample-dit", "'sample-dit'", "another"),
    ("a part named as the claims about seconds", {"parts.claims": PART}, "parts.claims", "'claims'", "another"),
    ("a part named as the methods' timing", {"parts.sampling": PART}, "parts.sampling", "'sampling'", "another"),
    ("zero steps", {"methods.msf.scales.1.steps": 0}, "methods.msf.scales.1.steps", "0", "greater than 0"),
    ("a share above one", {"data.test_share": 1.5}, "data.test_share", "1.5", "less than or equal to 1"),
    ("shares that leave nothing", {"data.test_share": 0.96}, "data.test_share", "0.96", "below 1"),
    ("two channels", {"data.channels": 2}, "data.channels", "2", "1 or 3"),
    ("zero scales", {"decompose.residual.resolutions": []}, "decompose.residual.resolutions", "[]", "at least 1"),
    (
        "resolutions out of order",
        {"decompose.residual.resolutions": [32, 24]},
        "decompose.residual.resolutions",
        "[32, 24]",
        "resolutions that grow",
    ),
    (
        "a resolution twice",
        {"decompose.residual.resolutions": [32, 32]},
        "decompose.residual.resolutions",
        "[32, 32]",
        "resolutions that grow",
    ),
    (
        "a last resolution below the full size",
        {"decompose.residual.resolutions": [16, 24]},
        "decompose.residual.resolutions",
        "[16, 24]",
        "data.resolution (32)",
    ),
    (
        "a resolution that the autoencoder does not divide",
        {"decompose.residual.resolutions": [22, 32]},
        "decompose.residual.resolutions",
        "[22, 32]",
        "factor 4",
    ),
    (
        "a latents resolution that it does not divide",
        {"latents.resolutions": [24, 30, 32]},
        "latents.resolutions",
        "30",
        "factor 4",
    ),
    ("a resolution that is not encoded", {"latents.resolutions": [32]}, "latents.resolutions", "[32]", "24 among them"),
    ("a resolution encoded twice", {"latents.resolutions": [24, 24, 32]}, "latents.resolutions", "[24, 24, 32]", ""),
    ("a resolution above the full size", {"latents.resolutions": [24, 32, 64]}, "latents.resolutions", "64", "32"),
    (
        "a resolution to train at above the full size",
        {"vae.resolutions": [32, 64]},
        "vae.resolutions",
        "64",
        "data.resolution (32)",
    ),
    ("no resolution to train the autoencoder at", {"vae.resolutions": []}, "vae.resolutions", "[]", "at least 1"),
    ("a resolution that it cannot divide", {"vae.resolutions": [30]}, "vae.resolutions", "[30]", "factor 4"),
    ("widths that the groups do not divide", {"vae.widths": [8, 12]}, "vae.widths", "[8, 12]", "groups (8)"),
    ("a published autoencoder without source", {"vae": {"kind": "published"}}, "vae.source", "missing", "no default"),
    (
        "a published autoencoder without revision",
        {"vae": HUB},
        "vae.revision",
        "None",
        "commit or tag",
    ),
    (
        "a published autoencoder that is trained",
        {"vae": HUB | {"training": {}}},
        "vae.training",
        "'training'",
        "source",
    ),
    ("sizes of no autoencoder", {"vae": {"kind": "none", "widths": [8]}}, "vae.widths", "'widths'", "the keys kind"),
    ("an unknown kind of autoencoder", {"vae.kind": "gan"}, "vae.kind", "'gan'", "'train', 'published', 'none'"),
    ("an autoencoder without kind", {"vae.kind": ...}, "vae.kind", "missing", "no default"),
    ("null for a training", {"vae.training": None}, "vae.training", "None", "dictionary"),
    ("a number for a training", {f"{DIT}.training": 3}, f"{DIT}.training", "3", "dictionary"),
    ("a number for all trainings", {"training": 3}, "training", "3", "dictionary"),
    ("no images for all trainings", {"training.images": ...}, "training.images", "missing", "no default"),
    ("a fault of all trainings", {"training.lr": -1.0}, "training.lr", "-1.0", "greater than 0"),
    ("an unknown key of all trainings", {"training.epochs": 3}, "training.epochs", "'epochs'", "images, batch, lr"),
    (
        "a patch that does not divide",
        {"parts.msf-0.network.patch": 4},
        "parts.msf-0.network.patch",
        "4",
        "resolution 6",
    ),
    ("a width that is no multiple of heads", {f"{DIT}.network.heads": 3}, f"{DIT}.network.width", "32", "heads (3)"),
    ("an unknown preset", {f"{DIT}.network": {"preset": "XXL"}}, f"{DIT}.network.preset", "'XXL'", "DiT-XL/2"),
    ("an unknown decomposition", {f"{DIT}.dataset": "wavelet"}, f"{DIT}.dataset", "'wavelet'", "full, residual"),
    ("an unknown method", {f"{DIT}.method": "ssd"}, f"{DIT}.method", "'ssd'", "msf, dit"),
    (
        "a part of another kind than its method",
        {"methods.dit": {"kind": "ssd", "solver": {"steps": 4}}},
        f"{DIT}.kind",
        "'msf'",
        "methods.dit",
    ),
    ("an index beyond the scales", {"parts.msf-1.index": 2}, "parts.msf-1.index", "2", "2 scales"),
    ("two parts of one index", {"parts.msf-1.index": 0}, "methods.msf", "[0, 0]", "2 scales"),
    ("parts of two decompositions", {"parts.msf-1.dataset": "full", "parts.msf-1.index": 0}, *MIXED),
    (
        "two parts for the control",
        {"parts.more": PART | {"dataset": "residual"}},
        "methods.dit",
        "['full', 'residual']",
        "one dataset",
    ),
    ("a method without parts", {"methods.ddpm": {"kind": "ssd"}}, "methods.ddpm", "'ddpm'", "(`method: ddpm`)"),
    (
        "parts that a method names",
        {"methods.dit.parts": ["dit"]},
        "methods.dit.parts",
        "'parts'",
        "repeat_of, steps, scales",
    ),
    ("fewer solvers than scales", {"methods.msf.scales": [SOLVER]}, "methods.msf.scales", "1", "2 solvers"),
    ("more solvers than scales", {"methods.msf.scales": [SOLVER] * 3}, "methods.msf.scales", "3", "2 solvers"),
    ("an unknown kind of method", {"methods.msf.kind": "gan"}, "methods.msf.kind", "'gan'", "'shift', 'ssd'"),
    ("an unknown solver", {"methods.dit.scales.0.name": "rk4"}, "methods.dit.scales.0.name", "'rk4'", "'euler'"),
    ("images that a flow cannot read", {f"{DIT}.dataset": "pixels"}, f"{DIT}.dataset", "'pixels'", "full, residual"),
    ("latents that a UNet cannot read", {f"{SSD}.dataset": "full"}, f"{SSD}.dataset", "'full'", "pixels"),
    ("a size that the UNet cannot divide", {f"{SSD}.network.multipliers": [1] * 7}, *UNDIVIDED),
    ("more levels than the UNet has", {f"{SSD}.process.levels": 5}, f"{SSD}.network.multipliers", "1, 1", "1 to 4"),
    ("more levels than halvings", {f"{SSD}.process.levels": 7}, f"{SSD}.process.levels", "7", "multiples of 64"),
    (
        "resolutions that have no level",
        {f"{SSD}.process.resolutions": "gradual"},
        f"{SSD}.network.multipliers",
        "1, 1",
        "32, 16",
    ),
    ("an unknown schedule", {f"{SSD}.process.schedule": "cosine"}, f"{SSD}.process.schedule", "'cosine'", "'equal'"),
    (
        "an exponent with which the resolutions grow again",
        {f"{SSD}.process.schedule": "tanh-like"},
        f"{SSD}.process.gamma",
        "0.5",
        "1 to 1000 (the schedule tanh-like",
    ),
    ("too few diffusion steps", {f"{SSD}.process.steps": 19}, f"{SSD}.process.steps", "19", "equal to 20"),
    ("more steps than the process", {f"{CHAIN}.steps": 1001}, f"{CHAIN}.steps", "1001", "at most the process's 1000"),
    ("the noise of a state that shrank", {f"{SSD}.predicts": "noise"}, f"{SSD}.predicts", "'noise'", "x0, since"),
    (
        "a large variance where resolutions change",
        {f"{CHAIN}.variance": "large"},
        f"{CHAIN}.variance",
        "'large'",
        "the resolution",
    ),
    (
        "a large variance of a chain that draws less",
        {f"{SSD}.process.levels": 1, f"{CHAIN}.variance": "large", f"{CHAIN}.eta": 0.5},
        f"{CHAIN}.variance",
        "'large'",
        "small, since an eta of 0.5",
    ),
    ("an eta above one", {f"{CHAIN}.eta": 1.5}, f"{CHAIN}.eta", "1.5", "less than or equal to 1"),
    ("guidance without classes", {f"{SSD}.conditional": False}, f"{CHAIN}.guidance_scale", "1.75", "not conditional"),
    (
        "an unknown published schedule",
        {STEPS: {"preset": "SD4"}},
        f"{STEPS}.preset",
        "'SD4'",
        "SD3.5-M 4 steps, SD3.5-M 2025",
    ),
    (
        "a published schedule of other resolutions",
        {STEPS: {"preset": "SDXL"}},
        f"{STEPS}.resolutions",
        "[512, 640, 768, 1024]",
        "a last resolution of data.resolution (32)",
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
    ("details without a generator", {f"{DETAILS}.generator": ...}, f"{DETAILS}.generator", "missing", "no default"),
    (
        "an unknown role",
        {f"{DETAILS}.role": "fine"},
        f"{DETAILS}.role",
        "'fine'",
        "'coarse', 'details', 'score-details'",
    ),
    ("a part without role", {f"{DETAILS}.role": ...}, f"{DETAILS}.role", "missing", "no default"),
    ("a key of another role", {f"{DETAILS}.whitening": "full"}, f"{DETAILS}.whitening", "'whitening'", "generator"),
    (
        "a fault below a role",
        {f"{DETAILS}.loss.mse": -1.0},
        f"{DETAILS}.loss.mse",
        "-1.0",
        "greater than or equal to 0",
    ),
    ("a loss of no discriminator", {f"{DETAILS}.discriminator": ...}, f"{DETAILS}.loss.adversarial", "0.4", "0, since"),
    ("a generator too deep", {f"{DETAILS}.generator.widths": [8] * 6}, *DEEP),
    ("a band too large to whiten", LARGE, *WHITE),
    ("an unknown loss preset", {f"{DETAILS}.loss": {"preset": "wgan"}}, f"{DETAILS}.loss.preset", "'wgan'", "official"),
    (
        "details without a coarse band",
        {"parts.wmgm-low": ...},
        "methods.wmgm",
        "['details']",
        "one has the role coarse",
    ),
    (
        "resolutions of steps that shrink",
        {f"{STEPS}.resolutions": [24, 16, 24, 32]},
        f"{STEPS}.resolutions",
        "[24, 16",
        "never shrink",
    ),
    (
        "a last step below the full resolution",
        {f"{STEPS}.resolutions": [16, 24, 24, 24]},
        f"{STEPS}.resolutions",
        "24]",
        "data.resolution (32)",
    ),
    (
        "a step at a resolution without latents",
        {f"{STEPS}.resolutions": [8, 24, 24, 32]},
        f"{STEPS}.resolutions",
        "[8",
        "[16, 24, 32]",
    ),
    ("a step without noise", {f"{STEPS}.sigmas.3": 0.0}, f"{STEPS}.sigmas", "0.0]", "(0, 1]"),
    ("a noise level above one", {f"{STEPS}.sigmas.0": 1.2}, f"{STEPS}.sigmas", "[1.2", "(0, 1]"),
    ("noise that rises", {f"{STEPS}.sigmas.3": 0.8}, f"{STEPS}.sigmas", "0.8]", "fall from 1"),
    (
        "more resolutions than noise levels",
        {f"{STEPS}.sigmas": [1.0]},
        f"{STEPS}.sigmas",
        "[1.0]",
        "one for each resolution",
    ),
    ("a block that the teacher lacks", {f"{SWD}.block": 1}, f"{SWD}.block", "1", "0 to 0, the blocks of swd-teacher"),
    ("a teacher of another class", {f"{SWD}.teacher": "ssd-2l"}, f"{SWD}.teacher", "'ssd-2l'", "dit, swd-teacher"),
    ("a teacher of two scales", {f"{SWD}.teacher": "msf"}, f"{SWD}.teacher", "'msf'", "dit, swd-teacher"),
    ("a student as a teacher", {f"{SWD}.teacher": "swd"}, f"{SWD}.teacher", "'swd'", "dit, swd-teacher"),
    ("a student of another kind", {f"{SWD}.kind": "msf"}, f"{SWD}.kind", "'msf'", "'swd'"),
    ("latents that a student cannot read", {f"{SWD}.dataset": "full"}, f"{SWD}.dataset", "'full'", "one of pyramid"),
    ("a student without any loss", {f"{SWD}.mmd.weight": 0.0}, f"{SWD}.mmd.weight", "0.0", "mmd, dmd or gan"),
    ("features of no fake score", {f"{SWD}.mmd.features": "fake"}, f"{SWD}.mmd.features", "'fake'", "without dmd"),
    ("a student with a part's name", {"students.dit": STUDENT}, "students.dit", "'dit'", "another name"),
    ("images with a decomposition's name", {"synthetic.full": IMAGES}, "synthetic.full", "'full'", "another name"),
    (
        "images of no teacher",
        MADE | {"synthetic.made.teacher": "swd"},
        "synthetic.made.teacher",
        "'swd'",
        "of dit, swd-t",
    ),
    (
        "images like none",
        MADE | {"synthetic.made.dataset": "full"},
        "synthetic.made.dataset",
        "'full'",
        "one of pyramid",
    ),
    (
        "prompts of classes",
        MADE | {"synthetic.made.texts": "prompts"},
        "synthetic.made.texts",
        "'prompts'",
        "captions: pyramid has no text",
    ),
    ("no images", MADE | {"synthetic.made.images": 0}, "synthetic.made.images", "0", "greater than 0"),
    ("images without a solver", MADE | {"synthetic.made.solver": ...}, "synthetic.made.solver", "missing", ""),
    ("images for a part", MADE | {"parts.swd-teacher.dataset": "made"}, *PART_OF_IMAGES),
    ("images of another text", MADE | TEXT | {"decompose.pyramid.text": "words"}, *OTHER_TEXT),
    ("a student of no such images", {f"{SWD}.dataset": "made"}, f"{SWD}.dataset", "'made'", "one of pyramid,"),
    ("a solver for a student", {"methods.swd.solver": SOLVER}, "methods.swd.solver", "'steps': 4", "null"),
    (
        "a pyramid of unsorted resolutions",
        {"decompose.pyramid.resolutions": [32, 16]},
        "decompose.pyramid.resolutions",
        "[32",
        "grow",
    ),
    (
        "a pyramid that is not encoded",
        {"decompose.pyramid.resolutions": [8, 32]},
        "latents.resolutions",
        "[16",
        "8 among them",
    ),
    ("an opponent that never learns", {f"{DETAILS}.discriminator.lr_factor": 0}, *OPPONENT),
    (
        "an unknown decomposition kind",
        {"decompose.full.kind": "fft"},
        "decompose.full.kind",
        "'fft'",
        "'msf', 'ssd', 'swd', 'wmgm'",
    ),
    ("jumps that rise", {JUMPS: [0.3, 0.6]}, JUMPS, "[0.3, 0.6]", "that fall"),
    ("a jump to noise", {JUMPS: [1.0]}, JUMPS, "[1.0]", "between 0 and 1"),
    ("a jump too many", {JUMPS: [0.8, 0.6, 0.4]}, JUMPS, "[0.8, ", "no multiple of the patch 2"),
    ("a solver too few", {"methods.pyramidal.scales": [SOLVER]}, "methods.pyramidal.scales", "1", "2 solvers"),
    ("a shift of one resolution", {f"{SHIFT}.teacher": "dit"}, f"{SHIFT}.teacher", "'dit'", "of swd-teacher"),
    ("a pyramid without what jumps need", {JUMPS: [0.8, 0.4], "parts.pyramidal.network.patch": 1}, *LACKING),
    ("a shift of a student", {f"{SHIFT}.teacher": "swd"}, f"{SHIFT}.teacher", "'swd'", "one of swd-teacher"),
    ("a shift from what was never seen", {f"{SHIFT}.schedule.resolutions": [8, 32]}, *UNSEEN),
    ("a shift that ends early", {f"{SHIFT}.schedule.resolutions": [16, 24]}, *UNSEEN[:1], "[16, 24]", UNSEEN[2]),
    ("a shift that shrinks", {f"{SHIFT}.schedule.resolutions": [32, 16]}, *UNSEEN[:1], "[32, 16]", "that grow"),
    ("a shift from less than noise", {f"{SHIFT}.schedule.levels": [0.9, 0.5]}, *LEVELS),
    ("an unknown extractor", {"evaluate.extractor": "vgg"}, "evaluate.extractor", "'vgg'", "'efficientnet-lite0'"),
    ("an unknown source", {"data.source": "ftp"}, "data.source", "'ftp'", "'digit-pairs', 'files', 'url' or 'hub'"),
    ("two extractors that are one", {"evaluate.second_extractor": "efficientnet-lite0"}, *SECOND),
    ("an unknown floor", {"evaluate.floors": ["fake"]}, "evaluate.floors.0", "'fake'", "'real' or 'autoencoder'"),
    ("a CLIP that is not there", {"evaluate.clip_score": "nope"}, "evaluate.clip_score", "'nope'", "null, or a folder"),
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
    ("a missing key", {"training.batch": ...}, "training.batch", "missing", "every key spelled out"),
    ("a missing key in a section", {"vae.groups": ...}, "vae.groups", "missing", "every key spelled out"),
    (
        "a decomposition without source",
        {"decompose.full.source": ...},
        "decompose.full.source",
        "missing",
        "spelled out",
    ),
    ("no mapping of students", WITHOUT_STUDENTS, "students", "missing", "every key spelled out"),
    ("no mapping of texts", {"text": ...}, "text", "missing", "every key spelled out"),
    ("pairs of digits without a number", {"data.source": "digit-pairs"}, "data.pictures", "None", "at least"),
    ("pairs too few for their contents", PAIRS | {"data.pictures": 205}, "data.pictures", "205", "at least 216"),
    ("a number of pictures of another source", {"data.pictures": 400}, "data.pictures", "400", "null with source: di"),
    ("a caption column of digits", {"data.caption_column": "x"}, "data.caption_column", "'x'", "null with source: di"),
    ("texts of images without captions", {"text": WORDS}, "text", "['words']", "{} for images without captions"),
    (
        "patches of an encoder that do not divide",
        {**TEXT, f"{ENCODER}.patch": 5},
        f"{ENCODER}.patch",
        "5",
        "data.resolution (32)",
    ),
    ("a width that heads do not divide", {**TEXT, f"{ENCODER}.heads": 3}, f"{ENCODER}.width", "8", "of heads (3)"),
    ("an encoder without its size", {**TEXT, f"{ENCODER}.width": ...}, f"{ENCODER}.width", "missing", "spelled out"),
    ("an unknown key of a training", {**TEXT, f"{ENCODER}.training": {"x": 1}}, f"{ENCODER}.training.x", "'x'", "lr"),
    ("an encoder of the hub without revision", {**TEXT, ENCODER: HUB}, f"{ENCODER}.revision", "None", "the hub"),
    ("prompts of captions elsewhere", {**TEXT, f"{PROMPTS}.path": "x"}, f"{PROMPTS}.path", "'x'", "data/images."),
    ("prompts of a file that is the images", {**TEXT, f"{PROMPTS}.source": "file"}, f"{PROMPTS}.path", "'da", "other"),
    ("prompts of the hub without name", {**TEXT, PROMPTS: OF_HUB}, f"{PROMPTS}.url", "None", "required with source"),
    ("prompts of captions with a revision", {**TEXT, f"{PROMPTS}.revision": "x"}, f"{PROMPTS}.revision", "'x'", "null"),
    ("a part named as a text encoder's timing", {"parts.text-words": PART}, "parts.text-words", "'text-", "another"),
    ("a method named as the text encoders", {"methods.text": METHOD}, "methods.text", "'text'", "another name"),
]

BROKEN = {
    "a: [1": "line 1",
    "seed: 0\nseed: 1\n": "line 2",
    "seed: \x00": "not valid YAML",
    "seed: !lambda x": "line 1",
    "": "a mapping of sections",
    "- seed": "a mapping of sections",
    "3: 4": "3: 3 is no key of this section; allowed: the keys recipe, seed",
    "seed: 0\n\tdata: 1": "line 2",
}


def line_of(error: pytest.ExceptionInfo) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.fixture
def refused(tiny, monkeypatch):
    """Loads a changed experiment, and returns the line that refuses it. Parsing YAML each time would be slow."""

    def refused(changes: dict) -> str:
        monkeypatch.setattr(settings, "read_yaml", lambda path: changed(tiny, changes))
        with pytest.raises(BadInput) as error:
            load()
        return line_of(error)

    return refused


@pytest.mark.parametrize("changes, key, value, allowed", [pytest.param(*row[1:], id=row[0]) for row in INVALID])
def test_an_invalid_setting_is_one_line_with_file_key_value_and_what_is_allowed(refused, changes, key, value, allowed):
    line = refused(changes)
    assert line.startswith(f"params.yaml: {key}: ")
    shown, _, rest = line.removeprefix(f"params.yaml: {key}: ").partition("allowed: ")
    assert value in shown and allowed in rest


@pytest.mark.parametrize("text, about", BROKEN.items())
def test_a_file_that_is_no_experiment_is_one_line(project, text, about):
    EXPERIMENT.write_text(text)
    with pytest.raises(BadInput) as error:
        load()
    assert line_of(error).startswith("params.yaml: ") and about in line_of(error)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00seed", None])
def test_a_file_that_is_no_text_is_one_line(project, content):
    EXPERIMENT.unlink()
    EXPERIMENT.mkdir() if content is None else EXPERIMENT.write_bytes(content)
    with pytest.raises(BadInput) as error:
        load()
    assert line_of(error).startswith("params.yaml: ") and "YAML" in line_of(error)


def integers(schema, at=""):
    """The place and the bounds of every integer of a JSON schema, whatever it is an alternative to."""
    for key, inside in schema.items() if isinstance(schema, dict) else enumerate(schema):
        name = (
            at if isinstance(key, int) or key in ("anyOf", "oneOf", "items", "properties", "$defs") else f"{at}.{key}"
        )
        if isinstance(inside, dict) and inside.get("type") == "integer":
            yield name, inside
        elif isinstance(inside, dict | list):
            yield from integers(inside, name)


def test_every_integer_but_a_seed_has_a_bound_far_below_what_json_holds():
    found = dict(integers(Experiment.model_json_schema()))
    most = {name: bounds.get("maximum", max(bounds.get("enum", [2**53]))) for name, bounds in found.items()}
    assert len(most) > 100 and most[".DiTNetwork.depth"] == 1024 and most[".Training.microbatch"] == 65_536
    assert {name.rpartition(".")[2] for name, bound in most.items() if bound >= 2**53} == {"seed", "first_seed"}
    # More of these only takes longer, or there are as many as there are images; all else is made, or listed.
    counts = ("images", "warmup_images", "ema_images", "log_images", "reference_images", "limit")
    assert {name.rpartition(".")[2] for name, bound in most.items() if 10**7 < bound < 2**53} == set(counts)


def test_a_missing_experiment_is_one_line(project):
    EXPERIMENT.unlink()
    with pytest.raises(BadInput, match=r"^params.yaml: the file is missing") as error:
        load()
    line_of(error)


@pytest.mark.parametrize(
    "stage, changes, key, value, allowed",
    [
        (["train", "dit"], {"sed": 1}, "sed", "'sed'", "recipe, seed, run"),
        (["classifier"], {"classifier.training.lr": -1}, "classifier.training.lr", "-1", "greater than 0"),
        (["decompose", "full"], {"decompose.full.resolutions": []}, "decompose.full.resolutions", "[]", "at least 1"),
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
    assert done.stderr.startswith(f"error: params.yaml: {key}: {value} ") and done.stderr.count("\n") == 1
    assert allowed in done.stderr.partition("allowed: ")[2]
    assert project.files() == before


def test_a_missing_weights_file_is_one_line(project):
    write_images(Path("data/images.parquet"), 1)
    project.change({"evaluate.extractor": "inception-v3-compat", "evaluate.weights": "none.pth"})
    with pytest.raises(BadInput, match=r"^params.yaml: evaluate.weights: 'none.pth' .*allowed: ") as error:
        reference.main(load())
    line_of(error)
    assert not Path("data/reference").exists()


def test_weights_of_an_extractor_that_cannot_be_fetched_are_one_line(project, monkeypatch):
    def urlopen(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(project.folder / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", urlopen)
    write_images(Path("data/images.parquet"), 1)
    project.change({"evaluate.extractor": "inception-v3-compat"})
    done = project.stage("reference")
    *said, line = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "") and not any("error" in each for each in said), done.stderr
    assert line.startswith("error: params.yaml: evaluate.extractor: the weights of inception-v3-compat cannot be ")
    assert "(<urlopen error no network>)" in line and f"into {project.folder}/torch/hub/checkpoints, or " in line
    assert not Path("data/reference").exists()


def test_a_wrong_checksum_is_one_line_and_leaves_no_images(project):
    Path("set.zip").write_bytes(b"anything")
    project.change({"data.source": "files", "data.path": "set.zip", "data.sha256": SHA})
    with pytest.raises(BadInput, match=rf"^params.yaml: data.sha256: '{SHA}' .*allowed: ") as error:
        download.main(load())
    line_of(error)
    assert not Path("data/images.parquet").exists()


def test_no_default_of_the_code_enters_a_result_of_a_stage_that_does_not_depend_on_it(refused, tiny):
    """Leaving out any key of the shared sections is refused by a line that names the key."""
    shared = ("data", "training", "vae", "latents", "classifier", "sample", "evaluate")
    keys = [f"{name}.{key}" for name in shared for key in tiny[name] if key != "training"]
    keys = [
        *tiny.keys() - {"run", "students"},
        *(key for key in keys if key != "evaluate.reference_images"),
    ]  # without it: null
    assert len(keys) > 55
    lines = {key: refused({key: ...}) for key in keys}
    assert not {key: line for key, line in lines.items() if not line.startswith(f"params.yaml: {key}: ")}


def test_a_text_encoder_is_trained_as_the_section_training_says_but_for_what_it_says_itself(tiny):
    experiment = settings.validate(changed(tiny, {**TEXT, f"{ENCODER}.training": {"images": 7}}), "file")
    training = experiment.text["words"].encoder.training
    assert training == Training.model_validate(tiny["training"] | {"images": 7})
    file = settings.written(experiment)
    assert file["text"] == {"words": WORDS["words"] | {"encoder": file["text"]["words"]["encoder"]}}
    assert file["text"]["words"]["encoder"] == WORDS["words"]["encoder"] | {"training": {"images": 7}}


def test_a_part_is_trained_as_the_section_training_says_but_for_what_it_says_itself(tiny):
    common = dict(images=5000, batch=8, lr=0.5, weight_decay=0.25)
    tree = changed(tiny, {"training": common, "parts.msf-0.training": {"lr": 0.125}, f"{SWD}.training": {"batch": 4}})
    del tree["parts"]["dit"]["training"], tree["classifier"]["training"]
    made = settings.validate(tree, EXPERIMENT)
    every = Training(**common)
    assert made.training == made.parts["dit"].training == made.classifier.training == every
    assert made.parts["msf-0"].training == Training(**common | {"lr": 0.125})
    assert made.students["swd"].training == Training(**common | {"batch": 4})
    assert made.vae.training == Training(**common | tiny["vae"]["training"])


def test_a_fault_in_the_section_training_is_its_own_and_not_that_of_the_parts_that_take_it_over(refused, tiny):
    nowhere = {f"parts.{name}.training": {} for name in tiny["parts"]}
    assert refused({"training.batch": 0, **nowhere}).startswith("params.yaml: training.batch: 0 ")


def test_scores_of_prompts_are_refused_where_images_have_none(refused, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    line = refused({"evaluate.pick_score": str(tmp_path)})
    assert line.startswith("params.yaml: evaluate.pick_score: ") and line.endswith("null, since `text` is empty")


def test_an_experiment_without_an_autoencoder_trains_none(tiny):
    tree = changed(tiny, dict.fromkeys(LATENT, ...) | NO_VAE | {"latents.resolutions": [], "evaluate.floors": []})
    made = settings.validate(tree, EXPERIMENT)
    assert made.vae.model_dump() == {"kind": "none"} and made.vae.factor == 1


def test_the_whole_tree_of_an_experiment_is_the_experiment(tiny):
    """A sweep varies that tree."""
    made = settings.validate(tiny, EXPERIMENT)
    whole = made.model_dump()
    assert settings.validate(whole, EXPERIMENT) == made
    assert whole["training"].keys() == whole["parts"]["dit"]["training"].keys() == whole["vae"]["training"].keys()
    whole["training"]["lr"] = 0.5  # every part has one of its own here
    assert settings.validate(whole, EXPERIMENT).parts == made.parts


def test_the_parts_of_a_method_are_those_that_name_it_in_the_order_of_the_file(tiny):
    tree = changed(tiny, {})
    tree["parts"] = {name: tree["parts"][name] for name in ("wmgm-details", "msf-1", "wmgm-low", *tree["parts"])}
    made = settings.validate(tree, EXPERIMENT)
    assert list(made.parts_of("msf")) == ["msf-1", "msf-0"]
    assert list(made.parts_of("wmgm")) == ["wmgm-details", "wmgm-low"]
    assert made.parts_of("swd") == {"swd": made.students["swd"]}
    assert made.parts_of("ddpm") == {}


def test_how_stages_run_may_be_left_out(project):
    project.change({"run": ...})
    assert load().run == Run() and (Run().checkpoint_seconds, Run().batch) == (30.0, 128)


def test_scientific_notation_is_the_number_that_dvc_reads(project):
    from dvc.utils.serialize import parse_yaml

    text = recipe.render(recipe.experiment_of("tiny")).replace("kl_weight: 0.001", "kl_weight: 1e-3")
    EXPERIMENT.write_text(text)
    assert "1e-3" in text
    assert load().vae.kl_weight == parse_yaml(text, "experiment.yaml")["vae"]["kl_weight"] == 0.001


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("params/recipes/*.yaml")))
def test_every_shipped_recipe_is_a_whole_experiment(project, name):
    made = recipe.experiment_of(name)
    EXPERIMENT.write_text(recipe.render(made))
    assert load() == made


def test_the_shipped_experiment_is_what_its_recipe_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert EXPERIMENT.read_text() == recipe.render(recipe.experiment_of(load().recipe))
