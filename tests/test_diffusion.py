"""The sampler and the exact density against a Gaussian law whose score, flow and density have closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from openmm_sgm.diffusion import (
    SIGMA_MAX,
    SIGMA_MIN,
    ScoreModel,
    denoise_target,
    encode_density,
    karras_grid,
    sample_with_density,
    training_loss,
)
from openmm_sgm.networks import Conditioning, NetworkOptions, ScoreNetwork
from openmm_sgm.representation import ROTOR_SCALE

DIMENSION = 4
LABELS = torch.zeros(1, 1)


class GaussianScore(nn.Module):
    """Stands in for the network: F is such that the model's score is exactly that of N(mean, covariance) under noise.

    `trace_error` is added to the exact trace, to see that a wrong divergence is noticed.
    """

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor, trace_error: float = 0.0) -> None:
        super().__init__()
        self.mean, self.covariance, self.trace_error = mean, covariance, trace_error
        self.n_linear, self.n_rotors = len(mean), 0

    def conditioning(self, log_sigma: torch.Tensor, label_features: torch.Tensor) -> Conditioning:
        return Conditioning(*[log_sigma.expand(len(label_features))[:, None]] * 6)

    def trace_operators(self) -> None:
        return None

    def _matrix(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """F = scale (score + z/(1+σ²)) = A z + b in terms of the unscaled z."""
        precision = torch.linalg.inv(self.covariance + sigma**2 * torch.eye(self.n_linear))
        scale = sigma.clamp(min=1.0) * torch.sqrt(1 + sigma**2)
        return scale * (torch.eye(self.n_linear) / (1 + sigma**2) - precision), scale * (precision @ self.mean)

    def forward(self, linear: torch.Tensor, rotors: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        sigma = torch.exp(conditioning[0][0, 0])
        matrix, offset = self._matrix(sigma)
        return (linear * torch.sqrt(1 + sigma**2)) @ matrix.T + offset

    def forward_and_trace(self, linear, rotors, conditioning, operators):  # type: ignore[no-untyped-def]
        sigma = torch.exp(conditioning[0][0, 0])
        matrix, _ = self._matrix(sigma)
        trace = torch.trace(matrix) * torch.sqrt(1 + sigma**2) + self.trace_error
        return self.forward(linear, rotors, conditioning), trace.expand(len(linear)), torch.zeros(len(linear))


def gaussian(trace_error: float = 0.0) -> ScoreModel:
    rng = np.random.default_rng(7)
    root = rng.standard_normal((DIMENSION, DIMENSION)) * 0.6
    covariance = torch.as_tensor(root @ root.T + 0.3 * np.eye(DIMENSION)).float()
    mean = torch.tensor([1.0, -0.5, 0.2, 2.0])
    return ScoreModel(GaussianScore(mean, covariance, trace_error))  # type: ignore[arg-type]


def flow(model: ScoreModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and b with which the probability flow takes the prior at σ_max to z = A y + b at σ_min; in double.

    Every eigenvector of the covariance shrinks by √((λ + σ_min²)/(λ + σ_max²)) about the mean.
    """
    network: GaussianScore = model.network  # type: ignore[assignment]
    values, vectors = torch.linalg.eigh(network.covariance.double())
    shrink = torch.sqrt((values + SIGMA_MIN**2) / (values + SIGMA_MAX**2))
    matrix = (vectors * shrink) @ vectors.T
    mean = network.mean.double()
    return matrix, mean - matrix @ mean


def exact_log_density(model: ScoreModel, z: torch.Tensor) -> torch.Tensor:
    """Log density of A y + b with y ~ N(0, 1 + σ_max²)."""
    matrix, offset = flow(model)
    y = torch.linalg.solve(matrix, (z.double() - offset).T).T
    variance = 1 + SIGMA_MAX**2
    prior = -0.5 * (y**2).sum(1) / variance - 0.5 * DIMENSION * math.log(2 * math.pi * variance)
    return prior - torch.linalg.slogdet(matrix)[1]


