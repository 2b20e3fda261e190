"""Exact generator moves in an unbiased simulation: the label becomes an auxiliary variable, drawn and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
import torch
from openmm import unit

from .generator import Generator, Samples
from .importance import effective_sample_size
from .inject import impossible, log_importance
from .system import MolecularSystem
from .units import thermal_energy
from .velocities import draw_velocities
from .windows import WindowGrid

__all__ = ["LabelDistribution", "MoveStatistics", "UnbiasedMoves"]

STOCK = 64


@dataclass(frozen=True)
class LabelDistribution:
    """A density over labels, constant in each cell of a grid, from which proposals are drawn.

    Attributes
    ----------
    edges : per CV, increasing cell edges
    probabilities : float64, of the cells' shape, sum 1; zero where labels are never proposed
    """

    edges: tuple[np.ndarray, ...]
    probabilities: np.ndarray

    @staticmethod
    def from_surface(
        free_energy: np.ndarray, edges: Sequence[np.ndarray], grid: WindowGrid, windows: np.ndarray
    ) -> LabelDistribution:
        """Return the labels' law when the configuration is unbiased: p(ξ) spread by the umbrella's own Gaussian.

        free_energy : kJ/mol, NaN where unsampled; labels whose nearest window is not among `windows` are left out.
        """
        centers = [0.5 * (edge[1:] + edge[:-1]) for edge in edges]
        points = np.stack([axis.ravel() for axis in np.meshgrid(*centers, indexing="ij")], axis=1)
        kt = thermal_energy(grid.temperature_k)
        mass = np.nan_to_num(np.exp(-free_energy.ravel() / kt))
        occupied = np.flatnonzero(mass)
        usable = np.isin([grid.nearest(point) for point in points], windows)
        density = np.zeros(len(points))
        for k in np.flatnonzero(usable):
            density[k] = (mass[occupied] * np.exp(-grid.reduced_bias(points[occupied], points[k]))).sum()
        return LabelDistribution(tuple(edges), (density / density.sum()).reshape(free_energy.shape))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return labels, float64, shape (n, n_cvs)."""
        flat = rng.choice(self.probabilities.size, size=n, p=self.probabilities.ravel())
        cells = np.unravel_index(flat, self.probabilities.shape)
        columns = []
        for edge, cell in zip(self.edges, cells, strict=True):
            columns.append(edge[cell] + rng.random(n) * (edge[cell + 1] - edge[cell]))
        return np.stack(columns, axis=1)

    def log_density(self, labels: np.ndarray) -> np.ndarray:
        """Return the log density, shape (n,), at labels (n, n_cvs); −inf where none is proposed."""
        inside = np.ones(len(labels), dtype=bool)
        cells, volume = [], np.ones(len(labels))
        for edge, values in zip(self.edges, labels.T, strict=True):
            cell = np.searchsorted(edge, values, side="right") - 1
            inside &= (cell >= 0) & (cell < len(edge) - 1)
            cell = np.clip(cell, 0, len(edge) - 2)
            cells.append(cell)
            volume *= edge[cell + 1] - edge[cell]
        density = np.where(inside, self.probabilities[tuple(cells)], 0.0) / volume
        with np.errstate(divide="ignore"):
            return np.log(density)


@dataclass
class MoveStatistics:
    """How many proposals were made and accepted; each cost one evaluation, each visit one more, each move another."""

    proposed: int = 0
    accepted: int = 0
    force_evaluations: int = 0

    @property
    def acceptance(self) -> float:
        """Accepted over proposed; NaN before any."""
        return self.accepted / self.proposed if self.proposed else float("nan")


