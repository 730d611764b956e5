"""SwD's schedules, spectral rule, losses, upscaling and distance: the identities of its paper, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiscale import flow
from multiscale.core.resize import bicubic_to
from multiscale.methods.swd import losses as distribution
from multiscale.methods.swd import schedule, spectrum
from multiscale.methods.swd.schedule import PRESETS, Schedule, few_steps, sigma_grid
from multiscale.methods.swd.student import TokenHead
from multiscale.methods.swd.teaching import relative_distance
from multiscale.methods.swd.upscaling import noisy


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_the_velocity_gives_the_image_and_the_noise_back():
    image, noise, sigma = normal(4, 2, 8, 8), normal(4, 2, 8, 8, seed=1), torch.tensor([0.1, 0.5, 0.9, 1.0]).double()
    x, velocity = flow.interpolate(image, noise, sigma), noise - image
    s = sigma.view(-1, 1, 1, 1)
    exact(x - s * velocity, image)
    exact(x + (1 - s) * velocity, noise)
    exact(distribution.clean(x, velocity, sigma), image)


def test_the_error_of_the_image_is_sigma_squared_times_that_of_the_velocity():
    made, noise, guess = (normal(3, 2, 4, 4, seed=seed) for seed in range(3))
    for sigma in (0.0089, 0.5, 1.0):
        level = torch.full((3,), sigma, dtype=torch.float64)
        by_hand = (flow.interpolate(made, noise, level) - sigma * guess - made).square().mean()
        in_image, in_velocity = (distribution.fake_score(made, noise, guess, level, target) for target in ("x0", "v"))
        exact(in_image, sigma**2 * in_velocity)
        exact(in_image, by_hand)


def test_the_grid_holds_the_published_noise_levels():
    grid = sigma_grid()
    assert len(grid) == 28 and grid[0] == 1
    wanted = [1, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022, 0.0089]
    torch.testing.assert_close(grid[[0, 4, 7, 12, 14, 18, 27]], torch.tensor(wanted).double(), rtol=0, atol=5e-5)
    ends = {rule: [round(grid[i].item(), 4) for i in (rule[0], rule[1] - 1)] for rule in (schedule.DMD_RANGE,)}
    assert ends[schedule.DMD_RANGE] == [0.7904, 0.0089]
    assert round(grid[schedule.MMD_RANGE[0]].item(), 4) == 0.6022 and schedule.FAKE_RANGE == (0, 28)


def published(name: str) -> Schedule:
    return Schedule.model_validate({"preset": name})


@pytest.mark.parametrize("name", ["SD3.5-M", "SD3.5-L"])
def test_the_published_steps_are_levels_of_the_grid(name):
    known = published(name)
    assert few_steps(len(known.resolutions)) == pytest.approx(known.sigmas, abs=1e-3)


def test_every_published_schedule_grows_to_the_full_resolution():
    for name in PRESETS:
        known = published(name)
        assert known.resolutions[-1] == 1024 and known.cost < 1


@pytest.mark.parametrize(
    "name, resolutions, sigmas",
    [
        ("SD3.5-M", [256, 384, 512, 640, 768, 1024], [1.0, 0.945, 0.896, 0.79, 0.737, 0.602]),
        ("SD3.5-L", [512, 640, 768, 1024], [1.0, 0.896, 0.737, 0.602]),
        ("FLUX", [256, 512, 768, 1024], [1.0, 0.945, 0.79, 0.602]),
    ],
)
def test_a_published_schedule_can_be_asked_for_by_name_in_pixels(name, resolutions, sigmas):
    assert published(name) == Schedule(resolutions=resolutions, sigmas=sigmas)


@pytest.mark.parametrize(
    "name, cost", [("SD3.5-L", 0.551), ("SD3.5-M", 0.401), ("FLUX", 0.469), ("SD3.5-M 2025", 0.469)]
)
def test_the_cost_of_a_schedule_in_tokens(name, cost):
    assert published(name).cost == pytest.approx(cost, abs=1e-3)


@pytest.mark.parametrize(
    "resolutions, sigmas, reason",
    [
        ([16, 32], [1.0], r"one for each resolution \(2\)"),
        ([32, 16], [1.0, 0.5], "never shrink"),
        ([16, 32], [1.0, 0.0], r"noise levels in \(0, 1\]"),
        ([16, 32], [1.1, 0.5], r"noise levels in \(0, 1\]"),
        ([16, 32], [0.9, 0.5], "fall from 1"),
        ([16, 32, 32], [1.0, 0.5, 0.5], "fall from 1"),
    ],
)
def test_a_schedule_that_no_generator_can_follow_is_refused(resolutions, sigmas, reason):
    with pytest.raises(ValueError, match=reason):
        Schedule(resolutions=resolutions, sigmas=sigmas)


def test_the_low_resolution_of_a_step_is_that_of_the_step_before():
    steps = Schedule(resolutions=[16, 24, 24, 32], sigmas=[1.0, 0.9, 0.7, 0.6])
    assert [steps.low(k) for k in range(4)] == [16, 16, 24, 24]


def test_white_noise_has_power_one_at_every_frequency():
    frequencies, power = spectrum.radial_power([normal(500, 3, 16, 16), normal(500, 3, 16, 16, seed=1)], 16)
    assert frequencies.tolist() == [k / 16 for k in range(1, 9)]
    torch.testing.assert_close(power, torch.ones(8).double(), rtol=0, atol=0.02)


def test_a_wave_has_its_power_in_the_ring_of_its_frequency():
    wave = torch.cos(2 * math.pi * 3 / 16 * torch.arange(16).double()).expand(1, 1, 16, 16)
    _, power = spectrum.radial_power([wave], 16)
    assert power.argmax() == 2 and power[2] > 1e6 * power.sum().sub(power[2]).abs()


def test_the_spectral_rule_finds_the_frequency_at_which_a_known_law_drowns():
    """P(f) = (f / f_0)^-2: at (1 - sigma)^2 P = sigma^2, f = f_0 (1 - sigma) / sigma."""
    frequencies = torch.arange(1, 65).double() / 128
    power = (frequencies / 0.25) ** -2
    for sigma in (0.5, 0.6, 0.8, 0.9):
        drowned = 0.25 * (1 - sigma) / sigma
        assert spectrum.cutoff(frequencies, power, sigma) == pytest.approx(drowned, abs=1 / 128)
    resolutions = [16, 32, 64, 128]
    # 0.0625 cycles a pixel at 0.8: a grid of 16 keeps 1/16, one of 32 keeps 1/8.
    assert spectrum.smallest_safe(frequencies, power, 0.8, resolutions) == 16
    assert spectrum.smallest_safe(frequencies, power, 0.7, resolutions) == 32
    assert spectrum.proposed(frequencies, power, [1.0, 0.8, 0.7, 0.1], resolutions) == [16, 16, 32, 128]


def test_the_spectral_rule_by_hand():
    """At 1/2 signal and noise have one weight, so powers above 1 are seen; the last step is at the full resolution."""
    frequencies, power = torch.arange(1, 5).double() / 8, torch.tensor([9.0, 1.0, 1 / 9, 0.01]).double()
    assert spectrum.masking(power).tolist() == pytest.approx([3 / 4, 1 / 2, 1 / 4, 1 / 11])
    assert spectrum.cutoff(frequencies, power, 0.5) == 2 / 8 and spectrum.cutoff(frequencies, power, 0.3) == 3 / 8
    assert spectrum.proposed(frequencies, power, [1.0, 0.5], [2, 4, 8]) == [2, 8]
    assert spectrum.smallest_safe(frequencies, power, 0.5, [2, 4, 8]) == 4


def test_pure_noise_masks_everything_and_no_noise_nothing():
    frequencies, power = torch.tensor([0.25, 0.5]).double(), torch.tensor([1e3, 1e-3]).double()
    assert spectrum.smallest_safe(frequencies, power, 1.0, [4, 8]) == 4
    assert spectrum.smallest_safe(frequencies, power, 1e-4, [4, 8]) == 8


def test_the_gradient_of_the_matching_loss_is_the_difference_of_the_scores():
    made, real, fake = (normal(3, 2, 4, 4, seed=seed) for seed in range(3))
    made.requires_grad_()
    distribution.dmd(made, real, fake).backward()
    exact(made.grad, distribution.dmd_gradient(made, real, fake).detach() / made.numel())
    each = (fake[1] - real[1]) / (made[1] - real[1]).abs().mean()
    exact(made.grad[1] * made.numel(), each.detach())


def test_equal_scores_leave_the_generator_alone_and_a_perfect_one_does_not_overflow():
    made, real, fake = (normal(3, 2, 4, 4, seed=seed) for seed in range(3))
    made.requires_grad_()
    distribution.dmd(made, real, real).backward()
    assert not made.grad.any()
    same = real.clone().requires_grad_()
    distribution.dmd(same, real, fake).backward()
    assert same.grad.isfinite().all() and same.grad.any()


def test_the_normaliser_is_at_least_a_hundred_thousandth():
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    found = distribution.dmd_gradient(x, x, x + 2)
    assert found.flatten().tolist() == pytest.approx([2e5] * 4)


def test_the_linear_discrepancy_is_the_mean_kernel_of_all_pairs_of_tokens():
    fake, real = normal(3, 5, 7), normal(3, 5, 7, seed=1)

    def pairs(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("nid,njd->n", a, b) / (a.shape[1] * b.shape[1])

    by_pairs = pairs(fake, fake) + pairs(real, real) - 2 * pairs(fake, real)
    exact(distribution.mmd(fake, real, "mse"), by_pairs.mean() / 7)
    exact(by_pairs, (fake.mean(1) - real.mean(1)).square().sum(1))


@pytest.mark.parametrize("penalty", ["huber", "mse"])
def test_equal_tokens_have_no_discrepancy_and_no_gradient(penalty):
    tokens = normal(3, 5, 7)
    fake = tokens.clone().requires_grad_()
    loss = distribution.mmd(fake, tokens, penalty)
    loss.backward()
    assert loss == 0 and not fake.grad.any()


def test_the_discrepancy_knows_images_and_not_the_order_of_their_tokens():
    fake, real, order = normal(4, 6, 5), normal(4, 6, 5, seed=1), torch.randperm(6)
    for penalty in ("huber", "mse"):
        loss = distribution.mmd(fake, real, penalty)
        exact(distribution.mmd(fake[:, order], real, penalty), loss)
        assert (distribution.mmd(fake[[1, 0, 2, 3]], real, penalty) - loss).abs() > 1e-3
        # As one set, images may be swapped: that is what the ablation loses.
        whole = distribution.mmd(fake, real, penalty, "batch")
        exact(distribution.mmd(fake[[1, 0, 2, 3]], real, penalty, "batch"), whole)
        assert whole < loss


@pytest.mark.parametrize("difference, value", [(1e-2, 9.050e-3), (1.0, 0.99900)])
def test_the_penalty_of_the_released_code(difference, value):
    assert distribution.huber(torch.tensor(difference).double()).item() == pytest.approx(value, abs=1e-6)


def test_the_gaussian_kernel_is_slightly_negative_on_equal_sets_and_grows_with_distance():
    tokens = 50 * normal(2, 16, 4)
    assert distribution.mmd_rbf(tokens, tokens) < 0
    near, far = (distribution.mmd_rbf(tokens, tokens + 30 * step) for step in (1, 2))
    assert 0 < near < far
    one = distribution.mmd_rbf(tokens[:1], tokens[1:])
    kernel = torch.exp(-torch.cdist(tokens[0], tokens[1]).square() / 2e4)
    inside = [torch.exp(-torch.pdist(x).square() / 2e4).mean() for x in tokens]
    exact(one, inside[0] + inside[1] - 2 * kernel.mean())


def explicit_rbf(fake: Tensor, real: Tensor, width: float) -> Tensor:
    """The estimate, computed pair by pair."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a - b).square().sum() / (2 * width**2))

    each, tokens = [], range(fake.shape[1])
    for a, b in zip(fake, real):
        inside = [sum(kernel(x[i], x[j]) for i in tokens for j in tokens if i != j) for x in (a, b)]
        across = sum(kernel(a[i], b[j]) for i in tokens for j in tokens)
        each.append(sum(inside) / (len(tokens) * (len(tokens) - 1)) - 2 * across / len(tokens) ** 2)
    return sum(each) / len(each)


