"""Recipes named after a paper hold the values of that paper, and inherit none from another recipe."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import CONFIG, ROOT, TRAINING
from torch import nn

from multiscale.methods.swd.schedule import MMD_RANGE, sigma_grid
from multiscale.training.loop import Trainer
from multiscale.training.part import Part
from stages import recipe
from stages.common.reading import read_yaml

RECIPES = {path.stem: path for path in sorted(ROOT.glob("params/recipes/*.yaml"))}
PAPERS = [name for name, path in RECIPES.items() if "(arXiv" in path.read_text().partition("\n")[0]]
HALF_LIFE = {128: 887_000, 64: 444_000}  # images that halve the weight of an average of decay 0.9999, by batch


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def near(tree: object, expected: object, at: str = "") -> None:
    """Asserts that a tree has these values; other keys may have any value."""
    if not isinstance(expected, dict):
        assert tree == expected, f"{at}: {tree}, published: {expected}"
        return
    for key, value in expected.items():
        near(tree[key], value, f"{at}.{key}" if at else key)


# --- SSD, arXiv 2603.08709: supplement, hyper-parameters; where marked [C] its released code

#                     resolution  levels     iterations  batch lr    multipliers       parameters of the plain UNet, M
SSD = {
    "ssd-celeba64":   (64,  (2, 3, 4), 1_000_000, 128, 1e-4, [1, 2, 3, 4],       92.03),
    "ssd-celeba128":  (128, (3, 5),    300_000,   128, 1e-4, [1, 1, 2, 3, 4],    95.00),
    "ssd-celeba256":  (256, (3, 4, 6), 300_000,   64,  5e-5, [1, 1, 2, 2, 4, 4], 124.05),
    "ssd-imagenet64": (64,  (2, 4),    1_000_000, 128, 1e-4, [1, 2, 3, 4],       92.03),
}  # fmt: skip
CHAIN = {  # of every SSD
    "process": {
        "steps": 1000,
        "resolutions": "halved",
        "schedule": "convex-decay",
        "gamma": 0.5,
        "operator": "bilinear",
        "noise_factor": 1.0,
    },
    "conditional": False,
    "flip": True,  # [C]
    "oversample": 1,
    "reweight": True,
}
OPTIMISER = {  # [C]: AdamW, lr_anneal_steps 0, no warm-up, no clipping, use_fp16 false
    "warmup_images": 0,
    "decay": "constant",
    "beta2": 0.999,
    "weight_decay": 0.0,
    "clip": 0.0,
    "precision": "fp32",
}
#            predicts  Min-SNR cap  variance
ROWS = {
    "ddpm-x0":  ("x0",    5.0,  "large"),
    "ddpm-eps": ("noise", None, "large"),
    "ssd":      ("x0",    5.0,  "small"),
}  # fmt: skip
SAMPLER = {"steps": 1000, "eta": 1.0, "guidance_scale": 1.0}
FID = {"sample": {"images": 50_000}, "evaluate": {"extractor": "inception-v3-compat", "reference_images": None}}


def images_of(resolution: int) -> dict:
    """[C]: RGB, ADM's preprocessing; all images are training images, which FID is against."""
    return {
        "resolution": resolution,
        "channels": 3,
        "resize": "box-bicubic",
        "validation_share": 0.0,
        "test_share": 0.0,
    }


@pytest.mark.parametrize("name", SSD)
def test_ssd_has_its_published_values(name):
    resolution, levels, iterations, batch, lr, multipliers, parameters = SSD[name]
    experiment = recipe.experiment_of(name)
    made = experiment.model_dump()
    near(made, {**FID, "data": images_of(resolution), "vae": {"kind": "none"}, "students": {}})
    rows = {"ddpm-x0": 1, "ddpm-eps": 1, **{f"ssd-{n}l": n for n in levels}}
    assert set(made["parts"]) == set(made["methods"]) == set(rows)
    network = {"width": 128, "multipliers": multipliers, "blocks": 2, "attention": [16, 8], "heads": 4, "groups": 32}
    training = {"images": iterations * batch, "batch": batch, "lr": lr, "ema_images": HALF_LIFE[batch], **OPTIMISER}
    for row, n in rows.items():
        predicts, cap, variance = ROWS.get(row) or ROWS["ssd"]
        part = made["parts"][row]
        near(part, {**CHAIN, "unet": "flexi", "predicts": predicts, "snr_cap": cap, "training": training}, row)
        near(part, {"process": {"levels": n}, "network": {**network, "top_block": n == 1}}, row)
        near(made["methods"][row], {"solver": {**SAMPLER, "variance": variance}}, row)
    with torch.device("meta"):  # the baseline's network is the plain UNet (spec 6.1)
        net = experiment.parts["ddpm-eps"].network.build(3, resolution)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)


