"""`multiscale.load(folder).sample(classes, seeds)`: an image for each seed, of the class that it is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multiscale.model import Model


class Plain:
    """Images of one value, (seed + 10 label) / 100; notes the size of each batch."""

    shows, networks = "", {}

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, seeds: list[int], labels: Tensor, trace: object = None) -> Tensor:
        self.batches.append(len(seeds))
        return ((torch.tensor(seeds) + 10 * labels) / 100).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


@pytest.mark.parametrize(
    ("known", "classes", "wanted"),
    [
        (3, [2, 0, 1], [0.21, 0.02, 0.13]),
        (3, 2, [0.21, 0.22, 0.23]),
        (1, None, [0.01, 0.02, 0.03]),
        (0, None, [0.01, 0.02, 0.03]),
    ],
)
def test_image_k_is_of_seed_k_and_class_k(known, classes, wanted):
    images = Model(Plain(), known).sample(classes, [1, 2, 3])
    assert images.shape == (3, 1, 2, 2) and images.dtype == torch.float32
    assert torch.equal(images[:, 0, 0, 0], (torch.tensor(wanted) * 255).round() / 255)


def test_images_are_made_in_batches_of_one_size():
    sampler = Plain()
    images = Model(sampler, 0).sample(None, range(7), batch=3)
    assert sampler.batches == [3, 3, 3]
    assert torch.allclose(images[:, 0, 0, 0], torch.arange(7) / 100, atol=0.5 / 255)


@pytest.mark.parametrize(
    ("known", "classes", "seeds", "line"),
    [
        (3, [0, 3], [0, 1], "classes: 3 is not allowed; allowed: 0 to 2"),
        (3, -1, [0], "classes: -1 is not allowed; allowed: 0 to 2"),
        (3, None, [0], "classes: None is not allowed; allowed: 0 to 2"),
        (0, [1], [0], "classes: .* is not allowed; allowed: None, since the method has no classes"),
        (3, [0, 1], [0], "classes: 2 are not allowed; allowed: 1, one for each seed, or one in all"),
        (3, [], [], "0 seeds in batches of 50 are not allowed"),
    ],
    ids=["unknown", "negative", "none", "without classes", "too many", "no seeds"],
)
def test_what_a_model_does_not_know_is_refused(known, classes, seeds, line):
    with pytest.raises(ValueError, match=line):
        Model(Plain(), known).sample(classes, seeds)
