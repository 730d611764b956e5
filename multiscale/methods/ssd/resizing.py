"""Linear degradations that keep the noise of a diffusion state white, and their exact posterior (arXiv 2603.08709).

A step from state s to the noisier state t multiplies the image by M = c R and adds just the noise that makes the sum
white again:  x_t = M x_s + eta,  Cov(eta) = sigma_t^2 I - sigma_s^2 M M^T  (Theorem 1). R is separable: one matrix A
acts on the rows and the columns of every channel, so a thin SVD of the small A gives the posterior q(x_s | x_t, x_0)
in closed form. Coefficients are computed in float64 and applied in the precision of the image.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multiscale.core.device import full_precision

Variance = Literal["small", "large"]  # of the noise that a step draws: the posterior's, or beta_t


def sandwich(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """left x right^T for images x (N, C, H, W), left (h, H) and right (w, W), never in reduced precision."""
    with torch.autocast(x.device.type, enabled=False), full_precision():
        return torch.matmul(left, F.linear(x, right))


class Separable:
    """The linear map of images x (N, C, H, H) -> A x A^T (N, C, h, h), for a float64 matrix A (h, H)."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix.double()
        self.after, self.before = matrix.shape
        self.is_identity = self.after == self.before and torch.equal(self.matrix, torch.eye(self.after).double())
        self._copies: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """The thin SVD A = U diag(S) V^T: U (h, h), S (h), V (H, h)."""
        U, S, Vt = torch.linalg.svd(self.matrix, full_matrices=False)
        return U, S, Vt.mT.contiguous()

    @property
    def largest_eigenvalue(self) -> float:
        """lambda_max(R R^T) of the two-dimensional map R = A (x) A."""
        return 1.0 if self.is_identity else float(self.svd[1].max()) ** 4

    def like(self, x: Tensor) -> list[Tensor]:
        """A, U and V on the device and in the precision of an image."""
        key = (x.device, x.dtype)
        if key not in self._copies:
            self._copies[key] = [table.to(x) for table in (self.matrix, self.svd[0], self.svd[2])]
        return self._copies[key]

    def apply(self, x: Tensor) -> Tensor:
        """R x: (N, C, H, H) -> (N, C, h, h)."""
        if self.is_identity:
            return x
        A = self.like(x)[0]
        return sandwich(A, x, A)

    def following(self, first: Separable) -> Separable:
        """The composition: `first`, then this map."""
        return Separable(self.matrix @ first.matrix)


def _by_torch(before: int, after: int, mode: str, **options: bool) -> Separable:
    rows = torch.eye(before, dtype=torch.float64)[None, None]
    return Separable(F.interpolate(rows, size=(after, before), mode=mode, **options)[0, 0])


def bilinear(before: int, after: int) -> Separable:
    """torch's bilinear resize, half-pixel centres, antialiased: the paper's degradation."""
    return _by_torch(before, after, "bilinear", align_corners=False, antialias=True)


def box(before: int, after: int) -> Separable:
    """Averages of areas: f x f mean pooling for a whole factor f."""
    return _by_torch(before, after, "area")


OPERATORS = {"bilinear": bilinear, "box": box}


@lru_cache(maxsize=64)  # a chain has a thousand of them
def identity(resolution: int) -> Separable:
    """The identity: DDPM."""
    return Separable(torch.eye(resolution, dtype=torch.float64))


