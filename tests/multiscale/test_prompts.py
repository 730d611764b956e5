"""A shell tells a method that reads text what to show; what it cannot be told is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, called, sealed
from PIL import Image
from safetensors.torch import save_file

from multiscale import prompts
from multiscale.core import device, models
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.swd.config import TeacherConfig
from multiscale.networks import clip, text

make_torchvision_importable()
from transformers import CLIPTextConfig, CLIPTextModelWithProjection  # noqa: E402

SAID = ["two ones", "a seven above a three"]
NETWORK = {
    **{"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16},
    **{"pos_embed_max_size": 4, "sample_size": 8, "in_channels": 1, "out_channels": 1},
    **{"joint_attention_dim": 8, "pooled_projection_dim": 6},
}
CONFIG = TeacherConfig.model_validate(
    {"channels": 1, "resolution": 8, "classes": 200, "latent": {"shift": [0.1], "scale": [0.5]}, "network": NETWORK}
)
SOLVER = ["--set", "solver.steps=2", "solver.guidance_scale=2.0"]


def encoder(folder: Path, seed: int) -> None:
    """A text encoder of transformers with random weights, in the layout of diffusers."""
    tokenizer = clip.words(SAID)
    torch.manual_seed(seed)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    length = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    CLIPTextModelWithProjection(CLIPTextConfig(**size, **length, **ids, projection_dim=6)).save_pretrained(
        folder / "text_encoder"
    )
    tokenizer.save_pretrained(folder / "tokenizer")


def embedded(folder: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """By the libraries alone, rounded as embeddings are stored."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder / "tokenizer")([text], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        found = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder")(
            input_ids=ids["input_ids"], output_hidden_states=True
        )
    return found.hidden_states[-2].half().float(), found.text_embeds.half().float()


