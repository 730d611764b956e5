"""Text encoders, trained here or published: texts to embeddings of their tokens and of the whole text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import default_device, resolve_precision
from multiscale.core.storage import read_json
from multiscale.networks.clip import ENCODER, TOKENIZER, tokens

INDEX = "model_index.json"  # diffusers' list of a pipeline's components
# The pipelines whose `encode_prompt` gives both embeddings, and which of their tokenizers is that of T5.
PIPELINES = {
    "StableDiffusion3Pipeline": "tokenizer_3",
    "FluxPipeline": "tokenizer_2",
    "StableDiffusionXLPipeline": None,
}


class TextEncoder(Protocol):
    """Turns texts into embeddings."""

    length: int  # tokens that a text may have

    def count(self, text: str) -> int:
        """The tokens of a text."""

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of the tokens (N, L, D) and of the whole texts (N, P), float32 on the CPU."""

    def null(self) -> tuple[Tensor, Tensor]:
        """The embeddings (1, L, D) and (1, P) that stand for no text in classifier-free guidance."""


class TrainedTextEncoder:
    """The text encoder of a small CLIP: states before its last layer, and the projected state of the end of the text.

    SD3 takes the same: CLIP's training leaves the last layer's states of all tokens but the end to chance.
    """

    def __init__(self, folder: Path):
        make_torchvision_importable()
        from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER, local_files_only=True)
        net = CLIPTextModelWithProjection.from_pretrained(folder / ENCODER, use_safetensors=True, local_files_only=True)
        self.device = default_device()
        self.net = net.eval().requires_grad_(False).to(self.device)
        self.length = int(self.tokenizer.model_max_length)

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = tokens(self.tokenizer, texts).to(self.device)
        found = self.net(input_ids=ids, output_hidden_states=True)
        return found.hidden_states[-2].float().cpu(), found.text_embeds.float().cpu()

    def null(self) -> tuple[Tensor, Tensor]:
        return self.encode([""])


class PublishedTextEncoder:
    """The text encoders of a published pipeline, combined as its own `encode_prompt` does.

    length: of T5's texts; without T5 it is CLIP's. precision: 'auto', 'fp32' or 'bf16', of the weights.
    """

    def __init__(self, folder: Path, length: int, precision: str):
        make_torchvision_importable()
        import diffusers

        self.device = default_device()
        index = read_json(folder / INDEX)
        name = index["_class_name"]
        others = {key: None for key, value in index.items() if isinstance(value, list) and not is_text(key)}
        kind = torch.bfloat16 if resolve_precision(precision, self.device) == "bf16" else torch.float32
        self.pipeline = getattr(diffusers, name).from_pretrained(
            folder, **others, dtype=kind, use_safetensors=True, local_files_only=True
        )
        self.pipeline.to(self.device)
        large = PIPELINES[name]
        self.tokenizer = getattr(self.pipeline, large or TOKENIZER)
        self.length = length if large else int(self.tokenizer.model_max_length)
        self.parameters = inspect.signature(self.pipeline.encode_prompt).parameters

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self._encoded(list(texts), False)[0]

    def null(self) -> tuple[Tensor, Tensor]:
        """Of the pipeline's own negative prompt, where it has one."""
        text, negative = self._encoded([""], "do_classifier_free_guidance" in self.parameters)
        return negative or text

    @torch.inference_mode()
    def _encoded(self, texts: list[str], guided: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
        """The embeddings of texts and, if guided, of their negative prompts."""
        given: dict[str, Any] = {"prompt": texts, "prompt_2": None, "prompt_3": None, "device": self.device}
        given |= {"do_classifier_free_guidance": guided, "max_sequence_length": self.length}
        found = self.pipeline.encode_prompt(**{key: each for key, each in given.items() if key in self.parameters})
        made = [each.float().cpu() if isinstance(each, Tensor) else None for each in found]
        if "do_classifier_free_guidance" not in self.parameters:
            return cast(tuple[Tensor, Tensor], tuple(made[:2])), None
        text, negative, pooled, negative_pooled = made
        both = cast(tuple[Tensor, Tensor], (negative, negative_pooled)) if guided else None
        return cast(tuple[Tensor, Tensor], (text, pooled)), both


def is_text(component: str) -> bool:
    """Whether a component of a pipeline belongs to its text encoders."""
    return component.startswith((TOKENIZER, ENCODER))


def load(folder: Path, length: int = 0, precision: str = "auto") -> TextEncoder:
    """The text encoder in a folder; `length` and `precision` are those of a published one."""
    if (folder / INDEX).exists():
        return PublishedTextEncoder(folder, length, precision)
    return TrainedTextEncoder(folder)
