"""Inception and DINOv2 with random weights: which features they give, and in which words they are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multiscale.core.compat import make_torchvision_importable
from multiscale.evaluation import features

make_torchvision_importable()


@pytest.fixture
def pictures() -> torch.Tensor:
    smooth = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(smooth, size=256, mode="bilinear") * 255).to(torch.uint8)


def test_the_features_of_places_are_seven_channels_of_the_first_branch_of_mixed_6(pictures, monkeypatch):
    """ADM's evaluator: `mixed_6/conv:0` of TensorFlow (NHWC), `[..., :7]`, and `reshape([N, -1])`."""
    from torch_fidelity import FeatureExtractorInceptionV3
    from torch_fidelity import feature_extractor_inceptionv3 as library

    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *given, **options: {})
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, weights: None)
    torch.manual_seed(0)
    inception = features.create("inception-v3-compat", None, torch.device("cpu"))
    seen: list[torch.Tensor] = []
    inception.net.Mixed_6c.register_forward_hook(lambda module, given, out: seen.append(out))
    pooled, scores, places = features.extract(inception, pictures)
    assert pooled.shape == (2, 2048) and scores.shape == (2, 1008)
    branch = inception.net.Mixed_6d.branch1x1  # four blocks mixed_3 to mixed_6 after it: Mixed_6a to Mixed_6d
    with torch.no_grad():
        x = torch.relu(branch.bn(branch.conv(seen[0])))
    assert x.shape == (2, 192, 17, 17) and places.shape == (2, 2023)
    theirs = x.permute(0, 2, 3, 1).numpy()
    near = {"rtol": 1e-4, "atol": 1e-4 * float(places.max())}  # features of random weights are of the order 1e-5
    np.testing.assert_allclose(places.numpy(), theirs[..., :7].reshape(2, -1), **near)
    again = features.extract(inception, pictures[:1])
    torch.testing.assert_close(again[2], places[:1], **near)  # nothing is left of the batch before


def test_dinov2_gives_the_class_token_of_the_librarys_own_preprocessing(pictures, tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    theirs = Dinov2Model(Dinov2Config(**sizes)).eval()
    theirs.save_pretrained(tmp_path)
    net = features.create("dinov2", tmp_path, torch.device("cpu"))
    (found,) = features.extract(net, pictures)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    images = [Image.fromarray(each.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for each in pictures]
    prepare = BitImageProcessor(do_resize=False, do_center_crop=False, image_mean=mean, image_std=std)
    given = prepare([np.asarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**given).last_hidden_state[:, 0]
    assert found.shape == (2, 16)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)  # pixels may round to another level
    assert (found[0] - found[1]).abs().max() > 0.1


def test_a_folder_without_dinov2_is_an_error_of_the_library(tmp_path):
    with pytest.raises((OSError, ValueError)):
        features.create("dinov2", Path(tmp_path), torch.device("cpu"))