class Transition:
    """The step between a state s and a noisier one t: x_t = M x_s + noise with M = c R, c = a_t / a_s.

    `signal_*` and `sigma_*` are a and sigma of x = a R_{0:.} x_0 + sigma eps. With signal 1 and sigma 0 s is the clean
    image: the reverse step returns the estimate of it.

    eta: how much of the noise is drawn anew in the space that R keeps. 1 is the posterior q(x_s | x_t, x_0) (Theorems 2
    and 3). 0 carries the noise of x_t over as DDIM does, and draws only the detail that x_t lacks. Every eta leaves x_s
    with the mean a_s R_{0:s} x_0 and the covariance sigma_s^2 I.

    variance: of the noise that a step draws. 'small' is the posterior's. 'large' is beta_t = 1 - c^2, DDPM's other
    choice, optimal for x_0 ~ N(0, I) (arXiv 2006.11239, section 3.2); it needs an eta of 1. The step to the clean image
    draws no noise with either.

    Raises ValueError for an operator that amplifies the noise of s beyond that of t, and for a large variance of a step
    that changes the resolution.
    """

    def __init__(
        self,
        operator: Separable,
        signal_s: float,
        sigma_s: float,
        signal_t: float,
        sigma_t: float,
        eta: float = 1.0,
        variance: Variance = "small",
    ):
        self.operator = operator
        self.signal_s, self.sigma_s, self.sigma_t = signal_s, sigma_s, sigma_t
        self.scale = signal_t / signal_s  # c
        needed = (self.scale * sigma_s) ** 2 * operator.largest_eigenvalue
        if sigma_t**2 < needed:
            raise ValueError(
                f"the operator from resolution {operator.before} to {operator.after} is infeasible: it leaves noise of "
                f"variance {needed:.4g} where the next state has {sigma_t**2:.4g}; allowed: a largest eigenvalue of "
                f"R R^T, now {operator.largest_eigenvalue:.4g}, of at most {(sigma_t / self.scale / sigma_s) ** 2:.4g}"
            )
        S = torch.ones(1, dtype=torch.float64) if operator.is_identity else operator.svd[1]
        self.singular = self.scale * torch.outer(S, S)  # of M, in the basis of U and V
        # The share of the noise of s that comes from x_t. For eta = 1 the gain is rho S, rho = sigma_s^2 / sigma_t^2,
        # and what is drawn anew sigma_s sqrt(1 - rho S^2).
        share = (1 - eta) + eta * sigma_s / sigma_t * self.singular
        self.gain = share * sigma_s / sigma_t  # g
        self.fresh = sigma_s * ((1 - share) * (1 + share)).clamp(min=0).sqrt()  # sqrt(sigma_s^2 - g^2 sigma_t^2)
        if variance == "large" and not operator.is_identity:
            raise ValueError(
                f"the variance beta_t of a step from resolution {operator.before} to {operator.after}; allowed: small"
            )
        if variance == "large" and sigma_s:
            self.fresh = ((1 - self.singular) * (1 + self.singular)).sqrt()  # sqrt(beta_t)
        if operator.is_identity:  # every table is one number then
            gain, self.fresh_scalar = float(self.gain[0, 0]), float(self.fresh[0, 0])
            self.clean_scalar, self.state_scalar = signal_s * (1 - gain * self.scale), gain

    @property
    def needs_noise(self) -> bool:
        """Whether the reverse step draws noise at all."""
        return not (self.operator.is_identity and self.fresh_scalar == 0)

    def apply(self, x: Tensor) -> Tensor:
        """M x."""
        return self.scale * self.operator.apply(x)

    def mean(self, x: Tensor, clean: Tensor) -> Tensor:
        """mu_s + V (g o U^T (x_t - M mu_s) U) V^T with mu_s = a_s clean; for eta = 1 mu_s + rho M^T (x_t - M mu_s).

        x (N, C, h, h) is the state t, clean (N, C, H, H) the clean image at the resolution of s.
        """
        if self.operator.is_identity:
            return torch.add(clean * self.clean_scalar, x, alpha=self.state_scalar)
        _, U, V = self.operator.like(x)
        mean = self.signal_s * clean
        kept = self.gain.to(x) * sandwich(U.mT, x - self.apply(mean), U.mT)
        return mean + sandwich(V, kept, V)

    def root(self, noise: Tensor) -> Tensor:
        """Sigma^(1/2) z, exactly: sigma_s z in the space that M forgets, `fresh` times z in the one it keeps.

        noise z (N, C, H, H) is white and has the larger resolution, that of s. The root is symmetric.
        """
        if self.operator.is_identity:
            return noise * self.fresh_scalar
        _, _, V = self.operator.like(noise)
        kept = (self.fresh - self.sigma_s).to(noise) * sandwich(V.mT, noise, V.mT)
        return self.sigma_s * noise + sandwich(V, kept, V)

    def reverse(self, x: Tensor, clean: Tensor, noise: Tensor | None) -> Tensor:
        """x_s from x_t, the clean image and white noise, both at the resolution of s (None where none is needed)."""
        mean = self.mean(x, clean)
        return mean if noise is None else mean.add_(self.root(noise))
