"""Measures of images with prompts, against values worked out by hand and the library's own forward pass."""

from __future__ import annotations

import pytest
import torch
from tiny_published import small_clip
from torch import Tensor

from multiscale.evaluation.prompts import Scorer, diversity

SAID = ["two ones", "a seven above a three", "three"]


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_the_diversity_of_two_prompts_by_hand():
    """Distances 2 and (3 + 3 + 6) / 3 = 4 against 4 and 4: a ratio of 3 / 4, off by -1 and 1 at the two prompts."""
    generated, prompts = column(0, 9, 2, 0, 3, 6, 7), ["a", "c", "a", "b", "b", "b", "d"]
    real, captions = column(1, 5, 0, -4, 0, 9), ["a", "a", "b", "b", "d", "d"]
    assert diversity(generated, prompts, real, captions) == pytest.approx((0.75, 0.25))


def test_a_single_shared_prompt_has_no_error_and_so_no_diversity():
    assert diversity(column(0, 1, 2), ["a", "a", "b"], column(0, 1, 2, 3), ["a", "a", "b", "b"]) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_are_those_of_the_pairs_by_the_librarys_own_pass(sign, tmp_path):
    small_clip(tmp_path, SAID, sign)
    from transformers import CLIPModel, CLIPProcessor

    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    clip_score, pick_score = Scorer(tmp_path).scores(images, SAID)
    net, processor = CLIPModel.from_pretrained(tmp_path), CLIPProcessor.from_pretrained(tmp_path)
    for k, said in enumerate(SAID):
        given = processor(images=images[k].expand(3, -1, -1), text=said, return_tensors="pt")
        with torch.no_grad():
            wanted = float(net(**given).logits_per_image)
        cosine = wanted / float(net.logit_scale.exp())
        assert float(pick_score[k]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert float(clip_score[k]) == pytest.approx(max(0.0, 100 * cosine), rel=1e-4, abs=1e-3)
    assert (sign * pick_score).min() > 1, "with the other sign no image fits"


def test_another_folder_is_no_clip(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((OSError, ValueError)):
        Scorer(tmp_path)
