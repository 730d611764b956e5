"""The small CLIP: its words by hand, its loss against torch's, and what it saves against transformers' own model."""

from __future__ import annotations

import pytest
import torch

from multiscale.core.pixels import to_signed
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.networks import clip
from multiscale.networks.text import load

CAPTIONS = ["A one above a two", "a one, below", "two ones"]


@pytest.fixture
def tokenizer():
    return clip.words(CAPTIONS)


def small(tokenizer):
    torch.manual_seed(0)
    size = {"width": 8, "layers": 1, "heads": 2, "patch": 8}
    return clip.build(tokenizer, resolution=16, channels=1, **size).eval()


def test_texts_are_the_words_of_the_captions_between_marks(tokenizer):
    """Pad 0, start 1, unknown 2, end 3; then the words, sorted."""
    words = [",", "a", "above", "below", "one", "ones", "two"]
    assert [tokenizer.convert_ids_to_tokens(4 + k) for k in range(len(words))] == words
    assert len(tokenizer) == 4 + len(words) and tokenizer.model_max_length == 5 + 2
    assert clip.tokens(tokenizer, ["Two ONES", "", "a three"]).tolist() == [
        [1, 10, 9, 3, 0, 0, 0],
        [1, 3, 0, 0, 0, 0, 0],
        [1, 5, 2, 3, 0, 0, 0],
    ]
    assert clip.tokens(tokenizer, ["a one above a two ones"]).tolist() == [[1, 5, 8, 6, 5, 10, 3]], "cut, with its end"


def test_the_loss_is_that_of_clip_and_an_equal_caption_is_no_wrong_answer(tokenizer):
    net, pixels = small(tokenizer), torch.arange(4 * 256, dtype=torch.uint8).view(4, 1, 16, 16)
    ids = clip.tokens(tokenizer, [CAPTIONS[0], CAPTIONS[1], CAPTIONS[2], CAPTIONS[1]])
    part = clip.ContrastivePart("text", Table({"pixels": pixels.numpy()}), net, tokenizer)
    draws = Draws(0, "text", 0, 4, slice(0, 4), torch.device("cpu"))
    own = net(input_ids=ids, attention_mask=(ids > 0).long(), pixel_values=to_signed(pixels), return_loss=True)
    loss, _ = part.loss("net", {"net": net}, {"pixels": pixels, "tokens": ids}, draws)
    torch.testing.assert_close(loss, own.loss)
    score = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]])  # the caption that wins
    _, found = part.loss("net", {"net": lambda **given: Scores(score)}, {"pixels": pixels, "tokens": ids}, draws)
    assert found["accuracy"] == 0.5, "the second image gets the caption of the fourth, which is its own"


class Scores:
    def __init__(self, logits: torch.Tensor):
        self.logits_per_image = logits


def test_what_is_saved_embeds_as_the_clip_does(tokenizer, tmp_path):
    net = small(tokenizer)
    part = clip.ContrastivePart("text", Table({"pixels": torch.zeros(1).numpy()}), net, tokenizer)
    part.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "text_encoder"}
    encoder = load(tmp_path)
    prompt, pooled = encoder.encode(CAPTIONS)
    ids = clip.tokens(tokenizer, CAPTIONS)
    with torch.no_grad():
        found = net.text_model(input_ids=ids, output_hidden_states=True)
        torch.testing.assert_close(prompt, found.hidden_states[-2])
        torch.testing.assert_close(pooled, net.text_projection(found.pooler_output))
    ends = found.last_hidden_state[range(3), (ids == 3).int().argmax(1)]
    torch.testing.assert_close(pooled, net.text_projection(ends).detach())
    counted = [encoder.count(text) for text in ("", "a one", "a one above a two ones")]
    assert encoder.length == 7 and counted == [2, 4, 8]
    for mine, empty in zip(encoder.null(), encoder.encode([""])):
        assert torch.equal(mine, empty)


def test_a_text_is_embedded_the_same_in_any_company(tokenizer, tmp_path):
    clip.ContrastivePart("text", Table({"pixels": torch.zeros(1).numpy()}), small(tokenizer), tokenizer).save(tmp_path)
    encoder = load(tmp_path)
    for alone, among in zip(encoder.encode(CAPTIONS[1:2]), encoder.encode(CAPTIONS)):
        torch.testing.assert_close(alone[0], among[1])