@pytest.mark.parametrize("average", ["image", "batch"])
@pytest.mark.parametrize("width", [2.0, 100.0])
def test_the_gaussian_discrepancy_and_its_gradient_are_those_of_the_explicit_formula(average, width):
    tokens = [(3 * normal(2, 5, 4, seed=seed)).requires_grad_() for seed in (0, 1)]
    sets = [x if average == "image" else x.flatten(0, 1).unsqueeze(0) for x in tokens]
    found, wanted = distribution.mmd_rbf(*tokens, average, width), explicit_rbf(*sets, width)
    exact(found, wanted)
    for mine, theirs in zip(*(torch.autograd.grad(value, tokens) for value in (found, wanted))):
        exact(mine, theirs)


def test_tokens_far_from_the_origin_lose_no_digits_in_single_precision_nor_in_bf16_autocast():
    fake, real = (1000 + normal(2, 6, 8, seed=seed) for seed in (0, 1))
    wanted = explicit_rbf(fake, real, 5.0).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert distribution.mmd_rbf(fake.float(), real.float(), "image", 5.0).item() == pytest.approx(wanted, rel=1e-3)


def test_tokens_that_coincide_have_a_finite_gradient_that_their_distance_adds_nothing_to():
    same = normal(1, 2, 3)[:, :1].expand(1, 2, 3).clone().requires_grad_()
    distribution.mmd_rbf(same, same.detach(), "image", 1.0).backward()
    exact(same.grad, torch.zeros_like(same.grad))


