"""A small CLIP (arXiv 2103.00020), transformers' `CLIPModel`, trained on images and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.models import ModelConfig
from multiscale.core.pixels import to_signed
from multiscale.core.streams import Draws
from multiscale.training.part import Batch, Data, Loss, Nets, Part

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerFast

TOKENIZER, ENCODER = "tokenizer", "text_encoder"  # folders, as diffusers lays out a pipeline
PAD, START, UNKNOWN, END = SPECIAL = ("<pad>", "<start>", "<unknown>", "<end>")


def words(captions: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the words in captions, in lower case, that takes texts as long as the longest caption."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split, lower = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    found = [[word for word, _ in split.pre_tokenize_str(lower.normalize_str(text))] for text in sorted(set(captions))]
    vocabulary = dict.fromkeys([*SPECIAL, *sorted({word for each in found for word in each})])
    ids = {word: index for index, word in enumerate(vocabulary)}
    made = Tokenizer(models.WordLevel(ids, UNKNOWN))
    made.normalizer, made.pre_tokenizer = lower, split
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        bos_token=START,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=max(map(len, found), default=0) + 2,
    )


def tokens(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Texts as padded tokens (N, L), cut where they are longer than the tokenizer takes."""
    found = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    return cast(Tensor, found["input_ids"])


def build(
    tokenizer: PreTrainedTokenizerFast,
    *,
    resolution: int,
    channels: int,
    width: int,
    layers: int,
    heads: int,
    patch: int,
) -> CLIPModel:
    """A CLIP with random weights, for images of one resolution and texts of the tokenizer."""
    make_torchvision_importable()
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"image_size": resolution, "patch_size": patch, "num_channels": channels}
    return CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=width))


class ContrastivePart(Part):
    """Trains a CLIP on rows of pixels, uint8 (N, C, H, H), and tokens (N, L), by its contrastive loss.

    Nothing masks the padding: a text encoder of CLIP sees only what stands before, and is read at the end of the text.
    """

    couples = "the contrastive loss compares the images of a batch"

    def __init__(self, name: str, data: Data, clip: CLIPModel, tokenizer: PreTrainedTokenizerFast):
        super().__init__(name, data, {"net": clip}, ModelConfig(kind="text", role="encoder"))
        self.tokenizer = tokenizer

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        ids = batch["tokens"]
        logits = nets["net"](input_ids=ids, pixel_values=to_signed(batch["pixels"])).logits_per_image.float()
        own = torch.arange(len(ids), device=ids.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        right = (ids[logits.argmax(1)] == ids).all(1).float().mean()
        return loss, {"accuracy": right}

    def save(self, folder: Path) -> None:
        """The tokenizer and the text encoder, as diffusers lays out a pipeline."""
        from transformers import CLIPTextModelWithProjection

        clip = cast("CLIPModel", self.networks["net"])
        text = CLIPTextModelWithProjection(clip.config.text_config)
        text.load_state_dict({name: clip.state_dict()[name] for name in text.state_dict()})
        text.save_pretrained(folder / ENCODER)
        self.tokenizer.save_pretrained(folder / TOKENIZER)