def test_the_ablation_of_ssds_network_changes_the_network_alone():
    """Section 'Full UNet': CelebA-64 after 500 K iterations."""
    made, main = (recipe.experiment_of(name).model_dump() for name in ("ssd-celeba64-full-unet", "ssd-celeba64"))
    assert {key: made[key] for key in ("data", "sample", "evaluate")} == {
        key: main[key] for key in ("data", "sample", "evaluate")
    }
    assert set(made["parts"]) == set(made["methods"]) == {"flexi-2l", "flexi-4l", "full-2l", "full-4l"}
    for row, part in made["parts"].items():
        kind, levels = row.split("-")
        expected = main["parts"][f"ssd-{levels}"]
        network = expected["network"] | {"top_block": kind == "full"}  # a plain UNet runs its last block
        training = expected["training"] | {"images": 500_000 * 128}
        assert part == expected | {"method": row, "unet": kind, "network": network, "training": training}
        assert made["methods"][row] == main["methods"][f"ssd-{levels}"]


def test_ssds_gradual_sizes_have_their_published_values():
    """Supplement, alternate degradations; the network and optimiser of the DDPM that it uses there."""
    experiment = recipe.experiment_of("ssd-celeba32-gradual")
    made = experiment.model_dump()
    near(made, {**FID, "data": images_of(32)})
    rows = {  # predicts, cap, variance, rule, levels, the first and last resolution
        "ddpm-eps": (*ROWS["ddpm-eps"], "halved", 1, [32]),
        "ssd-5l": (*ROWS["ssd"], "halved", 5, [32, 16, 8, 4, 2]),
        "gradual": (*ROWS["ssd"], "gradual", 31, list(range(32, 1, -1))),
    }
    assert set(made["parts"]) == set(made["methods"]) == set(rows)
    network = {"width": 128, "multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [16], "heads": 1, "groups": 32}
    theirs = {"lr": 2e-4, "decay": "cosine", "clip": 1.0, "ema_images": HALF_LIFE[128]}
    training = {**OPTIMISER, **theirs, "images": 300 * 162_770, "batch": 128}  # 300 epochs of CelebA's training split
    for row, (predicts, cap, variance, kind, levels, resolutions) in rows.items():
        part = made["parts"][row]
        process = {**CHAIN["process"], "resolutions": kind, "levels": levels}
        near(part, {**CHAIN, "process": process, "unet": "enlarged", "predicts": predicts, "snr_cap": cap}, row)
        near(part, {"network": network, "training": training}, row)
        near(made["methods"][row], {"solver": {**SAMPLER, "variance": variance}}, row)
        assert experiment.parts[row].process.levels_of(32) == resolutions


# --- WMGM, arXiv 2411.09356: the released code, whose score model is improved-diffusion's for 32x32

EPOCH = {"wmgm-celebahq": 30_000, "wmgm-afhq-cat": 5_153, "wmgm-lsun-church": 126_227}  # training images
SCORE = {"images": 500_000 * 128, "batch": 128, "lr": 1e-4, "ema_images": HALF_LIFE[128], **OPTIMISER}


@pytest.mark.parametrize("name", EPOCH)
def test_wmgm_has_its_published_values(name):
    made = recipe.experiment_of(name).model_dump()
    near(made["data"], {"resolution": 128, "channels": 3})
    near(made["decompose"]["wavelet"], {"kind": "wmgm", "filter": "haar", "levels": 2})  # 128 -> 64 -> 32
    assert set(made["parts"]) == {"wmgm-low", "sgm", "wmgm-details"} and set(made["methods"]) == {"wmgm", "sgm"}
    low, sgm, details = (made["parts"][part] for part in ("wmgm-low", "sgm", "wmgm-details"))
    network = {"width": 128, "multipliers": [1, 2, 2, 2], "blocks": 3, "attention": [16, 8], "heads": 4}
    network["top_block"] = True  # improved-diffusion's decoder has blocks + 1 at every level
    score = {"conditional": False, "predicts": "noise", "snr_cap": None, "training": SCORE}  # the plain loss
    near(low, {"dataset": "wavelet", "network": network, **score})
    near(sgm, {"dataset": "pixels", **score})
    near(
        details,
        {
            "role": "details",
            "level": None,  # one generator for both levels
            "standardised": False,
            "condition_noise": 0.0,
            "generator": {"widths": [64, 128, 256, 512, 1024], "norm": "batch", "head": "tanh"},
            "discriminator": {"width": 64, "blocks": 5, "norm": "batch", "dropout": 0.5, "conditional": False},
            "loss": {"form": "sigmoid-mean", "mse": 20.0, "ssim": 0.5, "adversarial": 0.1, "r1": 0.0, "draws": 1},
            "training": {**OPTIMISER, "images": 100 * 2 * EPOCH[name], "batch": 128, "lr": 1e-4, "weight_decay": 0.01},
        },
    )
    assert (details["loss"]["discriminator_every"], details["loss"]["levels"]) == (4, "pass")
    assert details["training"]["lr"] * details["discriminator"]["lr_factor"] == pytest.approx(1e-5)
    assert details["training"]["ema_images"] == 0  # no average
    assert {row: method["solver"]["name"] for row, method in made["methods"].items()} == {
        "wmgm": "euler-maruyama",
        "sgm": "euler-maruyama",
    }


# --- SwD, arXiv 2503.16397: sections 3 and 4, appendices; where marked [C] its released code

#                                  parameters      rank block updates batch  lr    DMD's scale  teacher's steps, scale
SWD = {
    ("swd-sd35-medium", "swd"):   (2_243_171_520,  64,  11,  3000,   64,    5e-6, 7.0,         40, 4.5),
    ("swd-sd35-medium", "swd-4"): (2_243_171_520,  64,  11,  3000,   64,    5e-6, 7.0,         40, 4.5),
    ("swd-sd35-large", "swd"):    (8_056_627_520,  64,  20,  4000,   32,    5e-6, 4.5,         28, 4.5),
    ("swd-flux", "swd"):          (11_901_408_320, 128, 15,  3000,   24,    4e-6, 1.0,         30, 1.0),
    ("swd-sdxl", "swd"):          (2_567_463_684,  64,  3,   3000,   64,    4e-6, None,        50, 7.5),
}  # fmt: skip
TIMES = {  # 1000 sigma, and the resolutions of the latents
    ("swd-sd35-medium", "swd"): ([1000, 945, 896, 790, 737, 602], [32, 48, 64, 80, 96, 128]),
    ("swd-sd35-medium", "swd-4"): ([1000, 896, 737, 602], [64, 80, 96, 128]),  # [C]
    ("swd-sd35-large", "swd"): ([1000, 896, 737, 602], [64, 80, 96, 128]),
    ("swd-flux", "swd"): ([1000, 945, 790, 602], [32, 64, 96, 128]),
    ("swd-sdxl", "swd"): ([1000, 836.4, 695.6, 538], [64, 80, 96, 128]),  # timesteps 1000, 800, 600, 400 of VP noise
}


@pytest.mark.parametrize(("name", "student"), SWD)
def test_swd_has_its_published_values(name, student):
    parameters, rank, block, updates, batch, lr, scale, steps, guidance = SWD[name, student]
    experiment = recipe.experiment_of(name)
    made = experiment.model_dump()
    section = made["students"][student]
    turns = 6 if scale else 1  # [C]: five updates of the fake score before one of the generator
    training = {"images": updates * batch * turns, "batch": batch, "lr": lr, "ema_images": 0}
    theirs = {"beta2": 0.999, "weight_decay": 0.01, "clip": 10.0, "decay": "constant", "warmup_images": 0}
    near(section, {"lora_rank": rank, "block": block, "training": {**training, **theirs, "precision": "bf16"}})
    near(section["schedule"], {"sigmas": [time / 1000 for time in TIMES[name, student][0]]})
    assert section["schedule"]["resolutions"] == [8 * edge for edge in TIMES[name, student][1]]
    weights = {"mmd": 1.0, "dmd": 1.0, "gan": 5e-3} if scale else {"mmd": 1.0, "dmd": 0.0, "gan": 0.0}
    near(section, {loss: {"weight": weight} for loss, weight in weights.items()})
    if scale:
        near(section, {"dmd": {"guidance_scale": scale}, "gan": {"discriminator": 1e-2}, "fake": {"updates": 5}})
    assert section["dataset"] in made["synthetic"]
    near(
        made["synthetic"][section["dataset"]],
        {"images": 200_000, "solver": {"steps": steps, "guidance_scale": guidance}},
    )
    near(made["data"], {"resolution": 1024, "channels": 3})
    near(made["sample"], {"images": 30_000})
    (teacher,) = experiment.parts.values()
    with torch.device("meta"):
        assert sum(p.numel() for p in teacher.network.build().parameters()) == parameters
    assert {made["vae"]["source"], made["text"]["coco"]["encoder"]["source"]} == {teacher.source}


def test_the_noise_of_mmd_for_sdxl_ends_at_timestep_400():
    """Noise levels of [0, 400], the paper's for SDXL: as a flow up to 0.538."""
    section = recipe.experiment_of("swd-sdxl").students["swd"]
    assert sigma_grid(section.shift)[MMD_RANGE[0]].item() == pytest.approx(0.538, abs=1e-3)


# --- both


ENCODED, DECODED = 1.9, 2.7  # GB that an image of 1024 pixels takes Stable Diffusion's autoencoder, with norms in fp32


@pytest.mark.parametrize("name", PAPERS)
def test_no_batch_is_more_than_the_autoencoder_can_take_on_a_gpu_of_80_gb(name):
    experiment = recipe.experiment_of(name)
    if experiment.vae.kind == "none":
        return
    decoded = [experiment.sample.batch, *(each.batch for each in experiment.synthetic.values())]
    taken = max(ENCODED * max(experiment.run.batch, *decoded), DECODED * max(decoded))
    assert taken * (experiment.data.resolution / 1024) ** 2 < 75


def test_half_lives_in_images_are_the_published_decay():
    for batch, images in HALF_LIFE.items():
        assert 1 - 0.5 ** (batch / images) == pytest.approx(1 - 0.9999, rel=2e-3)


def test_the_first_beta_of_adam_is_the_published_one():
    trainer = Trainer(Part("part", [0], {"net": nn.Linear(1, 1)}, CONFIG), TRAINING, 0)
    assert trainer.optimizers["net"][0].defaults["betas"] == (0.9, TRAINING.beta2)


def test_the_rows_of_the_published_tables_are_rows_of_the_recipes():
    named = re.findall(r"^\| `([\w-]+)`, `([\w-]+)` \|", (ROOT / "docs/reproducing.md").read_text(), re.MULTILINE)
    assert len(named) > 20
    assert not [(name, row) for name, row in named if row not in recipe.resolve(name)["methods"]]


def test_every_recipe_of_a_paper_is_looked_at():
    """A recipe that no table tests is named here."""
    known = {*SSD, *EPOCH, "ssd-celeba64-full-unet", "ssd-celeba32-gradual"}
    known |= {name for name, _ in SWD} | {"dit-imagenet256", "msf-imagenet256", "msf-imagenet512"}
    assert set(PAPERS) == known


# What decides no number of the tables: speed, what is shown, and settings of what these recipes do not do.
UNSAID = {"compile", "source", "guidance_interval", "first_seed", "grid_columns", "grid_rows", "labels"}
UNSAID |= {"image_column", "label_column", "max_unreadable", "recompute", "validation_images", "step_images"}


def unsaid(given: object, full: object, at: str) -> list[str]:
    """The keys that stand at their default without a word; null says that there is nothing."""
    if not isinstance(full, dict) or (isinstance(given, dict) and "preset" in given):
        return []
    found = []
    for key, value in full.items():
        if isinstance(given, dict) and key in given:
            found += unsaid(given[key], value, f"{at}.{key}")
        elif value is not None:
            found.append(f"{at}.{key}")
    return found


@pytest.mark.parametrize("name", [name for name in PAPERS if not name.startswith("swd")])
def test_a_recipe_of_a_paper_leaves_no_number_to_a_default(name):
    given, made = recipe.resolve(name), recipe.experiment_of(name).model_dump()
    found = []
    for kind in ("parts", "methods"):
        for key, section in made[kind].items():
            own = dict(given[kind][key])
            if "training" in section:
                own["training"] = given["training"] | own.get("training", {})
            found += unsaid(own, section, f"{kind}.{key}")
    for key in ("data", "vae", "latents", "decompose", "sample", "evaluate"):
        found += unsaid(given[key], made[key], key)
    if not made["latents"]["resolutions"]:
        found.remove("latents.precision")
    allowed = UNSAID if re.match("dit|msf", name) else UNSAID | {"label_dropout"}  # there are no classes
    points = re.compile(r"methods\.[^.]+\.steps")  # further ones of the plot
    assert not [key for key in found if key.rpartition(".")[2] not in allowed and not points.fullmatch(key)]


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_of_a_paper_inherits_no_part_and_no_training(name):
    base = read_yaml(RECIPES[name]).get("extends")
    inherited = recipe.resolve(base) if base else {}
    assert not {"parts", "students"} & set(inherited), f"{name} extends {base}"
    assert "training" not in str(inherited), f"{name} extends {base}"
