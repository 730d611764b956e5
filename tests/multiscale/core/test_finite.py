"""No number that is not finite goes on unseen: not as weights, not as a black image, not as a feature."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from multiscale.core import models
from multiscale.core.finite import unfit
from multiscale.core.pixels import to_pixels
from multiscale.evaluation import features
from multiscale.networks import autoencoder

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
def test_the_first_name_with_a_number_that_is_not_finite_is_found(bad):
    tensors = {name: torch.ones(3, 4) for name in "abc"} | {"rows": torch.arange(3)}
    assert unfit(tensors) is None and unfit({}) is None
    tensors["b"][2, 3], tensors["c"][0, 0] = bad, bad
    assert unfit(tensors) == "b"


def test_an_image_of_nan_is_an_error_and_not_black():
    images = torch.rand(4, 1, 8, 8)
    assert to_pixels(images).dtype == torch.uint8
    images[2, 0, 5, 5] = math.nan
    with pytest.raises(FloatingPointError, match="image is not finite"):
        to_pixels(images)


class Summed(nn.Module):
    """An extractor whose features are sums of the pixels, times a weight."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, images):
        return images.sum((2, 3)), images.sum((2, 3)) * self.weight


def test_features_that_are_not_finite_are_an_error():
    images = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    assert torch.equal(features.extract(Summed(2.0), images)[1], torch.full((2, 3), 32.0))
    with pytest.raises(FloatingPointError, match="features"):
        features.extract(Summed(math.nan), images)


@pytest.mark.parametrize("bad", BAD)
def test_a_model_with_a_weight_that_is_not_finite_does_not_open(bad, tmp_path):
    net = nn.Linear(3, 2)
    net.weight.data[1, 2] = bad
    save_file(net.state_dict(), tmp_path / models.WEIGHTS)
    with pytest.raises(models.ForeignModel, match="model.safetensors: weight holds numbers that are not finite"):
        models.load_weights(nn.Linear(3, 2), tmp_path)


def test_an_autoencoder_with_a_weight_that_is_not_finite_does_not_open(tmp_path):
    autoencoder.build(1, 1, (8, 8), 1, 4).save_pretrained(tmp_path, safe_serialization=True)
    autoencoder.load(tmp_path, 1)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["encoder.conv_in.bias"][3] = math.nan
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(models.ForeignModel, match="encoder.conv_in.bias holds numbers that are not finite"):
        autoencoder.load(tmp_path, 1)
