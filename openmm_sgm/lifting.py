"""Lift and restrict: from CV values to configurations and back, by the generator or by one of its baselines.

Lifting and restriction are the two maps of equation-free multiscale methods (Kevrekidis et al., Commun. Math. Sci. 1,
715, 2003). What `lift` returns are seeds: draws of q(x|c), not of π_c, unless they are reweighted or tested.
"""

from __future__ import annotations

import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .cvs import strip_values
from .diffusion import SIGMA_MAX, karras_grid
from .generator import Generator
from .representation import ROTOR_SCALE
from .system import MolecularSystem
from .units import InputError
from .windows import WindowGrid

__all__ = [
    "ExtrapolationWarning",
    "KernelDensityLifting",
    "Lifted",
    "Lifting",
    "MonteCarloScoreLifting",
    "NearestLifting",
    "ScoreLifting",
]

LEAST_EFFECTIVE = 5.0
"""Frames, each counted by exp(−bias), that a label needs near it."""
MOST_NEAR = 1000
"""Configurations that a kernel density or a Monte Carlo score is made of."""
FLOW_STEPS = 60


class ExtrapolationWarning(UserWarning):
    """A configuration was asked for at CV values near which there is hardly any data."""


@dataclass(frozen=True)
class Lifted:
    """Configurations made for one label.

    Attributes
    ----------
    positions : float64, shape (n, n_atoms, 3), nm
    log_density : float64, shape (n,), log q(x|c) in Cartesian measure; NaN where the lifting has no density
    label : float64, shape (n_cvs,); effective : frames near it, each counted by exp(−bias)
    """

    positions: np.ndarray
    log_density: np.ndarray
    label: np.ndarray
    effective: float

    @property
    def extrapolated(self) -> bool:
        """Whether there is hardly any data near the label."""
        return self.effective < LEAST_EFFECTIVE


