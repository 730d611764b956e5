"""Measures of images with prompts: how much the images of one prompt differ, and how well an image fits its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import default_device


def diversity(
    generated: Tensor, prompts: Sequence[str], real: Tensor, captions: Sequence[str]
) -> tuple[float, float] | None:
    """How far the images of a prompt are apart, relative to real images of that caption, and its standard error.

    generated (N, d) with N prompts, real (M, d) with M captions: features. The mean distance of two images of one
    prompt, averaged over the prompts that have two generated and two real images, over the same of the real ones: 1 is
    as diverse as real, 0 means that the seed changes nothing. The error is that of a ratio of means over prompts; None
    with fewer than two such prompts.
    """
    of_real, of_generated = _distances(real, captions), _distances(generated, prompts)
    shared = sorted(of_real.keys() & of_generated.keys())
    if len(shared) < 2:
        return None
    made, wanted = (torch.tensor([of[text] for text in shared]).double() for of in (of_generated, of_real))
    ratio = made.mean() / wanted.mean()
    error = (made - ratio * wanted).std() / len(shared) ** 0.5 / wanted.mean()
    return float(ratio), float(error)


def _distances(features: Tensor, texts: Sequence[str]) -> dict[str, float]:
    """The mean distance between two images of each text that has two."""
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, []).append(row)
    pairs = {text: features[found].double() for text, found in rows.items() if len(found) > 1}
    return {text: float(torch.pdist(found).mean()) for text, found in pairs.items()}


class Scorer:
    """A CLIP in a folder, as transformers saves it with its processor. Raises OSError or ValueError for another folder.

    The scores are those of that CLIP. CLIPScore (arXiv 2104.08718, on the scale of torchmetrics) takes OpenAI's, and
    PickScore (arXiv 2305.01569) its own.
    """

    def __init__(self, folder: Path):
        make_torchvision_importable()
        from transformers import CLIPModel, CLIPProcessor

        self.device = default_device()
        net = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self.net = net.eval().requires_grad_(False).to(self.device)
        self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.length = int(net.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def scores(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """CLIPScore and PickScore (n,) of uint8 images (n, 1 or 3, H, W), each with its prompt; long ones are cut.

        CLIPScore is 100 times the cosine of both embeddings, at least 0; PickScore is that times the CLIP's own scale.
        """
        given = self.processor(
            images=list(images.expand(-1, 3, -1, -1)),
            text=list(prompts),
            padding=True,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(self.device)
        found = self.net(**given)
        cosines = (found.image_embeds * found.text_embeds).sum(1).float().cpu()
        return 100 * cosines.clamp_min(0), float(self.net.logit_scale.exp()) * cosines
