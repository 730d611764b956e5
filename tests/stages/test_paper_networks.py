"""The networks of the published recipes: parameters and operations on the meta device, and a small copy of each run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT, as_yaml, sealed, write_images
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multiscale.core.compat import make_torchvision_importable
from multiscale.methods.ssd.settings import ScaleSpaceProcess
from multiscale.networks.autoencoder import kl_class
from multiscale.networks.unet import UNetNetwork
from stages import recipe
from stages.common.paths import IMAGES, SAMPLES


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def built(make) -> nn.Module:
    with torch.device("meta"):
        return make()


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def products(net: nn.Module, *given: torch.Tensor) -> int:
    """The multiply-adds of a call, those of attention included."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(*given)
    return counter.get_total_flops() // 2


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# --- DiT (2212.09748, table 1) and MSF (2501.13349, table 1)

#                          edge  channels   parameters, M   multiply-adds, G
DIT = {
    ("dit-imagenet256", "dit"):   (32, 4, 675.0, 118.6),
    ("msf-imagenet256", "msf-0"): (24, 4, 435.9, None),
    ("msf-imagenet256", "msf-1"): (32, 8, 331.2, None),
    ("msf-imagenet512", "msf-0"): (48, 4, 435.9, None),
    ("msf-imagenet512", "msf-1"): (64, 8, 331.2, None),
}  # fmt: skip


