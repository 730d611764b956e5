"""SSD's sampler with several levels: its distribution in closed form, and the steps of the released code."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.ssd import parts as ssd_parts
from multiscale.methods.ssd import sampler as ssd_sampler
from multiscale.methods.ssd.process import linear_alpha_bar
from multiscale.methods.ssd.settings import SSDMethod, SSDPart

make_torchvision_importable()
from diffusers import DDPMScheduler  # noqa: E402
from diffusers.schedulers import scheduling_ddpm  # noqa: E402

SEEDS, LABELS = [3, 1, 4], torch.tensor([0, 2, 1])
STATES, GAMMA = 40, 2.0  # states shrink early, while there is much signal: every change of resolution matters
Chain = SimpleNamespace  # of the paper's quantities at each state: a, sigma, resolution


def sampler_of(folder, monkeypatch, resolution: int, levels: int, steps: int, predict: Callable, **solver):
    """The sampler of one grey part, its network replaced by predict(x, t, resolution); and what the network was shown.

    The part is built as its stage builds it, from settings with their defaults.
    """
    network = {"width": 4, "multipliers": [1] * levels, "blocks": 1, "attention": [], "heads": 1, "groups": 1}
    section = {"method": "ssd", "kind": "ssd", "dataset": "full", "network": network, "training": {"images": 8}}
    section |= {"process": {"steps": STATES, "levels": levels, "gamma": GAMMA}}
    pixels = torch.zeros(4, 1, resolution, resolution, dtype=torch.uint8)
    save_file({"pixels": pixels, "label": torch.zeros(4, dtype=torch.long)}, folder / "targets.safetensors")
    (folder / "statistics.json").write_text(json.dumps({"classes": 3}))
    ssd_parts.build_part("part", SSDPart.model_validate(section), folder).save(folder)
    settings = SSDMethod.model_validate({"kind": "ssd", "solver": {"steps": steps} | solver})
    sampler, shown = ssd_sampler.load_sampler([folder], settings, None, "fp32"), []

    def forward(x: Tensor, t: Tensor, labels: Tensor, out_resolution: int) -> Tensor:
        shown.append((x.shape[-1], int(t[0]), out_resolution))
        return predict(x, int(t[0]), out_resolution)

    monkeypatch.setattr(sampler.net, "forward", forward)
    return sampler, shown


def chain(resolution: int, levels: int) -> Chain:
    """a_t, sigma_t and r(t) of the paper (sections 3 and 4 of its method), written out; t = -1 is the clean image."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, STATES) * 1000 / STATES)
    tau = np.arange(STATES) / (STATES - 1)
    level = np.minimum(np.floor((1 - (1 - tau) ** GAMMA) * levels), levels - 1).astype(int)
    return Chain(
        a={-1: 1.0} | dict(enumerate(np.sqrt(alpha_bar))),
        sigma={-1: 0.0} | dict(enumerate(np.sqrt(1 - alpha_bar))),
        resolution={-1: resolution} | {t: resolution >> k for t, k in enumerate(level)},
    )