class UnbiasedMoves:
    """Metropolis moves that leave exp(−βU)|Z|^½ invariant in a user's own context.

    Given x, the label c is drawn from N(ξ(x), kT/κ) (README, "How it works", 2), which makes (x, c) a draw of
    the joint law π(x) N(c; ξ(x)). A proposal is c' ~ p, x' ~ q(·|c'), accepted with Hastings' ratio on the joint space,
    min(1, [π_c'(x')/(q(x'|c') p(c'))] / [π_c(x)/(q(x|c) p(c))]); then the label is forgotten.
    """

    def __init__(
        self, molecule: MolecularSystem, grid: WindowGrid, generator: Generator, labels: LabelDistribution
    ) -> None:
        self.molecule, self.grid, self.generator, self.labels = molecule, grid, generator, labels
        self.beta = 1 / thermal_energy(molecule.temperature_k)
        self.stereo = molecule.stereo
        self.statistics = MoveStatistics()
        self._stock_labels = np.zeros((0, len(molecule.cvs)))
        self._stock = generator.sample(grid.labels(self._stock_labels), np.zeros(0, dtype=int), 0)
        self._taken = 0

    def visit(self, context: openmm.Context, groups: int, proposals: int, rng: np.random.Generator) -> bool:
        """Offer `proposals` configurations to the context, one after the other; return whether it has moved.

        After a move velocities are drawn anew (see `draw_velocities`); otherwise the context is as before.
        """
        state = context.getState(positions=True, velocities=True)
        start = _nm(state.getPositions(asNumpy=True))
        cvs = self.molecule.evaluate_cvs(start[None])
        width = np.sqrt(1 / (self.beta * self.grid.force_constants))
        label = self.grid.difference(cvs + width * rng.standard_normal(cvs.shape), np.zeros_like(cvs))
        log_q = self.generator.log_density(start[None], self.grid.labels(label))
        energy = np.array([self._energy(context, groups)])
        here = (self._log_weight(start[None], energy, label, log_q) - self.labels.log_density(label))[0]
        if np.isnan(here) or here == np.inf:
            return False  # the label lies where nothing is proposed: the reverse move could not be made

        labels, samples = self._take(proposals, rng)
        positions, log_weights = self._weigh(context, groups, labels, samples, start)
        log_weights -= self.labels.log_density(labels)
        moved_to = -1
        for k, log_u in enumerate(np.log(rng.random(proposals))):
            if log_weights[k] > -np.inf and log_u < log_weights[k] - here:
                moved_to, here = k, log_weights[k]
                self.statistics.accepted += 1
        self.statistics.proposed += proposals
        if moved_to >= 0:
            self.place(context, groups, positions[moved_to], rng)
        else:
            context.setPositions(state.getPositions())
            context.setVelocities(state.getVelocities())
        return moved_to >= 0

    def place(self, context: openmm.Context, groups: int, positions: np.ndarray, rng: np.random.Generator) -> None:
        """Put a configuration (n_atoms, 3), nm, into the context, with velocities of the ensemble."""
        context.setPositions(positions)
        context.computeVirtualSites()
        self.statistics.force_evaluations += draw_velocities(context, self.molecule.temperature_k, rng, groups)

    def draw_at(
        self, context: openmm.Context, groups: int, label: np.ndarray, draws: int, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, float]:
        """Return a configuration drawn by importance weight from generated ones at a label (n_cvs,), or None where
        fewer than two are effective, and their effective number; the context is left as it was."""
        state = context.getState(positions=True, velocities=True)
        labels = np.repeat(label[None], draws, axis=0)
        samples = self.generator.sample(self.grid.labels(labels), np.ones(draws, dtype=int), int(rng.integers(2**63)))
        positions, log_weights = self._weigh(context, groups, labels, samples, _nm(state.getPositions(asNumpy=True)))
        context.setPositions(state.getPositions())
        context.setVelocities(state.getVelocities())
        effective = effective_sample_size(log_weights) * draws
        if effective < 2:
            return None, effective
        p = np.exp(log_weights - log_weights.max())
        return positions[rng.choice(draws, p=p / p.sum())], effective

    def _take(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, Samples]:
        """Return `n` fresh proposals, labels and configurations, from a stock that is drawn `STOCK` at a time.

        Proposals do not depend on the state of the chain, so they may be drawn ahead; a batch costs little more than
        one. Their energies are evaluated when they are offered, in the context as it is then.
        """
        if n > len(self._stock_labels) - self._taken:
            self._stock_labels = self.labels.draw(max(n, STOCK), rng)
            counts = np.ones(len(self._stock_labels), dtype=int)
            self._stock = self.generator.sample(self.grid.labels(self._stock_labels), counts, int(rng.integers(2**63)))
            self._taken = 0
        rows = slice(self._taken, self._taken + n)
        self._taken += n
        return self._stock_labels[rows], Samples(*(column[rows] for column in self._stock))

    def _weigh(
        self, context: openmm.Context, groups: int, labels: np.ndarray, samples: Samples, placeholder: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one configuration for each label, (n, n_atoms, 3) nm, and log importance weights (n,)."""
        positions = np.where(samples.valid[:, None, None], samples.positions, placeholder)
        energies = np.empty(len(labels))
        for k, configuration in enumerate(positions):
            context.setPositions(configuration)
            context.computeVirtualSites()
            energies[k] = self._energy(context, groups)
        log_weights = self._log_weight(positions, energies, labels, samples.log_density)
        log_weights[impossible(samples._replace(positions=positions), energies, self.stereo) != ""] = -np.inf
        return positions, log_weights

    def _energy(self, context: openmm.Context, groups: int) -> float:
        self.statistics.force_evaluations += 1
        energy: Any = context.getState(energy=True, groups=groups).getPotentialEnergy()
        return float(energy.value_in_unit(unit.kilojoule_per_mole))

    def _log_weight(
        self, positions: np.ndarray, energies: np.ndarray, labels: np.ndarray, log_q: np.ndarray
    ) -> np.ndarray:
        bias = self.grid.reduced_bias(self.molecule.evaluate_cvs(positions), labels)
        factor = self.generator.representation.log_constraint_factor(torch.as_tensor(positions)).numpy()
        return log_importance(energies, bias, factor, log_q, self.beta)


def _nm(quantity: Any) -> np.ndarray:
    return np.array(quantity.value_in_unit(unit.nanometer))
