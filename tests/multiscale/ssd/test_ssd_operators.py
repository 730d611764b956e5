"""The degradations of SSD and their posterior are exact: checked against explicit matrices and Bayes' rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from multiscale.core.resize import area_to, bilinear_to
from multiscale.methods.ssd.process import ScaleSpaceProcess, linear_alpha_bar
from multiscale.methods.ssd.resizing import Separable, Transition, bilinear, box, identity

ALPHA_BAR = linear_alpha_bar(1000)
STEPS = {  # operator, t: every kind of step a chain has
    "bilinear 8 to 4": (bilinear(8, 4), 750),
    "bilinear 12 to 6": (bilinear(12, 6), 438),
    "one pixel, 5 to 4": (bilinear(5, 4), 300),
    "box 8 to 4": (box(8, 4), 555),
    "box 6 to 4, overlapping": (box(6, 4), 555),
    "identity": (identity(5), 500),
    "identity, early": (identity(5), 1),
    "two levels, 16 to 4": (bilinear(8, 4).following(bilinear(16, 8)), 900),
}
every_step = pytest.mark.parametrize("name", STEPS)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def step(name: str, eta: float = 1.0) -> Transition:
    operator, t = STEPS[name]
    return between(operator, t - 1, t, eta)


def between(operator: Separable, s: int, t: int, eta: float = 1.0) -> Transition:
    values = [f(ALPHA_BAR[i]) for i in (s, t) for f in (math.sqrt, lambda a: math.sqrt(1 - a))]
    return Transition(operator, *values, eta)


def dense(function, resolution: int) -> Tensor:
    """The matrix of a linear map of images at a resolution."""
    basis = torch.eye(resolution**2).view(-1, 1, resolution, resolution)
    return function(basis).flatten(1).T


class Explicit:
    """The same step with explicit matrices, by Bayes' rule in information form."""

    def __init__(self, transition: Transition):
        A = transition.operator.matrix
        self.M = transition.scale * torch.kron(A, A)
        self.variance_s, self.variance_t = transition.sigma_s**2, transition.sigma_t**2
        self.noise = self.variance_t * torch.eye(len(self.M)) - self.variance_s * self.M @ self.M.T
        weighted = self.M.T @ torch.linalg.inv(self.noise)
        self.cov = torch.linalg.inv(torch.eye(self.M.shape[1]) / self.variance_s + weighted @ self.M)
        self.gain = self.cov @ weighted  # mean = mu + gain (x_t - M mu)

    def marginal(self, cov: Tensor) -> Tensor:
        """The covariance of x_s over all x_t."""
        return cov + self.variance_t * self.gain @ self.gain.T


