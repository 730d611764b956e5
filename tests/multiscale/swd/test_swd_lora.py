"""Adapters of published networks: what they change, and that diffusers and peft read and write the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from tiny_published import BLOCKS, NETWORKS, built, given

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.models import ForeignModel
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import metadata_of
from multiscale.methods.swd.adapter import Beneath, adapted
from multiscale.methods.swd.config import LoraConfig
from multiscale.methods.swd.lora import load_lora, save_lora
from multiscale.methods.swd.schedule import Schedule

make_torchvision_importable()  # peft imports it

FAMILIES = pytest.mark.parametrize("family", NETWORKS)
SCHEDULE = Schedule(resolutions=[8, 16], sigmas=[1.0, 0.6022])


def trained(family: str, rank: int = 2):
    """An adapter that changes the network, as after a training."""
    net = adapted(built(family), rank, NETWORKS[family].network.adapted)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draws))
    return net


def config(family: str) -> LoraConfig:
    latent = Normalisation(shift=[0.0] * 4, scale=[1.0] * 4)
    about = {"channels": 4, "classes": 1, "latent": latent, "upscaling": "B", "teacher": "../teacher", "digest": "0"}
    return LoraConfig(network=NETWORKS[family], rank=2, schedule=SCHEDULE, **about)


@FAMILIES
@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_a_trained_one_nothing_when_it_is_off(family):
    teacher = built(family)(*given())
    assert torch.equal(adapted(built(family), 2, NETWORKS[family].network.adapted)(*given()), teacher)
    net = trained(family)
    assert not torch.allclose(net(*given()), teacher, atol=1e-2)
    assert torch.equal(Beneath(net)(*given()), teacher)


# By hand, from the module names of diffusers: blocks times layers. The last block of SD3 has no MLP of the text.
LAYERS = {
    "sd3": 3 * 6 + 4 + 2 * 2,  # q, k, v, out and two of the MLP; the second attention of block 0; the text's MLP
    "flux": 2 * 8 + 2 * 5,  # with the text's MLP; in a block of one stream q, k, v, MLP and output
    "sdxl": (2 + 2 * 2 + 2 + 3 * 2 + 3) * 10,  # transformers down, in the middle and up; twice q, k, v, out
}


@FAMILIES
def test_attention_and_mlp_are_adapted_and_the_texts_projections_are_not(family):
    names = [name for name, _ in trained(family).named_parameters() if "lora_A" in name]
    kinds = {name.partition(".lora_A")[0].rpartition("blocks.")[2].partition(".")[2] for name in names}
    wanted = {f"attn.to_{each}" for each in ("q", "k", "v", "out.0")} | {"ff.net.0.proj", "ff.net.2"}
    if family == "sdxl":
        wanted = {name.replace("attn.", f"attn{each}.") for name in wanted for each in (1, 2)}
    else:
        wanted |= {"ff_context.net.0.proj", "ff_context.net.2"}
    wanted |= {"sd3": {f"attn2.to_{each}" for each in ("q", "k", "v", "out.0")}, "flux": {"proj_mlp", "proj_out"}}.get(
        family, set()
    )
    assert kinds == wanted
    assert len(names) == LAYERS[family]


def test_the_layers_of_sd3_are_those_that_the_released_code_names():
    """Its list of endings: to_k, to_q, to_v, to_out.0, net.0.proj, net.2."""
    from peft import LoraConfig as Low
    from peft import get_peft_model

    endings = ["to_k", "to_q", "to_v", "to_out.0", "net.0.proj", "net.2"]
    theirs = get_peft_model(built("sd3"), Low(r=2, target_modules=endings))
    assert {name for name, _ in theirs.named_parameters()} == {name for name, _ in trained("sd3").named_parameters()}


@FAMILIES
def test_a_teacher_beneath_an_adapter_keeps_its_gradient_when_activations_are_computed_again(family):
    """The backward pass computes them when the adapter is on again."""
    gradients = []
    for recompute in (False, True):
        net = trained(family)
        if recompute:
            net.base_model.model.recompute()
        x, *rest = given()
        x.requires_grad_()
        student = net(x, *rest)
        tokens = Beneath(net)(x, *rest, BLOCKS[family], stop=True)
        weights = [p for p in net.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(student.square().mean() + tokens.square().mean(), [x, *weights]))
    for one, two in zip(*gradients):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@FAMILIES
@torch.no_grad()
def test_a_student_comes_back_from_its_file(family, tmp_path):
    net = trained(family)
    save_lora(tmp_path, net, config(family))
    assert torch.equal(load_lora(tmp_path, built(family))(*given()), net(*given()))
    told = metadata_of(tmp_path / "pytorch_lora_weights.safetensors")
    assert Schedule.model_validate_json(told["schedule"]) == SCHEDULE
    assert LoraConfig.model_validate_json((tmp_path / "config.json").read_text()) == config(family)


@pytest.mark.parametrize("alpha", [2, 8])
@torch.no_grad()
def test_a_checkpoint_in_the_released_format_is_read(alpha, tmp_path):
    """peft's own, of diffusers' network itself, as the released code saves it."""
    from peft import LoraConfig as Low
    from peft import get_peft_model

    net = built("sd3")
    theirs = get_peft_model(
        net.net, Low(r=2, lora_alpha=alpha, init_lora_weights=False, target_modules=["to_q", "net.2"])
    )
    theirs.save_pretrained(tmp_path)
    wanted = net(*given())
    assert not torch.allclose(wanted, built("sd3")(*given()), atol=1e-3)
    assert torch.equal(load_lora(tmp_path, built("sd3"))(*given()), wanted)


PIPELINE = """
import sys
from pathlib import Path
import torch
from multiscale.core.compat import make_torchvision_importable
make_torchvision_importable()
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from tiny_published import built, given
from multiscale.methods.swd.lora import load_lora

