"""An unconditional score model steered by the umbrella potential: guidance, a baseline of the conditional model.

Guidance is to a score model what a bias is to molecular dynamics, but it is not exact. The score of the steered
ensemble at noise σ is s(z) + ∇_z log E[exp(−bias_c) | z]; here the CV of what z may become is taken for a Gaussian,
with mean and variance from Tweedie's formulae (after Boys et al., arXiv 2310.06721). The law that comes out is close
to π_c where that holds, not where z may still become one of several states, and its density is not known.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from .campaign import Campaign
from .cartesian import CartesianRepresentation, fit_cartesian
from .diffusion import SIGMA_MAX, draw_prior, karras_grid
from .executors import one_thread
from .generator import Generator
from .lifting import Lifting
from .options import SamplerOptions
from .representation import Representation, fit_representation
from .simulate import evaluate
from .system import MolecularSystem
from .training import TrainingSet, train
from .units import InputError, thermal_energy
from .windows import WindowGrid
from .zmatrix import build_z_matrix

__all__ = ["GuidedLifting", "train_unconditional"]

GUIDED_STEPS = 60


def train_unconditional(
    molecule: MolecularSystem,
    positions: np.ndarray,
    log_weights: np.ndarray,
    *,
    options: SamplerOptions | None = None,
    seed: int = 0,
) -> Generator:
    """Train a generator of the unbiased ensemble: one whose label says nothing; one force evaluation a configuration.

    Parameters
    ----------
    positions : float64, shape (n, n_atoms, 3), nm, of an unbiased ensemble with weights exp(log_weights), shape (n,)
    """
    options, rng = options or SamplerOptions(), np.random.default_rng(seed)
    campaign = Campaign(molecule, options, np.random.SeedSequence(seed), lambda line: None)
    p = np.exp(log_weights - log_weights.max())
    rows = rng.choice(len(p), size=options.training.rows, p=p / p.sum())
    used, group = np.unique(rows, return_inverse=True)
    _, forces, _ = evaluate(campaign.settings, positions[used])
    if not np.isfinite(forces).all():
        raise InputError("the forces of some configurations are not finite")
    labels = np.repeat(_nowhere(campaign.grid), len(rows), axis=0)
    space, x = campaign.grid.label_space, positions[rows]
    representation: Representation | CartesianRepresentation
    if molecule.tied:
        representation = fit_cartesian(x, labels, space)
    else:
        z_matrix = build_z_matrix(
            molecule.n_atoms, molecule.bonds, molecule.masses, molecule.constraints, [None] * len(molecule.cvs)
        )
        representation = fit_representation(
            x,
            labels,
            np.ones(len(x)),
            z_matrix=z_matrix,
            label_space=space,
            constraints=molecule.constraints,
            masses=molecule.masses,
        )
    c = torch.as_tensor(labels)
    z, gradients = representation.force_targets(
        torch.as_tensor(x), torch.as_tensor(forces[group]), c, campaign.beta, np.zeros(0)
    )
    features = space.features(c)[:, 1:].float().numpy()
    data = TrainingSet(representation, z.float().numpy(), gradients.float().numpy(), features, group)
    with one_thread():
        return train(data, options=options.training, network_options=options.network, seed=seed).generator


def _nowhere(grid: WindowGrid) -> np.ndarray:
    """Return the label, shape (1, n_labels), that every configuration is given."""
    return grid.labels(grid.centers[:1])


class GuidedLifting(Lifting):
    """Lifting by an unconditional generator, from `train_unconditional`, and the umbrella's gradient."""

    def __init__(self, molecule: MolecularSystem, grid: WindowGrid, cvs: np.ndarray, generator: Generator) -> None:
        super().__init__(molecule, grid, cvs)
        self.generator = generator

    def _draw(self, label: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        generator, source = self.generator, torch.Generator().manual_seed(int(rng.integers(2**63)))
        labels = torch.as_tensor(np.repeat(_nowhere(self.grid), n, axis=0))
        z = draw_prior(generator.model, n, source)
        for high, low in itertools.pairwise(karras_grid(GUIDED_STEPS, sigma_max=SIGMA_MAX).float()):
            first = self._slope(z, high, label, labels)
            second = self._slope(z + (low - high) * first, low, label, labels)
            z = z + 0.5 * (low - high) * (first + second)
        positions, _, valid = generator.representation.decode(z.double(), labels)
        kept = positions[valid & torch.isfinite(positions).all(dim=(1, 2))].numpy()
        if not len(kept):
            raise InputError("no draw at these values is a configuration: the generator knows nothing of them")
        return kept[np.arange(n) % len(kept)], np.full(n, np.nan)

    def _slope(self, z: torch.Tensor, sigma: torch.Tensor, label: np.ndarray, labels: torch.Tensor) -> torch.Tensor:
        """Return dz/dσ = −σ [s(z) + ∇_z log p(c|z)]."""
        generator, molecule = self.generator, self.molecule
        z = z.detach().requires_grad_(True)
        features = generator.network_features(labels[:1])
        conditioning = generator.network.conditioning(torch.log(sigma)[None], features)
        score = generator.model.score(z, sigma, conditioning)
        ends = z + sigma**2 * score  # Tweedie's formula
        leaf = ends.detach().double().requires_grad_(True)
        positions, _, _ = generator.representation.decode(leaf, labels)
        x = positions.detach().numpy()
        sound = np.isfinite(x).all(axis=(1, 2))
        x = np.where(sound[:, None, None], x, molecule.positions)
        offsets = self.grid.difference(molecule.evaluate_cvs(x), label)
        gradients = torch.as_tensor(molecule.cv_gradients(x, range(len(molecule.cvs))))
        width = thermal_energy(molecule.temperature_k) / self.grid.force_constants
        guidance = torch.zeros_like(z)
        for k in range(len(molecule.cvs)):
            jacobian = torch.autograd.grad((positions * gradients[:, k]).sum(), leaf, retain_graph=True)[0]
            jacobian = torch.nan_to_num(jacobian).float()
            # both by Tweedie's formulae: ∂⟨ξ⟩/∂z, and Var[ξ|z] = σ² ∂⟨ξ⟩/∂z · ∂ξ/∂x
            slope = torch.autograd.grad(ends, z, grad_outputs=jacobian, retain_graph=True)[0]
            variance = width[k] + sigma**2 * (slope * jacobian).sum(dim=1).clamp(min=0.0)
            guidance -= (torch.as_tensor(offsets[:, k]).float() / variance)[:, None] * slope
        guidance = torch.where(torch.as_tensor(sound)[:, None], torch.nan_to_num(guidance), 0.0)
        return (-sigma * (score + guidance)).detach()