def near(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return (a - b).abs().max().item() <= tolerance


@pytest.mark.parametrize("resolutions", [(8, 4), (64, 32), (256, 128), (7, 6), (32, 31), (2, 1)])
def test_bilinear_rows_sum_to_one_and_equal_torchs_antialiased_resize(resolutions):
    before, after = resolutions
    operator = bilinear(before, after)
    assert near(operator.matrix.sum(1), torch.ones(after))
    x = torch.randn(2, 3, before, before)
    assert near(operator.apply(x), bilinear_to(x, after))


def test_halving_takes_an_eighth_three_eighths_three_eighths_an_eighth():
    matrix = bilinear(16, 8).matrix
    assert near(matrix[3, 5:9], torch.tensor([1, 3, 3, 1]) / 8)
    assert near(matrix[0, :3], torch.tensor([3, 3, 1]) / 7)
    assert near(matrix[-1, -3:], torch.tensor([1, 3, 3]) / 7)
    assert (matrix[3] != 0).sum() == 4


@pytest.mark.parametrize("resolutions", [(8, 4), (6, 4)])
def test_box_averages_areas(resolutions):
    x = torch.randn(2, 3, resolutions[0], resolutions[0])
    assert near(box(*resolutions).apply(x), area_to(x, resolutions[1]))


def test_largest_eigenvalues_of_a_halving_are_about_a_quarter():
    for before, value in ((8, 0.2546), (16, 0.2523), (64, 0.2508)):
        assert bilinear(before, before // 2).largest_eigenvalue == pytest.approx(value, abs=5e-4)
    for before, value in ((3, 0.672), (8, 0.879), (32, 0.969)):  # of one pixel, in one dimension
        assert bilinear(before, before - 1).largest_eigenvalue ** 0.5 == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(
    ("resolution", "settings"),
    [(64, {"levels": n, "operator": operator}) for n in (1, 2, 4) for operator in ("bilinear", "box")]
    + [(256, {"levels": 6}), (32, {"levels": 31, "resolutions": "gradual", "schedule": "equal"})],
)
def test_the_added_noise_has_a_positive_covariance_at_every_t(resolution, settings):
    process = ScaleSpaceProcess(**settings).build(resolution)
    for t in range(1, process.steps):
        transition = process.transition(t - 1, t)
        added = transition.sigma_t**2 - (transition.sigma_s * transition.singular) ** 2  # eigenvalues
        assert added.min() > 0


@every_step
def test_the_noise_of_a_state_is_white(name):
    exact = Explicit(step(name))
    assert torch.linalg.eigvalsh(exact.noise).min() > 0
    assert near(exact.variance_s * exact.M @ exact.M.T + exact.noise, exact.variance_t * torch.eye(len(exact.M)))


@every_step
def test_the_posterior_equals_bayes_rule_with_explicit_inverses(name):
    transition, exact = step(name), Explicit(step(name))
    operator = transition.operator
    nothing = torch.zeros(1, 1, operator.before, operator.before)
    gain = dense(lambda x: transition.mean(x, nothing.expand(len(x), -1, -1, -1)), operator.after)
    blank = torch.zeros(1, 1, operator.after, operator.after)
    of_clean = dense(lambda clean: transition.mean(blank.expand(len(clean), -1, -1, -1), clean), operator.before)
    assert near(gain, exact.gain)
    assert near(of_clean, transition.signal_s * (torch.eye(operator.before**2) - exact.gain @ exact.M))
    root = dense(transition.root, operator.before)
    assert near(root, root.T)
    assert near(root @ root, exact.cov)


@every_step
def test_averaged_over_x_t_the_posterior_gives_back_the_marginal(name):
    exact = Explicit(step(name))
    size = exact.M.shape[1]
    assert near(exact.marginal(exact.cov), exact.variance_s * torch.eye(size))
    # The mean of x_t is M mu, where the innovation vanishes.
    transition = step(name)
    clean = torch.randn(2, 3, transition.operator.before, transition.operator.before)
    mu = transition.signal_s * clean
    assert near(transition.mean(transition.apply(mu), clean), mu)


@pytest.mark.parametrize("t", [1, 2, 349, 998, 999])
def test_a_step_of_one_resolution_is_the_ddpm_posterior_with_the_small_variance(t):
    transition = between(identity(4), t - 1, t)
    before, now = ALPHA_BAR[t - 1], ALPHA_BAR[t]
    beta = 1 - now / before
    x, clean = torch.randn(2, 2, 3, 4, 4)
    mean = math.sqrt(before) * beta / (1 - now) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
    assert near(transition.mean(x, clean), mean)
    noise = torch.ones(1, 1, 4, 4)
    assert near(transition.root(noise) ** 2, beta * (1 - before) / (1 - now) * noise)


def lanczos_root(transition: Transition, noise: Tensor, iterations: int = 10) -> Tensor:
    """The published way to Sigma^(1/2) z: the root of A = I - rho M^T M within a Krylov space, times sigma_s.

    M^T M v is the gradient of |M v|^2 / 2.
    """
    rho = (transition.sigma_s / transition.sigma_t) ** 2
    rows = []
    for z in noise:
        basis, diagonal, beside = [z / z.norm()], [], []
        for k in range(iterations):
            v = basis[-1][None]
            w = (v - rho * torch.func.grad(lambda v: transition.apply(v).square().sum() / 2)(v))[0]
            diagonal.append((w * basis[-1]).sum())
            w = w - diagonal[-1] * basis[-1] - (beside[-1] * basis[-2] if k else 0)
            beside.append(w.norm())
            basis.append(w / beside[-1])
        tridiagonal = torch.diag(torch.stack(diagonal))
        for k, value in enumerate(beside[:-1]):
            tridiagonal[k, k + 1] = tridiagonal[k + 1, k] = value
        values, vectors = torch.linalg.eigh(tridiagonal)
        weights = vectors @ (values.clamp(min=0).sqrt() * vectors[0]) * z.norm()
        rows.append(sum(weight * v for weight, v in zip(weights, basis)))
    return transition.sigma_s * torch.stack(rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_lanczos_agrees_with_the_closed_form_root(dtype, tolerance):
    transition = between(bilinear(64, 32), 749, 750)
    noise = torch.randn(2, 3, 64, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    closed = transition.root(noise)
    assert (lanczos_root(transition, noise) - closed).norm() / closed.norm() < tolerance


def test_the_root_of_mean_pooling_is_the_projection_on_blocks():
    transition = between(box(8, 4), 554, 555)
    noise = torch.randn(3, 2, 8, 8)
    blocks = area_to(noise, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
    rho = (transition.sigma_s / transition.sigma_t) ** 2
    kept = math.sqrt(1 - rho * transition.scale**2 / 4)
    assert near(transition.root(noise), transition.sigma_s * (noise - blocks + kept * blocks))


@pytest.mark.parametrize(
    ("operator", "t", "error"), [(bilinear(8, 4), 750, 0.22), (box(8, 4), 750, 0.19), (bilinear(5, 4), 750, 0.44)]
)
def test_isotropic_noise_of_the_same_variance_is_wrong_at_a_transition(operator, t, error):
    exact = Explicit(between(operator, t - 1, t))
    size = len(exact.cov)
    isotropic = exact.cov.trace() / size * torch.eye(size)
    wrong = exact.marginal(isotropic) - exact.variance_s * torch.eye(size)
    assert torch.linalg.matrix_norm(wrong, 2) / exact.variance_s == pytest.approx(error, abs=0.01)
    assert torch.linalg.matrix_norm(wrong, 2) / exact.variance_s > 0.15


@every_step
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginal(name, eta):
    transition = step(name, eta)
    resolution = transition.operator.before
    nothing = torch.zeros(1, 1, resolution, resolution)
    gain = dense(lambda x: transition.mean(x, nothing.expand(len(x), -1, -1, -1)), transition.operator.after)
    root = dense(transition.root, resolution)
    marginal = root @ root.T + transition.sigma_t**2 * gain @ gain.T
    assert near(marginal, transition.sigma_s**2 * torch.eye(resolution**2))
    clean = torch.randn(2, 3, resolution, resolution)
    mu = transition.signal_s * clean
    assert near(transition.mean(transition.apply(mu), clean), mu)


def test_eta_zero_at_one_resolution_is_ddim_and_draws_nothing():
    transition = between(identity(4), 400, 500, eta=0.0)
    x, clean = torch.randn(2, 2, 3, 4, 4)
    noise = (x - math.sqrt(ALPHA_BAR[500]) * clean) / math.sqrt(1 - ALPHA_BAR[500])
    ddim = math.sqrt(ALPHA_BAR[400]) * clean + math.sqrt(1 - ALPHA_BAR[400]) * noise
    assert not transition.needs_noise
    assert near(transition.reverse(x, clean, None), ddim)


def test_the_step_to_the_clean_image_returns_the_estimate_exactly():
    for eta in (0.0, 1.0):
        transition = Transition(identity(8), 1.0, 0.0, math.sqrt(ALPHA_BAR[0]), math.sqrt(1 - ALPHA_BAR[0]), eta)
        x, clean = torch.randn(2, 2, 3, 8, 8)
        assert not transition.needs_noise
        assert torch.equal(transition.reverse(x, clean, None), clean)


@pytest.mark.parametrize("name", ["bilinear 8 to 4", "two levels, 16 to 4"])
def test_images_in_single_precision_get_the_same_step(name):
    transition = step(name)
    operator = transition.operator
    x = torch.randn(2, 3, operator.after, operator.after)
    clean, noise = torch.randn(2, 2, 3, operator.before, operator.before)
    single = transition.reverse(x.float(), clean.float(), noise.float())
    assert single.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):  # a resize is not the place to save bits
        reduced = transition.reverse(x.float(), clean.float(), noise.float())
    assert torch.equal(reduced, single)
    assert near(single.double(), transition.reverse(x, clean, noise), 1e-5)


def test_an_operator_that_amplifies_the_noise_is_refused():
    with pytest.raises(ValueError, match="from resolution 8 to 4 is infeasible.*allowed: a largest eigenvalue"):
        between(Separable(1.5 * bilinear(8, 4).matrix), 749, 750)