def by_hand(depth: int, width: int, edge: int, channels: int) -> int:
    """Multiply-adds of a DiT with patches of 2, layer by layer."""
    tokens = (edge // 2) ** 2
    block = 12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2
    return depth * block + 4 * tokens * width * (channels + 4) + 2 * width**2 + 256 * width + width**2


@pytest.fixture(scope="module")
def costs() -> dict[tuple[str, str], int]:
    return {}


@pytest.mark.parametrize(("name", "part"), DIT)
def test_the_transformers_have_the_published_parameters_and_operations(name, part, costs):
    edge, channels, published, products_published = DIT[name, part]
    experiment = recipe.experiment_of(name)
    section = experiment.parts[part]
    net = built(lambda: section.network.build(channels, 4, experiment.data.classes))
    assert experiment.decompose[section.dataset].resolutions[section.index] == 8 * edge
    assert parameters(net) / 1e6 == pytest.approx(published, abs=0.25)  # DiT's output has a variance, too
    costs[name, part] = found = products(net, meta(1, channels, edge, edge), meta(1), meta(1).long())
    assert found == pytest.approx(by_hand(section.network.depth, section.network.width, edge, channels), rel=1e-3)
    if products_published:
        assert found / 1e9 == pytest.approx(products_published, abs=0.2)


def test_an_image_of_msf_costs_a_fifth_of_dits(costs):
    """100 guided and 50 further steps against 250 guided ones; the paper's table has 68 and 145 for the time."""
    if len(costs) < len(DIT):
        pytest.skip("the costs are those of the test before")
    image = {}
    for name, method in (("msf-imagenet256", "msf"), ("dit-imagenet256", "dit")):
        experiment = recipe.experiment_of(name)
        parts = experiment.parts_of(method)
        solvers = experiment.methods[method].scales
        calls = [solver.steps * (1 if solver.guidance_scale == 1 else 2) for solver in solvers]
        image[method] = sum(count * costs[name, part] for count, part in zip(calls, parts))
    assert image["dit"] / image["msf"] == pytest.approx(5.24, abs=0.05)


def test_msf_and_dit_have_their_published_values():
    """Section 4.1 and 4.2 of MSF; section 4 of DiT."""
    half_life = {256: 1_774_000, 2560: 17_744_000}  # of a decay of 0.9999 an iteration
    for batch, images in half_life.items():
        assert 1 - 0.5 ** (batch / images) == pytest.approx(1e-4, rel=2e-3)
    for name, images in (("msf-imagenet256", 256), ("msf-imagenet512", 512), ("dit-imagenet256", 256)):
        made = recipe.experiment_of(name).model_dump()
        about = {key: made["data"][key] for key in ("resolution", "channels", "classes", "resize")}
        assert about == {"resolution": images, "channels": 3, "classes": 1000, "resize": "box-bicubic"}
        assert made["vae"]["source"] == "stabilityai/sd-vae-ft-ema" and len(made["vae"]["revision"]) == 40
        assert made["sample"]["images"] == 50_000 and made["evaluate"]["extractor"] == "inception-v3-compat"
        assert made["evaluate"]["reference"].endswith(".npz")
        for part, section in made["parts"].items():
            training = section["training"]
            iterations = {"msf-0": 400_000, "msf-1": 250_000, "dit": 7_000_000}[part]
            batch = 256 if part == "dit" else 2560
            assert (training["images"], training["batch"]) == (iterations * batch, batch)
            assert training["ema_images"] == half_life[batch] and training["lr"] == pytest.approx(1e-4 * batch / 256)
            assert (training["weight_decay"], training["decay"], section["label_dropout"]) == (0.0, "constant", 0.1)
    scales = recipe.experiment_of("msf-imagenet256").methods["msf"].scales
    assert [(each.steps, each.guidance_scale) for each in scales] == [(100, 1.4), (50, 1.0)]
    (solver,) = recipe.experiment_of("dit-imagenet256").methods["dit"].scales
    assert (solver.steps, solver.guidance_scale) == (250, 1 + 0.75 * (1.5 - 1))  # 1.5 guides three of four channels


# --- SSD (2603.08709, table 1) and WMGM (2411.09356, the released code)


@pytest.mark.parametrize("resolution", [64, 128, 256])
def test_ssds_rows_are_the_networks_whose_operations_are_published(resolution):
    """`test_the_published_networks_cost_the_published_gflops` counts those of the presets."""
    preset = UNetNetwork.model_validate({"preset": f"SSD-{resolution}"}).model_dump(exclude={"top_block"})
    for section in recipe.experiment_of(f"ssd-celeba{resolution}").parts.values():
        assert section.network.model_dump(exclude={"top_block"}) == preset
        assert section.process == ScaleSpaceProcess(levels=section.process.levels)


@pytest.mark.parametrize("name", ["wmgm-celebahq", "wmgm-afhq-cat", "wmgm-lsun-church"])
def test_wmgms_details_have_the_released_parameters_and_operations(name):
    details = recipe.experiment_of(name).parts["wmgm-details"]
    generator = built(lambda: details.generator.build(6, 9))
    assert parameters(generator) == 36_471_600
    assert parameters(built(lambda: details.discriminator.build(3))) == 42_632_257
    if name == "wmgm-celebahq":
        for edge, published in ((32, 3.97), (64, 15.88)):
            found = 2 * products(generator.eval(), meta(1, 6, edge, edge))
            assert found / 1e9 == pytest.approx(published, abs=0.006)


# --- a small copy of each goes through the stages

SHORT = {"images": 8, "batch": 4, "log_images": 8, "warmup_images": 0, "precision": "fp32", "lr": 0.02, "ema_images": 0}
COMMON = {
    "run": {"workers": 0, "batch": 16, "previews": 0},
    "data": {"resolution": 32, "channels": 1, "classes": None},
    "sample": {"images": 4, "batch": 4, "precision": "fp32"},
    "evaluate": {"is_splits": 1, "prc_neighborhood": 1, "reference": None},
    "training": SHORT,
}
SMALL = {"depth": 1, "width": 16, "heads": 2, "patch": 2}
UNET = {"width": 8, "groups": 4, "blocks": 1, "attention": [8]}
COPIES = {  # method: the recipe, and what is small in it
    "dit": (
        "dit-imagenet256",
        {
            "latents": {"resolutions": [32]},
            "decompose": {"full": {"resolutions": [32]}},
            "parts": {"dit": {"network": SMALL}},
            "methods": {"dit": {"scales": [{"steps": 2, "guidance_scale": 1.5}]}},
        },
    ),
    "msf": (
        "msf-imagenet256",
        {
            "latents": {"resolutions": [16, 32]},
            "decompose": {"residual": {"resolutions": [16, 32]}},
            "parts": {"msf-0": {"network": SMALL}, "msf-1": {"network": SMALL, "training": {"images": 8}}},
            "methods": {"msf": {"scales": [{"steps": 2, "guidance_scale": 1.4}, {"steps": 1}]}},
        },
    ),
    "ssd-4l": (
        "ssd-celeba64",
        {"parts": {"ssd-4l": {"network": UNET}}, "methods": {"ssd-4l": {"solver": {"steps": 4}}}},
    ),
    "full-2l": (
        "ssd-celeba64-full-unet",
        {"parts": {"full-2l": {"network": UNET}}, "methods": {"full-2l": {"solver": {"steps": 3}}}},
    ),
    "gradual": (
        "ssd-celeba32-gradual",
        {
            "parts": {"gradual": {"network": {**UNET, "multipliers": [1, 1], "attention": []}}},
            "methods": {"gradual": {"solver": {"steps": 2}}},
        },
    ),
    "wmgm": (
        "wmgm-celebahq",
        {
            "parts": {
                "wmgm-low": {"network": {**UNET, "multipliers": [1, 2]}},
                "wmgm-details": {
                    "generator": {"widths": [4, 8]},
                    "discriminator": {"width": 4, "blocks": 2},
                    "training": SHORT,
                },
            },
            "methods": {"wmgm": {"solver": {"steps": 3}}},
        },
    ),
}


@pytest.mark.parametrize("method", COPIES)
def test_a_small_copy_is_trained_and_sampled(method, project):
    name, small = COPIES[method]
    tree = {"extends": name, "only": [method], **COMMON, **small}
    if "latents" in small:
        make_torchvision_importable()
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = kl_class()(in_channels=1, out_channels=1, block_out_channels=(4,) * 4, norm_num_groups=2, **blocks)
        vae.save_pretrained("weights/vae")
        tree["vae"] = {"source": "weights/vae", "revision": None}
    Path("params/recipes/mine.yaml").write_text(as_yaml(tree))
    write_images(IMAGES, 40)
    sealed(IMAGES)
    made = recipe.experiment_of("mine")
    parts = made.parts_of(method)
    stages = ["recipe mine --force", "vae", *(f"latents {each}" for each in made.latents.resolutions)]
    stages += [f"decompose {each}" for each in sorted(made.needed_by(parts.values()))]
    for stage in (*stages, *(f"train {each}" for each in parts), f"sample {method}"):
        done = project.stage(*stage.split())
        assert done.returncode == 0, f"{stage}\n{done.stderr}"
    pixels = load_file(SAMPLES / method / "images.safetensors")["pixels"]
    assert pixels.shape == (4, 1, 32, 32) and pixels.float().std() > 0