class Lifting(ABC):
    """What all ways to lift have in common: labels by name, restriction, and the check against the data.

    Attributes
    ----------
    molecule, grid : the system, and the windows whose umbrella goes with a label
    cvs : float64, shape (n, n_cvs); of the configurations that the lifting was made from
    """

    def __init__(self, molecule: MolecularSystem, grid: WindowGrid, cvs: np.ndarray) -> None:
        self.molecule, self.grid, self.cvs = molecule, grid, np.asarray(cvs, dtype=float)

    def lift(self, values: Mapping[str, Any], n: int, seed: int = 0) -> Lifted:
        """Return `n` configurations at CV values, drawn from the umbrella ensemble there as the lifting knows it.

        Parameters
        ----------
        values : a value for every CV by name, Quantity or in the CV's unit

        Raises
        ------
        InputError
            for missing or unknown CVs, or n below 1.

        Warns
        -----
        ExtrapolationWarning
            where there is hardly any data near the values; the configurations are returned all the same.
        """
        if n < 1:
            raise InputError(f"the number of configurations must be 1 or more, got {n}")
        label = self.label(values)
        effective = self.effective(label)
        if effective < LEAST_EFFECTIVE:
            warnings.warn(
                f"there is hardly any data near {dict(values)} ({effective:.1f} frames): what is made there is "
                "extrapolated",
                ExtrapolationWarning,
                stacklevel=2,
            )
        positions, log_density = self._draw(label, n, np.random.default_rng(seed))
        return Lifted(positions, log_density, label, effective)

    def restrict(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the CVs by name, each of shape (n,), of configurations (n, n_atoms, 3) in nm."""
        return {
            cv.name: column
            for cv, column in zip(self.molecule.cvs, self.molecule.evaluate_cvs(positions).T, strict=True)
        }

    def label(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return CV values given by name as a label, float64, shape (n_cvs,), or raise `InputError`."""
        names = [cv.name for cv in self.molecule.cvs]
        if not isinstance(values, Mapping):
            raise InputError(f"give the values by name, such as {{{names[0]!r}: 1.0}}, got {type(values).__name__}")
        if set(values) != set(names):
            raise InputError(f"give a value for each of {', '.join(names)}, got {', '.join(values) or 'none'}")
        numbers = strip_values(self.molecule.cvs, [values[name] for name in names])
        return np.array([float(cv.wrap(np.array(x))) for cv, x in zip(self.molecule.cvs, numbers, strict=True)])

    def effective(self, label: np.ndarray) -> float:
        """Return Σ exp(−bias) over the data: about how many configurations lie within the label's umbrella.

        0 outside the range of a CV, where a generator has no windows, whatever the data.
        """
        for cv, value in zip(self.molecule.cvs, label, strict=True):
            if cv.period is None and not cv.minimum <= value <= cv.maximum:
                return 0.0
        return float(np.exp(-self.grid.reduced_bias(self.cvs, label)).sum())

    @abstractmethod
    def _draw(self, label: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return positions (n, n_atoms, 3) and log densities (n,)."""


class ScoreLifting(Lifting):
    """Lifting by the score model; see `Generator`. Draws outside its coordinates are drawn again."""

    def __init__(self, molecule: MolecularSystem, grid: WindowGrid, cvs: np.ndarray, generator: Generator) -> None:
        super().__init__(molecule, grid, cvs)
        self.generator = generator

    def _draw(self, label: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        parts, found = [], 0
        for _ in range(20):
            counts = np.array([n - found + (n - found) // 16])
            drawn = self.generator.sample(self.grid.labels(label[None]), counts, int(rng.integers(2**63)))
            parts.append((drawn.positions[drawn.valid], drawn.log_density[drawn.valid]))
            found += int(drawn.valid.sum())
            if found >= n:
                positions, log_density = (np.concatenate(columns)[:n] for columns in zip(*parts, strict=True))
                return positions, log_density
        raise InputError("hardly any draw at these values is a configuration: the generator knows nothing of them")


class NearestLifting(Lifting):
    """The configurations that there are, by their weight in the label's umbrella: nothing new, nothing between them.

    Parameters
    ----------
    positions : float64, shape (n, n_atoms, 3), nm; of an unbiased ensemble with weights exp(log_weights)
    """

    def __init__(
        self, molecule: MolecularSystem, grid: WindowGrid, positions: np.ndarray, log_weights: np.ndarray
    ) -> None:
        super().__init__(molecule, grid, molecule.evaluate_cvs(positions))
        self.positions, self.log_weights = positions, log_weights

    def effective(self, label: np.ndarray) -> float:
        """Return Σ exp(−bias) over configurations of weight above 0, or their effective number (Kish) if smaller."""
        log_p = self.log_weights - self.grid.reduced_bias(self.cvs, label)
        p = np.exp(log_p - np.max(log_p)) if np.isfinite(log_p).any() else np.zeros(1)
        near = np.exp(-self.grid.reduced_bias(self.cvs, label))[np.isfinite(self.log_weights)].sum()
        kish = p.sum() ** 2 / max(float((p**2).sum()), 1e-300)
        return min(super().effective(label), float(near), float(kish))

    def _rows(self, label: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        log_p = self.log_weights - self.grid.reduced_bias(self.cvs, label)
        p = np.exp(log_p - log_p.max())
        return rng.choice(len(p), size=n, p=p / p.sum())

    def _draw(self, label: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.positions[self._rows(label, n, rng)], np.full(n, np.nan)


class KernelDensityLifting(NearestLifting):
    """The same, smeared by Gaussians of Silverman's width (1986, equation 4.15) in the generator's coordinates.

    In as many dimensions as a molecule has a kernel density is a baseline, no rival: it knows of no bond that two
    coordinates share.

    Parameters
    ----------
    generator : whose representation is used, not its network
    """

    def __init__(
        self,
        molecule: MolecularSystem,
        grid: WindowGrid,
        positions: np.ndarray,
        log_weights: np.ndarray,
        generator: Generator,
    ) -> None:
        super().__init__(molecule, grid, positions, log_weights)
        self.representation = generator.representation

    def _draw(self, label: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        data, p, width = self._data(label)
        z = data[rng.choice(len(p), size=n, p=p)]
        return self._decoded(z + width * torch.as_tensor(rng.standard_normal(z.shape)), label)

    def _data(self, label: np.ndarray) -> tuple[torch.Tensor, np.ndarray, float]:
        """Return the data that counts at a label in the coordinates z, its weights, and the kernel's width."""
        log_p = self.log_weights - self.grid.reduced_bias(self.cvs, label)
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        rows = np.flatnonzero(p)
        if len(rows) > MOST_NEAR:  # systematic resampling: as many of equal weight
            rows = np.searchsorted(np.cumsum(p), (np.arange(MOST_NEAR) + 0.5) / MOST_NEAR).clip(max=len(p) - 1)
            p = np.bincount(rows, minlength=len(p)) / MOST_NEAR
            rows = np.flatnonzero(p)
        p = p[rows]
        z, _ = self.representation.encode(torch.as_tensor(self.positions[rows]), self._labels(label, len(rows)))
        d = z.shape[1]
        return z, p, float((4 / (d + 2) * np.square(p).sum()) ** (1 / (d + 4)))

    def _labels(self, label: np.ndarray, n: int) -> torch.Tensor:
        return torch.as_tensor(np.repeat(self.grid.labels(label[None]), n, axis=0))

    def _decoded(self, z: torch.Tensor, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and log density of draws from the kernel density."""
        positions, log_volume, valid = self.representation.decode(z, self._labels(label, len(z)))
        data, p, width = self._data(label)
        log_kernels = torch.log(torch.as_tensor(p)) - 0.5 * self._square_distances(z, data) / width**2
        log_q = torch.logsumexp(log_kernels, dim=1) - z.shape[1] * math.log(width * math.sqrt(2 * math.pi))
        log_q = torch.where(valid, log_q - log_volume, torch.nan)
        return positions.numpy(), log_q.numpy()

    def _square_distances(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (self._offsets(a, b) ** 2).sum(dim=-1)

    def _offsets(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return a − b for all pairs, shape (n, m, d), rotors by the nearest way round."""
        offsets = a[:, None] - b[None]
        rotors = self.representation.n_rotors
        if rotors:
            turn = 2 * math.pi / ROTOR_SCALE
            offsets[..., -rotors:] -= turn * torch.round(offsets[..., -rotors:] / turn)
        return offsets


class MonteCarloScoreLifting(KernelDensityLifting):
    """Lifting without training: the score of the smeared data by Monte Carlo, and the probability-flow ODE.

    At noise σ the data's score is Σ_j p_j(z) (z_j − z)/σ², p_j ∝ exp(−bias_c(ξ_j)) N(z; z_j, σ²) (Liu et al., arXiv
    2410.03108, with the umbrella in place of their kernel in the label). Followed from noise down to the kernel width,
    it ends in draws of `KernelDensityLifting`'s law: the flow is what is added, and the density is the same.
    """

    def _draw(self, label: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        data, p, width = self._data(label)
        log_p = torch.log(torch.as_tensor(p))
        sigmas = karras_grid(FLOW_STEPS, width, SIGMA_MAX)

        def slope(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:  # dz/dσ = −σ ∇ log p
            offsets = self._offsets(z, data)
            share = torch.softmax(log_p - 0.5 * (offsets**2).sum(-1) / sigma**2, dim=1)
            return (share[..., None] * offsets).sum(dim=1) / sigma

        z = SIGMA_MAX * torch.as_tensor(rng.standard_normal((n, data.shape[1])))
        for high, low in itertools.pairwise(sigmas):
            first = slope(z, high)
            second = slope(z + (low - high) * first, low)
            z = z + 0.5 * (low - high) * (first + second)
        return self._decoded(z, label)
