"""Published text encoders: tiny pipelines in diffusers' layout give what their own `encode_prompt` gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from multiscale.core.compat import make_torchvision_importable
from multiscale.networks import text

WORDS = {word: k for k, word in enumerate(["<pad>", "<start>", "<unknown>", "<end>", "a", "one", "above", "two"])}
TEXTS = ["a one", "a one above a two"]


def tokenizer(length: int) -> transformers.PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel(WORDS, "<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "<pad>", "bos_token": "<start>", "unk_token": "<unknown>", "eos_token": "<end>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, **marks)


def clip(width: int, kind: str = "CLIPTextModelWithProjection"):
    torch.manual_seed(width)
    size = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    about = transformers.CLIPTextConfig(vocab_size=8, max_position_embeddings=77, projection_dim=width, **size, **marks)
    return getattr(transformers, kind)(about).eval()


def t5(width: int):
    torch.manual_seed(width)
    about = transformers.T5Config(vocab_size=8, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(about).eval()


@pytest.fixture(scope="module")
def pipelines():
    make_torchvision_importable()
    import diffusers

    nothing = {"transformer": None, "vae": None, "scheduler": None}
    return {
        "sd3": diffusers.StableDiffusion3Pipeline(
            **nothing,
            **{"text_encoder": clip(8), "text_encoder_2": clip(12), "text_encoder_3": t5(24)},
            **{"tokenizer": tokenizer(77), "tokenizer_2": tokenizer(77), "tokenizer_3": tokenizer(77)},
        ),
        "flux": diffusers.FluxPipeline(
            **nothing,
            **{"text_encoder": clip(8, "CLIPTextModel"), "text_encoder_2": t5(24)},
            **{"tokenizer": tokenizer(77), "tokenizer_2": tokenizer(77)},
        ),
        "sdxl": diffusers.StableDiffusionXLPipeline(
            **{"unet": None, "vae": None, "scheduler": None},
            **{"text_encoder": clip(8, "CLIPTextModel"), "text_encoder_2": clip(12)},
            **{"tokenizer": tokenizer(77), "tokenizer_2": tokenizer(77)},
        ),
    }


def opened(pipeline, folder: Path, length: int = 9) -> text.TextEncoder:
    pipeline.save_pretrained(folder)
    return text.load(folder, length, "fp32")


@pytest.mark.parametrize(
    ("name", "length", "prompt", "pooled"),
    [("sd3", 9, (77 + 9, 24), 8 + 12), ("flux", 9, (9, 24), 8), ("sdxl", 77, (77, 8 + 12), 12)],
)
def test_a_published_pipeline_embeds_as_its_own_code_does(name, length, prompt, pooled, pipelines, tmp_path):
    encoder = opened(pipelines[name], tmp_path)
    found = encoder.encode(TEXTS)
    assert encoder.length == length and found[0].shape == (2, *prompt) and found[1].shape == (2, pooled)
    others = {"sd3": {"prompt_2": TEXTS, "prompt_3": TEXTS}, "flux": {"prompt_2": TEXTS}, "sdxl": {}}[name]
    length_of = {} if name == "sdxl" else {"max_sequence_length": 9}
    with torch.no_grad():
        wanted = [each for each in pipelines[name].encode_prompt(TEXTS, **others, **length_of)]
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1 if name == "flux" else 2])
    null = encoder.null()
    if name == "flux":
        wanted = encoder.encode([""])
    elif name == "sdxl":  # which has zeros for an empty negative prompt
        wanted = [torch.zeros(1, 77, 20), torch.zeros(1, 12)]
    else:
        wanted = encoder.encode([""])
    for mine, its in zip(null, wanted):
        torch.testing.assert_close(mine, its)


def test_texts_are_counted_as_the_tokenizer_of_the_longest_encoder_does(pipelines, tmp_path):
    encoder = opened(pipelines["flux"], tmp_path)
    assert [encoder.count(each) for each in ("a one", "a " * 100)] == [2, 100]


def test_the_networks_that_make_images_are_not_loaded(pipelines, tmp_path):
    pipelines["sd3"].save_pretrained(tmp_path)
    index = json.loads((tmp_path / text.INDEX).read_text())
    index |= {"transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    (tmp_path / text.INDEX).write_text(json.dumps(index))
    assert text.load(tmp_path, 9, "fp32").pipeline.transformer is None