def halving(resolution: int) -> np.ndarray:
    """Antialiased bilinear halving in one dimension: (1, 3, 3, 1) / 8, at the ends (3, 3, 1) / 7."""
    rows = np.zeros((resolution // 2, resolution))
    for k in range(resolution // 2):
        for place, weight in zip(range(2 * k - 1, 2 * k + 3), (1, 3, 3, 1)):
            if 0 <= place < resolution:
                rows[k, place] = weight
    return rows / rows.sum(1, keepdims=True)


def shrinking(before: int, after: int) -> np.ndarray:
    """The matrix of the stepwise resize from one resolution to another."""
    one = np.eye(before)
    while len(one) > after:
        one = halving(len(one)) @ one
    return np.kron(one, one)


class Field:
    """A Gaussian field of small variance and its exact denoiser E[x_0 at the resolution of s | x_t], an affine map."""

    def __init__(self, resolution: int, of: Chain):
        self.of, self.full = of, resolution
        place = np.arange(resolution)
        one = np.exp(-np.abs(place[:, None] - place) / 3)
        self.mean = 0.3 * np.outer(np.cos(place), np.sin(place)).ravel()
        self.covariance = 0.02 * np.kron(one, one)

    def denoiser(self, t: int, out_resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """G and h of the estimate G x_t + h."""
        a, sigma = self.of.a[t], self.of.sigma[t]
        small, out = shrinking(self.full, self.of.resolution[t]), shrinking(self.full, out_resolution)
        noisy = a**2 * small @ self.covariance @ small.T + sigma**2 * np.eye(len(small))
        gain = a * out @ self.covariance @ small.T @ np.linalg.inv(noisy)
        return gain, out @ self.mean - a * gain @ small @ self.mean

    def predict(self, x: Tensor, t: int, out_resolution: int) -> Tensor:
        gain, offset = self.denoiser(t, out_resolution)
        made = x.double().flatten(1) @ torch.from_numpy(gain.T) + torch.from_numpy(offset)
        return made.view(len(x), 1, out_resolution, out_resolution).float()


def in_closed_form(field: Field, times: list[int], eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what the chain makes: a linear recursion with explicit matrices.

    From t to s: x_s = mu + V diag(g) U^T (x_t - M mu) + noise of the covariance V diag(sigma_s^2 - g^2 sigma_t^2) V^T +
    sigma_s^2 (1 - V V^T), with mu = a_s E[x_0 | x_t], M = U S V^T, and g from (sigma_s / sigma_t)^2 S (the posterior,
    eta = 1) to sigma_s / sigma_t (eta = 0).
    """
    of = field.of
    mean, covariance = np.zeros(of.resolution[times[0]] ** 2), np.eye(of.resolution[times[0]] ** 2)
    for t, s in zip(times, [*times[1:], -1]):
        gain, offset = field.denoiser(t, of.resolution[s])
        M = of.a[t] / of.a[s] * shrinking(of.resolution[s], of.resolution[t])
        U, S, Vt = np.linalg.svd(M, full_matrices=False)
        ratio = of.sigma[s] / of.sigma[t]
        g = eta * ratio**2 * S + (1 - eta) * ratio
        carried = Vt.T * g @ U.T
        linear = carried + of.a[s] * (np.eye(len(Vt.T)) - carried @ M) @ gain
        mean = linear @ mean + of.a[s] * (np.eye(len(Vt.T)) - carried @ M) @ offset
        fresh = Vt.T * (of.sigma[s] ** 2 - g**2 * of.sigma[t] ** 2) @ Vt
        fresh += of.sigma[s] ** 2 * (np.eye(len(Vt.T)) - Vt.T @ Vt)
        covariance = linear @ covariance @ linear.T + fresh
    return mean, covariance


@pytest.mark.parametrize("eta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("levels, steps", [(1, 12), (2, 12), (3, STATES)])
def test_mean_and_covariance_of_the_whole_chain_are_those_of_the_closed_form(levels, steps, eta, tmp_path, monkeypatch):
    """With an affine denoiser the sampler is affine in its noise; one image a noise coordinate gives the whole map."""
    field = Field(8, chain(8, levels))
    sampler, shown = sampler_of(tmp_path, monkeypatch, 8, levels, steps, field.predict, eta=eta)
    places: dict[str, int] = {}
    size, unit = 64 * (steps + levels) + 1, 0.25

    def basis(seeds: list[int], stream: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Row 0 gets no noise, every other row one coordinate of the noise of one stream."""
        count = int(np.prod(shape))
        first = places.setdefault(stream, 1 + 64 * len(places))
        noise = torch.zeros(size, count)
        noise[first : first + count] = unit * torch.eye(count)
        return noise.view(size, *shape)

    monkeypatch.setattr(ssd_sampler, "noise_of_seeds", basis)
    images = 2 * sampler(list(range(size)), torch.zeros(size, dtype=torch.long)).double().flatten(1) - 1
    assert images.abs().max() < 1, "nothing was clipped"
    found = (images[1:] - images[0]) / unit
    times = [t for _, t, _ in shown]
    assert [resolution for resolution, _, _ in shown] == [field.of.resolution[t] for t in times]
    assert [out for _, _, out in shown] == [field.of.resolution[t] for t in [*times[1:], -1]]
    mean, covariance = in_closed_form(field, times, eta)
    near = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(images[0], torch.from_numpy(mean), **near)
    torch.testing.assert_close(found.T @ found, torch.from_numpy(covariance), **near)
    assert np.abs(mean).max() > 0.2 and 0.3 * 0.02 < covariance.diagonal().mean() < 1.2 * 0.02


def square_root_times(apply: Callable[[Tensor], Tensor], z: Tensor, iterations: int = 40) -> Tensor:
    """A^(1/2) z for a symmetric A within a Krylov space (Lanczos), as the released code samples at a transition."""
    basis, diagonal, beside = [z / z.norm()], [], []
    for k in range(iterations):
        w = apply(basis[-1])
        diagonal.append((w * basis[-1]).sum())
        w = w - diagonal[-1] * basis[-1] - (beside[-1] * basis[-2] if k else 0)
        for v in basis:
            w = w - (w * v).sum() * v
        if w.norm() < 1e-9:
            break
        beside.append(w.norm())
        basis.append(w / beside[-1])
    size = len(diagonal)
    T = torch.diag(torch.stack(diagonal))
    for k, value in enumerate(beside[: size - 1]):
        T[k, k + 1] = T[k + 1, k] = value
    values, vectors = torch.linalg.eigh(T)
    weights = vectors @ (values.clamp(min=0).sqrt() * vectors[0]) * z.norm()
    return sum(weight * v for weight, v in zip(weights, basis))


@pytest.mark.parametrize("last_step", ["clean", "as-released"])
@pytest.mark.parametrize("levels, steps", [(2, 10), (3, STATES)])
def test_the_steps_are_those_of_the_released_code(levels, steps, last_step, tmp_path, monkeypatch):
    """x <- mu + rho c R^T (x - c R mu) + Sigma^(1/2) z, mu = a_s clamp(x0): R^T by differentiation, root by Lanczos."""

    def predict(x: Tensor, t: int, resolution: int) -> Tensor:
        return 1.4 * torch.sin(F.interpolate(x, size=(resolution, resolution)) * 1.2 + 0.05 * t)

    sampler, shown = sampler_of(tmp_path, monkeypatch, 16, levels, steps, predict, last_step=last_step)
    seeds, of = [5, 6], chain(16, levels)
    images = sampler(seeds, torch.zeros(2, dtype=torch.long))
    times = [t for _, t, _ in shown] + ([0] if last_step == "as-released" else [])
    changes = {t for t in range(STATES) if of.resolution[t] != of.resolution[t - 1]}
    assert set(times) >= changes | {0, STATES - 1} and len(times) <= steps + levels - 1

    def noise(state: int) -> Tensor:
        return noise_of_seeds(seeds, f"state-{state}", (1, of.resolution[state], of.resolution[state])).double()

    x, largest = noise(times[0]), 0.0
    for t, s in zip(times, times[1:]):
        c, rho = of.a[t] / of.a[s], (of.sigma[s] / of.sigma[t]) ** 2
        made = predict(x, t, of.resolution[s])
        largest = max(largest, made.abs().max().item())
        mu = of.a[s] * made.clamp(-1, 1)

        def shrink(image: Tensor, t: int = t, s: int = s) -> Tensor:
            for resolution in [of.resolution[s] >> k for k in range(1, 4) if of.resolution[s] >> k >= of.resolution[t]]:
                image = F.interpolate(
                    image, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False
                )
            return image

        def transposed(image: Tensor, like: Tensor = mu, shrink: Callable = shrink) -> Tensor:
            return torch.autograd.functional.vjp(shrink, torch.zeros_like(like), image)[1]

        mean = mu + rho * c * transposed(x - c * shrink(mu))
        z = noise(s)
        if of.resolution[s] == of.resolution[t]:
            x = mean + of.sigma[s] * np.sqrt(1 - rho * c**2) * z
        else:
            root = [
                square_root_times(
                    lambda v: (v[None] - rho * c**2 * transposed(shrink(v[None]), v[None]))[0],  # noqa: B023
                    image,
                )
                for image in z
            ]
            x = mean + of.sigma[s] * torch.stack(root)
    if last_step == "clean":
        x = predict(x, 0, 16).clamp(-1, 1)
    torch.testing.assert_close(images.double(), ((x + 1) / 2).clamp(0, 1), rtol=0, atol=1e-4)
    assert largest > 1.2, "the prediction leaves the range of images"


@pytest.mark.parametrize("steps", [40, 9])
def test_one_level_is_sampled_as_by_the_ddpm_scheduler(steps, tmp_path, monkeypatch):
    """Prediction of the clean image, clipped; the small variance; all states or a few."""
    sampler, _ = sampler_of(tmp_path, monkeypatch, resolution=4, levels=1, steps=steps, predict=wild)
    kept = [t for t, _, _ in sampler.plan]
    theirs = DDPMScheduler(
        num_train_timesteps=40,
        trained_betas=(torch.linspace(1e-4, 0.02, 40, dtype=torch.float64) * 25).tolist(),
        prediction_type="sample",
        variance_type="fixed_small",
        clip_sample=True,
    )
    theirs.set_timesteps(timesteps=kept)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), torch.tensor(linear_alpha_bar(40)).double())
    states = iter([noise_of_seeds(SEEDS, f"state-{t}", (1, 4, 4)) for t in kept])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *shape, **_: next(states))
    x, clipped = next(states), 0.0
    for t in theirs.timesteps:
        made = wild(x, int(t), 4)
        clipped = max(clipped, made.abs().max().item())
        x = theirs.step(made, int(t), x).prev_sample
    images = sampler(SEEDS, LABELS)
    torch.testing.assert_close(images, ((x + 1) / 2).clamp(0, 1), rtol=0, atol=2e-4)
    assert clipped > 1.2 and images.std() > 0.1, "the prediction leaves the range of images"


def wild(x: Tensor, t: int, resolution: int) -> Tensor:
    return 1.5 * torch.sin(1.3 * x + 0.1 * t)
