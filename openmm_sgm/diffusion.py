"""Noise levels, preconditioning, training targets, the sampler and the exact density: one function an algorithm.

Noise is added to coordinates, z_σ = z + σ ε; rotors are angles on a circle in units of `ROTOR_SCALE`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from .networks import Conditioning, ScoreNetwork, TraceOperators
from .representation import ROTOR_SCALE

__all__ = [
    "SIGMA_MAX",
    "SIGMA_MIN",
    "ScoreModel",
    "denoise_target",
    "encode_density",
    "karras_grid",
    "sample_with_density",
    "training_loss",
]

SIGMA_MIN, SIGMA_MAX = 0.02, 12.0
RHO = 7.0


def karras_grid(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> torch.Tensor:
    """Return `steps` + 1 noise levels from high to low (Karras et al. 2022, arXiv 2206.00364, equation 5, ρ = 7)."""
    i = torch.arange(steps + 1, dtype=torch.float64) / steps
    return (sigma_max ** (1 / RHO) + i * (sigma_min ** (1 / RHO) - sigma_max ** (1 / RHO))) ** RHO


@dataclass(frozen=True)
class ScoreModel:
    """The parameterisation: s(z, σ, c) = −z/(1+σ²) + F / (max(σ,1) √(1+σ²)), without the first term for rotors."""

    network: ScoreNetwork

    def inputs(self, z: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the network sees: linear coordinates / √(1+σ²), and rotor angles in rad."""
        n = self.network.n_linear
        return z[:, :n] / torch.sqrt(1 + sigma**2), z[:, n:] * ROTOR_SCALE

    def baseline(self, z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the score of unit Gaussians (and of uniform rotors) under noise; the model without its network."""
        n = self.network.n_linear
        return torch.cat([-z[:, :n] / (1 + sigma**2), torch.zeros_like(z[:, n:])], dim=1)

    def output_scale(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return what F is multiplied with."""
        return 1 / (sigma.clamp(min=1.0) * torch.sqrt(1 + sigma**2))

    def score(self, z: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the score, shape of z; sigma a scalar tensor or (n, 1)."""
        f = self.network(*self.inputs(z, sigma), conditioning)
        return self.baseline(z, sigma) + self.output_scale(sigma) * f

    def score_and_divergence(
        self, z: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, operators: TraceOperators
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the score and its exact divergence, (n,), at one noise level for all rows."""
        f, trace, rotor_trace = self.network.forward_and_trace(*self.inputs(z, sigma), conditioning, operators)
        scale = self.output_scale(sigma)
        divergence = -self.network.n_linear / (1 + sigma**2)
        divergence = divergence + scale * (trace / torch.sqrt(1 + sigma**2) + rotor_trace * ROTOR_SCALE)
        return self.baseline(z, sigma) + scale * f, divergence


def denoise_target(
    noise: torch.Tensor, sigma: torch.Tensor, gradients: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """Return a·g + (1−a)(−ε/σ), a = v/(v+σ²): denoising and target score matching in one.

    Vincent 2011; De Bortoli et al. 2024, arXiv 2402.08667. `variance` v = 1/E[g²] per coordinate, shape (d,).
    """
    a = variance / (variance + sigma**2)
    return a * gradients + (1 - a) * (-noise / sigma)


def training_loss(
    model: ScoreModel,
    z: torch.Tensor,
    gradients: torch.Tensor,
    label_features: torch.Tensor,
    variance: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Return the mean squared error of the network's output, shape (n,); sigma (n, 1), noise like z."""
    noised = z + sigma * noise
    target = denoise_target(noise, sigma, gradients, variance)
    wanted = (target - model.baseline(noised, sigma)) / model.output_scale(sigma)
    conditioning = model.network.conditioning(torch.log(sigma[:, 0]), label_features)
    error = model.network(*model.inputs(noised, sigma), conditioning) - wanted
    return (error**2).mean(dim=1)


def log_prior(model: ScoreModel, z: torch.Tensor) -> torch.Tensor:
    """Return the log density at the highest noise level: a Gaussian, and the uniform law for rotors; shape (n,)."""
    n, variance = model.network.n_linear, 1 + SIGMA_MAX**2
    gaussian = -0.5 * (z[:, :n].double() ** 2).sum(1) / variance - 0.5 * n * math.log(2 * math.pi * variance)
    return gaussian - model.network.n_rotors * math.log(2 * math.pi / ROTOR_SCALE)


def draw_prior(model: ScoreModel, n: int, generator: torch.Generator) -> torch.Tensor:
    """Return `n` draws from the prior, float32, shape (n, n_linear + n_rotors)."""
    linear = torch.randn(n, model.network.n_linear, generator=generator) * math.sqrt(1 + SIGMA_MAX**2)
    rotors = torch.rand(n, model.network.n_rotors, generator=generator) * (2 * math.pi / ROTOR_SCALE)
    return torch.cat([linear, rotors], dim=1)


@torch.no_grad()
def integrate(
    model: ScoreModel,
    z: torch.Tensor,
    label_features: torch.Tensor,
    label_of: torch.Tensor,
    sigmas: torch.Tensor,
    with_density: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integrate the probability-flow ODE dz/dt = −σ² s, t = log σ, through `sigmas`; return z and the change of log q.

    Song et al. 2021 (arXiv 2011.13456), equations 13 and 39, by the classical Runge–Kutta method of order 4 in log σ.

    Parameters
    ----------
    z : float32, shape (n, d)
    label_features : float32, shape (n_labels, n_features); label_of : int64, shape (n,), row of each sample's label
    sigmas : noise levels, shape (steps + 1,), from high to low to generate, from low to high to encode
    """
    operators = model.network.trace_operators()
    change = torch.zeros(len(z), dtype=torch.float64)

    def condition(t: torch.Tensor) -> Conditioning:
        rows = model.network.conditioning(t.expand(len(label_features)), label_features)
        return Conditioning(*(part[label_of] for part in rows))

    def velocity(z: torch.Tensor, sigma: torch.Tensor, c: Conditioning) -> tuple[torch.Tensor, torch.Tensor | float]:
        if not with_density:
            return -(sigma**2) * model.score(z, sigma, c), 0.0
        score, divergence = model.score_and_divergence(z, sigma, c, operators)
        return -(sigma**2) * score, sigma**2 * divergence

    times = torch.log(sigmas).to(z.dtype)
    start = condition(times[0])
    for t0, t1 in itertools.pairwise(times):
        h, middle = t1 - t0, (t0 + t1) / 2
        centre, end = condition(middle), condition(t1)
        s0, sm, s1 = torch.exp(t0), torch.exp(middle), torch.exp(t1)
        k1, q1 = velocity(z, s0, start)
        k2, q2 = velocity(z + h / 2 * k1, sm, centre)
        k3, q3 = velocity(z + h / 2 * k2, sm, centre)
        k4, q4 = velocity(z + h * k3, s1, end)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if with_density:
            change += (h / 6 * (q1 + 2 * q2 + 2 * q3 + q4)).double()
        start = end
    return z, change


def sample_with_density(
    model: ScoreModel,
    label_features: torch.Tensor,
    label_of: torch.Tensor,
    steps: int,
    generator: torch.Generator,
    with_density: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw z, float32 (n, d), with log q(z|c), float64 (n,), one sample for each entry of `label_of`."""
    z = draw_prior(model, len(label_of), generator)
    log_q = log_prior(model, z)
    z, change = integrate(model, z, label_features, label_of, karras_grid(steps), with_density)
    return z, log_q + change


def encode_density(
    model: ScoreModel, z: torch.Tensor, label_features: torch.Tensor, label_of: torch.Tensor, steps: int
) -> torch.Tensor:
    """Return log q(z|c), float64 (n,), of given coordinates by the same ODE run upwards."""
    end, change = integrate(model, z, label_features, label_of, karras_grid(steps).flip(0))
    return log_prior(model, end) - change