def zeros(n: int) -> torch.Tensor:
    """Return n times the one label."""
    return torch.zeros(n, dtype=torch.long)


def test_exact_gaussian_score_reproduces_mean_covariance_and_density() -> None:
    """Broken on purpose: an error of 0.05 in the trace shows in the log density (and nowhere else)."""
    model = gaussian()
    n = 20_000
    z, log_q = sample_with_density(
        model, LABELS, torch.zeros(n, dtype=torch.long), 24, torch.Generator().manual_seed(1)
    )
    matrix, offset = flow(model)
    covariance = (1 + SIGMA_MAX**2) * matrix @ matrix.T
    error = torch.sqrt(torch.diagonal(covariance) / n)
    assert ((z.double().mean(0) - offset).abs() < 4 * error).all()
    sample = torch.cov(z.double().T)
    spread = torch.sqrt((covariance**2 + torch.outer(torch.diagonal(covariance), torch.diagonal(covariance))) / n)
    assert ((sample - covariance).abs() < 4 * spread).all()
    np.testing.assert_allclose(log_q, exact_log_density(model, z), atol=2e-3)
    # the flow's law is the Gaussian itself, up to the noise left at σ_min and to the prior's finite width
    network: GaussianScore = model.network  # type: ignore[assignment]
    assert torch.allclose(covariance.float(), network.covariance, atol=0.02)
    assert torch.allclose(offset.float(), network.mean, atol=0.2)

    broken = gaussian(trace_error=0.05)
    _, wrong = sample_with_density(broken, LABELS, zeros(n), 24, torch.Generator().manual_seed(1))
    assert (wrong - log_q).abs().min() > 0.02


def test_encoding_returns_the_density_that_sampling_found() -> None:
    """Forward and backward integration pass through the same points."""
    torch.manual_seed(2)
    network = ScoreNetwork(6, 2, 5, NetworkOptions(width=32, hidden=48, conditioning=16))
    nn.init.normal_(network.output.weight, std=0.1)
    model = ScoreModel(network.requires_grad_(False))
    features = torch.randn(3, 5)
    label_of = torch.arange(3).repeat(20)
    z, log_q = sample_with_density(model, features, label_of, 30, torch.Generator().manual_seed(3))
    np.testing.assert_allclose(encode_density(model, z, features, label_of, 30), log_q, atol=5e-3)
    other = encode_density(model, z, features.flip(0), label_of, 30)
    assert (other - log_q).abs().max() > 0.1  # the label matters, so the agreement means something


def test_rotors_have_the_same_density_a_turn_further() -> None:
    torch.manual_seed(2)
    network = ScoreNetwork(3, 2, 5, NetworkOptions(width=32, hidden=48, conditioning=16))
    nn.init.normal_(network.output.weight, std=0.2)
    model = ScoreModel(network.requires_grad_(False))
    z = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    turned = z.clone()
    turned[:, 3:] += 2 * math.pi / ROTOR_SCALE
    features, label_of = torch.randn(1, 5), zeros(20)
    densities = [encode_density(model, points, features, label_of, 20) for points in (z, turned)]
    np.testing.assert_allclose(densities[0], densities[1], atol=1e-3)