@pytest.fixture
def method(tmp_path, monkeypatch) -> Path:
    """A teacher of an MMDiT with random weights, whose latents are pixels, and its text encoder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(device, "bf16_is_native", lambda device: False)
    encoder(Path("models/text/words"), 0)
    part = Path("models/told/teacher")
    (part / "text").mkdir(parents=True)
    torch.manual_seed(1)
    net = CONFIG.build()
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    models.save(part, net.state_dict(), CONFIG)
    tokens, whole = embedded(Path("models/text/words"), "")
    save_file({"prompt": tokens.half(), "pooled": whole.half()}, part / "text" / "embeddings.safetensors")
    (part / "text" / "encoder.json").write_text(json.dumps({"name": "words", "length": 7, "precision": "auto"}))
    sealed(part)
    return part.parent


def sampled(method: Path, seeds: list[int], text: str) -> np.ndarray:
    """Two Euler steps, guided by 2, worked out here: grey levels (N, 8, 8)."""
    folder = Path("models/text/words")
    net = models.load_weights(CONFIG.build(), method / "teacher").eval()
    z = torch.stack([noise_of_seeds([seed], "teacher", (1, 8, 8))[0] for seed in seeds])
    (told, none) = ([each.expand(len(z), *each.shape[1:]) for each in embedded(folder, said)] for said in (text, ""))
    with torch.no_grad():
        for t in (1.0, 0.5):
            at = torch.full((len(z),), t)
            without = net(z, at, *none)
            z = z - 0.5 * (without + 2 * (net(z, at, *told) - without))
    return ((z * 0.5 + 0.1).clamp(-1, 1) / 2 + 0.5).mul(255).round()[:, 0].numpy()


@pytest.mark.parametrize("given", ["texts", "file"])
def test_each_prompt_is_embedded_and_shown_for_each_seed(given, method):
    Path("list.txt").write_text("\n".join(SAID) + "\n", "utf-8")
    asked = SAID if given == "texts" else ["list.txt"]
    done = called("multiscale", "sample", str(method), "--prompts", *asked, "--seeds", "3,5", "--out", "new/", *SOLVER)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path("new").iterdir()} == {f"prompt-{k}-seed-{s}.png" for k in (1, 2) for s in (3, 5)}
    wanted = [sampled(method, [3, 5], said) for said in SAID]
    assert np.abs(wanted[0] - wanted[1]).max() > 20
    for k, images in enumerate(wanted, 1):
        for seed, image in zip((3, 5), images):
            found = np.asarray(Image.open(f"new/prompt-{k}-seed-{seed}.png"))[..., 0].astype(int)
            assert np.abs(found - image).max() <= 1, "the last digits depend on the batch"


def test_an_image_depends_on_its_seed_and_prompt_and_not_on_the_others(method):
    for said, out in ((SAID, "all/"), (SAID[1:], "one/")):
        asked = ["--prompts", *said, "--seeds", "3", "--batch", "1", "--out", out, *SOLVER]
        assert called("multiscale", "sample", str(method), *asked).returncode == 0
    assert Path("all/prompt-2-seed-3.png").read_bytes() == Path("one/prompt-1-seed-3.png").read_bytes()


PUBLISHED = """
import sys
from pathlib import Path
from multiscale.core.compat import make_torchvision_importable
make_torchvision_importable()
from diffusers import FluxPipeline
from safetensors.torch import save_file
from test_text import clip, t5, tokenizer
from multiscale.networks import text
folder, embeddings = map(Path, sys.argv[1:])
nothing = {"transformer": None, "vae": None, "scheduler": None}
encoders = {"text_encoder": clip(6, "CLIPTextModel"), "text_encoder_2": t5(8)}
FluxPipeline(**nothing, **encoders, tokenizer=tokenizer(77), tokenizer_2=tokenizer(77)).save_pretrained(folder)
tokens, whole = text.load(folder, 7, "fp32").null()
save_file({"prompt": tokens.half(), "pooled": whole.half()}, embeddings)
"""


def test_the_encoders_of_a_published_pipeline_are_opened_beside_a_network_of_diffusers(method):
    """In a process of its own: what this one has imported of diffusers would hide what comes first."""
    part, folder = method / "teacher", "models/text/published"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests/multiscale/networks")))}

    def run(*command: str) -> None:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]

    run("-c", PUBLISHED, folder, str(part / "text" / "embeddings.safetensors"))
    (part / "text" / "encoder.json").write_text(json.dumps({"name": "published", "length": 7, "precision": "fp32"}))
    sealed(part)
    asked = ["--prompts", "a one", "one above two", "--seeds", "3", "--out", "new/", *SOLVER]
    run("-m", "multiscale", "sample", str(method), *asked)
    one, two = (np.asarray(Image.open(f"new/prompt-{k}-seed-3.png")) for k in (1, 2))
    assert (one != two).any()


class Zeros:
    """SDXL's embeddings of no text are zeros, whatever its weights; of a text they are not."""

    length = 7

    def __init__(self, sign: int):
        self.sign = sign

    def null(self):
        return torch.zeros(1, 7, 8), torch.zeros(1, 6)

    def encode(self, texts):
        return torch.full((1, 7, 8), float(self.sign)), torch.full((1, 6), 2.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_encoders_with_the_same_embeddings_of_no_text_are_told_apart_by_a_prompt(sign, method, monkeypatch):
    part = method / "teacher" / "text"
    tokens, whole = (torch.cat(each) for each in zip(Zeros(1).null(), Zeros(1).encode(["two ones"])))
    save_file({"prompt": tokens.half(), "pooled": whole.half()}, part / "embeddings.safetensors")
    about = {"name": "words", "length": 7, "precision": "auto", "prompt": "two ones"}
    (part / "encoder.json").write_text(json.dumps(about))
    monkeypatch.setattr(text, "load", lambda *given: Zeros(sign))
    if sign == 1:
        assert prompts.encoder(method).encode([""])[1].shape == (1, 6)
    else:
        with pytest.raises(ValueError, match="is another text encoder; allowed: "):
            prompts.encoder(method)


def test_prompts_stand_under_the_cells_of_the_grid(method):
    done = called("multiscale", "sample", str(method), "--prompts", *SAID, "--seeds", "0-2", *SOLVER)
    assert done.returncode == 0, done.stderr
    grid = np.asarray(Image.open("grid.png").convert("L"))
    zoom = 96 // 8
    first = sampled(method, [0], SAID[0])[0]
    assert np.abs(grid[34 : 34 + 96 : zoom, 4 : 4 + 96 : zoom].astype(int) - first).max() <= 1
    assert (grid[34 + 96 : 34 + 96 + 19] < 160).any(0).sum() > 30, "letters"


WORDS = "models/text/words"
REFUSED = {
    "no prompt": ([], "--classes: None is not allowed; allowed: --prompts, since models/told reads text"),
    "classes": (["--classes", "3"], "--classes: [3] is not allowed; allowed: --prompts, since models/told reads text"),
    "a blank one": (["--prompts", "two ones", " "], "--prompts: prompt 2 is empty; allowed: a text in each"),
    "an empty file": (["--prompts", "empty.txt"], "--prompts: empty.txt: holds no prompts; allowed: a prompt a line"),
    "no such file": (["--prompts", "no.txt"], "--prompts: no.txt: No such file or directory; allowed: a text file in"),
    "no text": (["--prompts", "binary.txt"], "--prompts: binary.txt: 'utf-8' codec can't decode"),
    "a long one": (["--prompts", "a " * 6], f"--prompts: '{'a ' * 6}': has 8 tokens; allowed: at most 7"),
    "no encoder": (
        ["--prompts", "two", "--encoder", "nowhere"],
        "--prompts: nowhere: the text encoder is not there; allowed: the folder models/text/words",
    ),
    "another encoder": (["--prompts", "two", "--encoder", "other"], "--prompts: other: is another text encoder"),
    "no encoder in it": (["--prompts", "two", "--encoder", "models"], "--prompts: models: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_one_line_and_writes_nothing(name, method):
    encoder(Path("other"), 9)
    Path("empty.txt").write_text("")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    asked, line = REFUSED[name]
    done = called("multiscale", "sample", str(method), *asked)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (said,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert said.startswith(f"error: {line}") and "allowed: " in said and not Path("grid.png").exists()