clip = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2,
                      vocab_size=50, max_position_embeddings=8, projection_dim=32)
torch.manual_seed(1)
vae = AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=2, shift_factor=0.06)
pipeline = StableDiffusion3Pipeline(
    transformer=built("sd3").net, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    text_encoder=CLIPTextModelWithProjection(clip), text_encoder_2=CLIPTextModelWithProjection(clip),
    tokenizer=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None)
folder = sys.argv[1]
pipeline.load_lora_weights(folder)
x, t, prompt, pooled = given()
ours = load_lora(Path(folder), built("sd3"))
with torch.no_grad():
    theirs = pipeline.transformer(x, prompt, pooled, 1000 * t).sample
    torch.testing.assert_close(theirs, ours(x, t, prompt, pooled), atol=1e-6, rtol=1e-6)
    plain = built("sd3")
    assert not torch.allclose(theirs, plain(x, t, prompt, pooled), atol=1e-2)
    latents = pipeline(prompt_embeds=prompt, pooled_prompt_embeds=pooled, latents=x, height=16, width=16,
                       num_inference_steps=2, guidance_scale=1.0, output_type="latent").images
    for now, then in zip(pipeline.scheduler.sigmas[:-1], pipeline.scheduler.sigmas[1:]):
        x = x + (then - now) * ours(x, now.expand(2), prompt, pooled)
    torch.testing.assert_close(latents, x, atol=1e-5, rtol=1e-5)
print("same")
"""


@pytest.mark.slow
def test_diffusers_pipeline_loads_a_student_and_samples_with_it(tmp_path):
    save_lora(tmp_path, trained("sd3"), config("sd3"))
    script = [sys.executable, "-c", PIPELINE, str(tmp_path)]  # here diffusers was imported without its pipelines
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env=paths)
    assert done.stdout.endswith("same\n"), done.stderr[-2000:]


def refusal(*given) -> str:
    with pytest.raises(ForeignModel) as caught:
        load_lora(*given)
    assert "\n" not in str(caught.value) and "; allowed: " in str(caught.value)
    return str(caught.value)


def test_a_file_that_does_not_fit_the_network_is_refused_in_one_line(tmp_path):
    assert "holds no LoRA" in refusal(tmp_path, built("sd3"))
    save_lora(tmp_path, trained("sd3"), config("sd3"))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert str(path) in refusal(tmp_path, built("flux"))
    assert f"{path}: rank: 2 is not allowed; allowed: 4" in refusal(tmp_path, built("sd3"), 4)
    assert "keys unet.LAYER.lora_A.weight" in refusal(tmp_path, built("sdxl"))
    weights = load_file(path)
    name = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    for broken in ({k: v for k, v in weights.items() if k != name}, weights | {name: weights[name][:-1]}):
        save_file(broken, path)
        assert str(path) in refusal(tmp_path, built("sd3"))
    path.write_bytes(b"nothing")
    told = refusal(tmp_path, built("sd3"))
    assert told.startswith(f"{path}: ") and told.endswith("allowed: safetensors")


def test_a_file_of_diffusers_with_another_alpha_keeps_it(tmp_path):
    net = trained("sd3")
    save_lora(tmp_path, net, config("sd3"))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 4})})
    assert load_lora(tmp_path, built("sd3")).peft_config["default"].lora_alpha == 4