def test_the_gaussian_discrepancy_holds_no_more_than_all_pairs_of_tokens():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **kwargs or {})
            self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(made) if isinstance(x, Tensor))])
            return made

    fake, real = normal(2, 12, 32).requires_grad_(), normal(2, 12, 32, seed=1)
    with Largest() as largest:
        distribution.mmd_rbf(fake, real).backward()
    assert largest.numbers == 2 * 12 * 32, "the tokens themselves; their pairs are 2 * 12 * 12"


@pytest.mark.parametrize("low, full", [(4, 8), (6, 8), (64, 80)])
def test_enlarging_keeps_a_constant(low, full):
    exact(bicubic_to(torch.full((1, 1, low, low), 0.7).double(), full), torch.full((1, 1, full, full), 0.7).double())


def correlation(x: Tensor) -> float:
    """Between neighbours of a row, of noise with mean zero."""
    return (x[..., 1:] * x[..., :-1]).mean().item() / x.square().mean().item()


def test_noise_that_is_added_after_enlarging_is_white():
    """Strategy B: noise is drawn at the resolution of the step; within three standard errors."""
    sigma, shape = 0.6, (1, 1, 512, 512)
    low = normal(1, 1, 256, 256, seed=1)
    x = noisy(low, 512, sigma, lambda _: normal(*shape), "B")
    noise = x - (1 - sigma) * bicubic_to(low, 512)
    error = 3 / math.sqrt(noise.numel())
    assert noise.square().mean().item() / sigma**2 == pytest.approx(1, abs=error * math.sqrt(2))
    assert abs(correlation(noise)) < error and abs(correlation(noise.mT)) < error


