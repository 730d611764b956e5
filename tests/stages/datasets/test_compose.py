"""Pictures of two digits: what their captions say is what they show, and the splits share no digit."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest

from stages.common.errors import BadInput
from stages.common.images import evenly
from stages.datasets import compose, digits
from stages.datasets.compose import Composer, described
from stages.datasets.item import split_by_hash
from stages.schema.data import Data

DATA = {"name": "pairs", "source": "digit-pairs", "path": "p", "resolution": 32, "channels": 1, "pictures": 400}
SQUARES = [(digit, np.full((28, 28), 10 * (digit + 1), np.uint8)) for digit in range(10)]  # a grey level a class


@pytest.mark.parametrize(
    ("content", "sentences"),
    {
        (0, 7, 3): ["a seven above a three"],
        (0, 8, 8): ["an eight above an eight"],
        (1, 4, 9): ["a four left of a nine"],
        (1, 1, 1): ["a one left of a one", "two ones"],
        (1, 6, 6): ["a six left of a six", "two sixes"],
    }.items(),
)
def test_a_content_is_described_in_words(content, sentences):
    assert compose.captions(*content) == sentences


def test_labels_are_contents_row_by_row_and_no_sentence_has_two_meanings():
    assert [compose.content(label) for label in (0, 73, 100, 149, 199)] == [
        (0, 0, 0),
        (0, 7, 3),
        (1, 0, 0),
        (1, 4, 9),
        (1, 9, 9),
    ]
    assert compose.names()[73] == "a seven above a three" and len(compose.names()) == 200
    meanings = defaultdict(set)
    for content in product(range(2), range(10), range(10)):
        for sentence in compose.captions(*content):
            meanings[sentence].add(content)
    assert len(meanings) == 210 and all(len(each) == 1 for each in meanings.values())


def test_contents_take_turns_and_all_of_their_sentences_are_told():
    told = defaultdict(Counter)
    for block in range(40):
        pairs = [described("train", index) for index in range(200 * block, 200 * (block + 1))]
        assert sorted(label for label, _ in pairs) == list(range(200))
        for label, caption in pairs:
            told[label][caption] += 1
    for label in (73, 149, 111):  # the last one is "two ones" in a third of the pictures
        sentences = compose.captions(*compose.content(label))
        assert told[label].keys() == set(sentences)
        spread = 3 * math.sqrt(40 * (1 - 1 / len(sentences)) / len(sentences))
        assert all(abs(count - 40 / len(sentences)) <= spread for count in told[label].values())


def test_a_part_of_a_split_at_any_stride_is_like_the_whole():
    """1,000 of 2,000 pictures, as `sample` takes their prompts: without replacement some 194 of 200 contents."""
    labels = [compose.label_of("test", index) for index in evenly(2000, 1000).tolist()]
    assert len(set(labels)) > 185 and abs(np.mean(np.array(labels) % 2) - 0.5) < 0.05
    assert labels != [compose.label_of("train", index) for index in evenly(2000, 1000).tolist()]


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("label", [12, 112])
def test_digits_lie_where_the_caption_says(label, resolution):
    """One above two, one left of two: the squares' grey levels are 20 and 30."""
    composer, edges, corners = Composer("train", SQUARES, resolution), set(), set()
    for index in (index for index in range(200 * 30) if compose.label_of("train", index) == label):
        canvas = composer.pixels(index)
        assert canvas.shape == (resolution, resolution) and set(np.unique(canvas)) == {0, 20, 30}
        if label == 112:
            canvas = canvas.T
        half = resolution // 2
        assert not (canvas[half + 1 :] == 20).any() and not (canvas[: half - 1] == 30).any()
        for level in (20, 30):
            rows, columns = np.nonzero(canvas == level)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert height == width or level == 20  # the second may lie over an edge of the first
            edges.add(int(width))
            corners.add((level, int(rows.min()), int(columns.min())))
    assert min(edges) >= 0.37 * resolution and max(edges) <= 0.45 * resolution
    assert len(edges) > 2 and len(corners) > 20, "sizes and places vary"


def test_a_digit_keeps_its_proportions_and_loses_its_border():
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 10:15] = 200  # 20 high, 5 wide
    assert compose.tight(pixels).shape == (20, 5) and (compose.tight(pixels) == 200).all()
    assert compose.fitted(compose.tight(pixels), 12).shape == (12, 3)


def test_a_picture_depends_on_its_number_alone():
    first, second = (Composer("train", SQUARES, 32) for _ in range(2))
    first.pixels(5)
    assert (first.pixels(73) == second.pixels(73)).all()
    same = next(k for k in range(5000) if compose.label_of("train", k) == compose.label_of("test", k))
    assert not (first.pixels(same) == Composer("test", SQUARES, 32).pixels(same)).all()


def test_a_split_is_composed_of_its_own_digits_and_has_its_share():
    """As a picture is the larger of its two digits at each pixel, its ink comes from them alone."""
    data = Data.model_validate(DATA | {"test_share": 0.1, "validation_share": 0.05})
    items = digits.pairs(data)
    assert Counter(item.split for item in items) == {"train": 340, "validation": 20, "test": 40}
    assert len({item.id for item in items}) == 400
    for split in ("train", "test"):
        mine = [item for item in items if item.split == split]
        assert [(item.label, item.caption) for item in mine] == [described(split, k) for k in range(len(mine))]
        of_split = [(label, image) for name, label, image in digits._mnist() if split_by_hash(name, data) == split]
        composer = Composer(split, of_split, 32)
        for index, item in list(enumerate(mine))[:5]:
            assert item.read() == digits.png(composer.pixels(index))
            assert item.kind == compose.names()[item.label]


def test_a_split_without_a_digit_of_each_class_is_refused():
    data = Data.model_validate(DATA | {"pictures": 20000, "test_share": 0.001, "validation_share": 0.0})
    with pytest.raises(BadInput, match=r"data.test_share: 0.001 is not allowed; allowed: .* \(test lacks some\)"):
        digits.pairs(data)