def test_densities_with_rotors_add_up_to_one() -> None:
    """The mean of p/q over draws is the integral of p, here of unit Gaussians times the uniform law of two rotors.

    And the means of p/q cos φ and p/q sin φ are zero. Broken on purpose: without the rotors' term in the prior's
    density the first is 0.0016; with rotors drawn from half a turn it is 0.93, 6 standard errors off, with normal ones
    1.16.
    """
    torch.manual_seed(2)
    network = ScoreNetwork(2, 2, 5, NetworkOptions(width=32, hidden=48, conditioning=16))
    nn.init.normal_(network.output.weight, std=0.15)
    model, n = ScoreModel(network.requires_grad_(False)), 8000
    z, log_q = sample_with_density(model, torch.randn(1, 5), zeros(n), 16, torch.Generator().manual_seed(6))
    log_p = -0.5 * (z[:, :2].double() ** 2).sum(1) - math.log(2 * math.pi) - 2 * math.log(2 * math.pi / ROTOR_SCALE)
    ratio = torch.exp(log_p - log_q)
    angles = z[:, 2:].double() * ROTOR_SCALE
    for values, exact in ((ratio, 1.0), *((ratio * f, 0.0) for f in (*torch.cos(angles).T, *torch.sin(angles).T))):
        error = values.std() / math.sqrt(n)
        assert error < 0.05
        assert abs(values.mean() - exact) < 4 * error


@pytest.mark.parametrize(("coarse", "fine"), [(8, 16), (12, 24)])
def test_the_integrator_is_of_fourth_order(coarse: int, fine: int) -> None:
    """Doubling the steps divides the error of log q by about 16; a method of order 2 would divide it by 4."""
    model = gaussian()
    z = torch.randn(50, DIMENSION, generator=torch.Generator().manual_seed(5)) * 0.5 + model.network.mean
    exact = exact_log_density(model, z)
    errors = [(encode_density(model, z, LABELS, zeros(50), steps) - exact).abs().mean() for steps in (coarse, fine)]
    assert errors[0] / errors[1] > 8


def test_target_has_no_variance_for_gaussian_coordinates() -> None:
    """With a = v/(v + σ²) the regression target of a Gaussian coordinate is its noised score, whatever the noise.

    Broken on purpose: any other a leaves variance, and so do the forces or the noise alone.
    """
    source = torch.Generator().manual_seed(9)
    variance = torch.tensor([0.5, 2.0, 1.3])
    z = torch.randn(1000, 3, generator=source) * torch.sqrt(variance)
    noise, sigma = torch.randn(1000, 3, generator=source), torch.tensor(0.7)
    gradients = -z / variance
    exact = -(z + sigma * noise) / (variance + sigma**2)
    assert torch.allclose(denoise_target(noise, sigma, gradients, variance), exact, atol=1e-5)
    for wrong in (0.8 * variance, torch.zeros(3), torch.full((3,), 1e9)):
        assert (denoise_target(noise, sigma, gradients, wrong) - exact).abs().max() > 0.1


def test_the_loss_of_the_exact_score_is_zero() -> None:
    model = ScoreModel(UnitGaussian())  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(4)
    z, noise = torch.randn(64, 3, generator=source), torch.randn(64, 3, generator=source)
    sigma = torch.rand(64, 1, generator=source) * 5 + 0.02
    loss = training_loss(model, z, -z, torch.zeros(64, 1), torch.ones(3), sigma, noise)
    assert loss.shape == (64,)
    assert loss.max() < 1e-9
    assert training_loss(model, z, -1.1 * z, torch.zeros(64, 1), torch.ones(3), sigma, noise).mean() > 1e-4


class UnitGaussian(nn.Module):
    """A network that returns zero: the model's baseline is then exact for unit Gaussians."""

    n_linear, n_rotors = 3, 0

    def conditioning(self, log_sigma: torch.Tensor, label_features: torch.Tensor) -> None:
        return None

    def forward(self, linear: torch.Tensor, rotors: torch.Tensor, conditioning: None) -> torch.Tensor:
        return torch.zeros_like(linear)


def test_karras_grid_runs_from_high_to_low() -> None:
    grid = karras_grid(10)
    assert len(grid) == 11
    assert grid[0].item() == pytest.approx(SIGMA_MAX)
    assert grid[-1].item() == pytest.approx(SIGMA_MIN)
    roots = grid ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots.numpy()), float(roots[1] - roots[0]), rtol=1e-9)