@pytest.mark.parametrize(
    "low, full, variance, neighbours", [(64, 128, 0.733, 0.70), (64, 80, 0.740, 0.365), (96, 128, 0.738, 0.420)]
)
def test_noise_that_is_enlarged_is_weak_and_correlated(low, full, variance, neighbours):
    """Strategy C, the control."""
    x = noisy(torch.zeros(64, 1, low, low).double(), full, 1.0, lambda shape: normal(64, *shape), "C")
    assert x.square().mean().item() == pytest.approx(variance, abs=0.02)
    assert correlation(x) == pytest.approx(neighbours, abs=0.02)


def test_pure_noise_hides_the_image():
    def draw(shape):
        return normal(2, *shape)

    assert torch.equal(
        noisy(normal(2, 1, 4, 4), 4, 1.0, draw, "B"), noisy(normal(2, 1, 4, 4, seed=1), 4, 1.0, draw, "B")
    )


@pytest.mark.parametrize(
    "width, sizes, parameters",
    [(1536, [1536, 1152, 768, 384, 1], 2_959_489), (2432, [2432, 1824, 1216, 608, 1], 7_409_697)],
)
def test_the_discriminators_head_has_the_published_size(width, sizes, parameters):
    with torch.device("meta"):
        head = TokenHead(width)
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] + [linear[-1].out_features] == sizes
    assert sum(p.numel() for p in head.parameters()) == parameters


def test_the_head_reads_the_mean_of_the_tokens():
    head, tokens = TokenHead(16), torch.randn(3, 5, 16)
    torch.testing.assert_close(head(tokens), head(tokens.mean(1, keepdim=True)))
    assert head(tokens).shape == (3, 1)


def test_the_relative_distance_of_two_small_sets_by_hand():
    """|x - y| is 2 on average, |x - x'| 2 and |y - y'| 10 / 3; from their mean, 2, the real ones are 2 away."""
    generated, real = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0], [5.0]])
    assert relative_distance(generated, real) == pytest.approx((4 - 2 - 10 / 3) / (4 - 10 / 3))


@pytest.mark.parametrize("channels", [4, 16, 64])
def test_the_relative_distance_of_equal_distributions_is_zero_in_any_dimension_and_of_others_it_is_not(channels):
    """Ten draws of 500: means within 0.0001 of zero, standard deviations 0.0010, 0.0003 and 0.0002."""
    width = 16 * channels
    draws = [[normal(500, width, seed=2 * k + each) for each in (0, 1)] for k in range(10)]
    same = torch.tensor([relative_distance(*pair) for pair in draws])
    assert same.std() < 2e-3 and same.mean().abs() < 3 * same.std() / 10**0.5
    generated, real = draws[0]
    for spread in (0.5, 1.5):  # of Gaussians E|x - y| is proportional to the root of the summed variances
        wanted = (2 * (1 + spread**2) ** 0.5 - 2**0.5 * (1 + spread)) / (2 - 2**0.5)
        assert relative_distance(spread * generated, real) == pytest.approx(wanted, abs=0.01)
    shifted = (2 * (2 + 0.5**2) ** 0.5 - 2 * 2**0.5) / (2 - 2**0.5)  # in many dimensions
    assert relative_distance(real + 0.5, real) == pytest.approx(shifted, abs=0.02)
    mean = real.mean(0, keepdim=True).expand(500, -1)
    assert relative_distance(mean, real) == pytest.approx(1, abs=1e-6)
