"""Effective dynamics of the CVs: how fast the reduced equation of drift and diffusion is, with errors from bursts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from openmm import unit

from .cells import CellGrid, spread
from .free_energy import Surface
from .reduced import ReducedEquation
from .units import InputError, strip_units, thermal_energy

__all__ = ["EffectiveDynamics", "LagAgreement", "log_density_on", "surface_of_laws"]

SIGNIFICANCE = 0.1
TOLERANCE = 0.05
MOST_AT_EDGE = 0.05
SURFACE_LIMIT_KJ_MOL = 25.0


@dataclass(frozen=True)
class LagAgreement:
    """How estimates at one lag compare with those at the next.

    Attributes
    ----------
    lag, next_lag : ps
    drift_p_value, diffusion_p_value : that the differences over all cells are noise (χ², errors by bootstrap)
    drift_change, diffusion_change : RMS over cells of the change beyond noise, as a share of the RMS estimate
    drift_noise, diffusion_noise : RMS standard error of the change, as the same share; a change much smaller than
        this in every cell may go unseen
    agree : each p-value is above 0.1, or the change below 5 %
    """

    lag: float
    next_lag: float
    drift_p_value: float
    diffusion_p_value: float
    drift_change: float
    diffusion_change: float
    drift_noise: float
    diffusion_noise: float

    @property
    def agree(self) -> bool:
        drift = self.drift_p_value > SIGNIFICANCE or self.drift_change < TOLERANCE
        return drift and (self.diffusion_p_value > SIGNIFICANCE or self.diffusion_change < TOLERANCE)


@dataclass(frozen=True, eq=False)
class EffectiveDynamics:
    """The reduced equation dξ = b(ξ) dt + √(2D(ξ)) dW (Itô) of one or two CVs, as estimated from bursts.

    >>> bursts = run_bursts(simulation, frames, [phi, psi], steps=4000, interval=50, seed=1)
    >>> grid = CellGrid.of_cvs([phi, psi], bins=18)
    >>> dynamics = estimate_drift_and_diffusion(bursts.values, bursts.time_spacing, grid, seed=1)
    >>> dynamics.has_plateau, dynamics.lag  # look before you believe the rest
    >>> surface = dynamics.surface(300.0)
    >>> time, error = dynamics.mean_first_passage_time(start, target)  # ps

    **When it is a bad model.** The CVs must be slow, and all else must relax within the lag. Then drift and diffusion
    at successive lags agree, up to the lag where the CVs themselves have moved. Where a slow coordinate is missing from
    the CVs, or where the CVs relax in their basins as fast as their velocities are forgotten (a torsion of a small
    molecule at a friction of 1/ps does: both take about a picosecond), no lag is long enough for the one and short
    enough for the other: the motion has memory, there is no plateau, and neither the basins' widths nor the times that
    come out can be trusted. Capped alanine in implicit solvent is such a case; its passage times need a lag that is
    longer than all this, see `propagator.fit_diffusion_on_surface`.

    Attributes
    ----------
    grid : the cells
    lag, first_lag : ps; where the estimates below were taken: between these two lags, or first_lag is 0
    has_plateau : whether estimates at `lag` and the next agree
    drift, drift_error : float64, shape (n_cells, d), CV unit/ps; NaN in cells with fewer than 8 bursts
    diffusion, diffusion_error : float64, shape (n_cells, d, d), CV unit²/ps
    counts : int64, shape (n_cells,); bursts that started in each cell
    lags, drifts, diffusions : the estimates at every lag, shapes (L,), (L, n_cells, d), (L, n_cells, d, d)
    agreements : of each lag with the next, L − 1 of them
    drift_replicas, diffusion_replicas : shapes (B, n_cells, d) and (B, n_cells, d, d); estimates at `lag` from
        resampled bursts, from which every error is taken
    log_density : shape (n_cells,); the stationary law where it was given, see `on_surface`
    """

    grid: CellGrid
    lag: float
    first_lag: float
    has_plateau: bool
    drift: np.ndarray
    drift_error: np.ndarray
    diffusion: np.ndarray
    diffusion_error: np.ndarray
    counts: np.ndarray
    lags: np.ndarray
    drifts: np.ndarray
    diffusions: np.ndarray
    agreements: tuple[LagAgreement, ...]
    drift_replicas: np.ndarray
    diffusion_replicas: np.ndarray
    log_density: np.ndarray | None = None

    @cached_property
    def reduced(self) -> ReducedEquation:
        """The equation of the estimates."""
        return ReducedEquation(self.grid, self.drift, self.diffusion, self.log_density)

    def with_errors(self, function: Callable[[ReducedEquation], Any]) -> tuple[Any, Any]:
        """Return a property of the reduced equation, a number or an array, and its standard error over the replicas.

        A replica that has no such property (it lost a cell, say) is left out; with fewer than half left the error is
        NaN.
        """
        values = []
        for drift, diffusion in zip(self.drift_replicas, self.diffusion_replicas, strict=True):
            try:
                values.append(function(ReducedEquation(self.grid, drift, diffusion, self.log_density)))
            except InputError:
                values.append(np.nan)
        value = function(self.reduced)
        error = spread(np.array([np.broadcast_to(v, np.shape(value)) for v in values]))
        return value, error if np.ndim(value) else float(error)

    def on_surface(self, surface: Surface, temperature: Any) -> EffectiveDynamics:
        """Return the dynamics with a drift that follows from a surface and the diffusion, b = −D∇F/kT + ∇·D.

        How deep is then taken from the surface, which samples weighted towards equilibrium know far better than
        bursts do, and how fast from the diffusion. Errors are those of the diffusion alone.

        Parameters
        ----------
        surface : of the same CVs, its bins the cells or whole parts of them
        temperature : K or a Quantity

        Raises
        ------
        InputError
            where the bins do not fit the cells.
        """
        log_density = log_density_on(surface, self.grid, thermal_energy(float(strip_units(temperature, unit.kelvin))))
        drift = ReducedEquation.on_surface(self.grid, log_density, self.diffusion).drift
        drifts = [ReducedEquation.on_surface(self.grid, log_density, d).drift for d in self.diffusion_replicas]
        return replace(
            self,
            drift=drift,
            drift_error=spread(np.array(drifts)),
            drift_replicas=np.array(drifts),
            log_density=log_density,
        )

    def corrected(self, iterations: int = 5) -> EffectiveDynamics:
        """Return the estimates corrected for the finite lag: those whose equation has the moments that were seen.

        Drift and diffusion are changed by what the moments of the equation, solved over the lag, differ from the
        bursts', again and again (the inverse problem of Honisch & Friedrich 2011, Phys. Rev. E 83, 066701, by fixed
        point). It widens the range of usable lags towards the CVs' relaxation time, at the price of larger errors,
        by exp(kτ) for a relaxation rate k; it is no cure for memory. Cells from which more than 5 % of the bursts get
        to the rim of the known cells stay as they are, and those beside them make up for it. Over the lag the CVs
        must move further than a cell: a chain of cells spreads by more than D where drift matters within one, and that
        is taken out here. (At √(2Dτ) = 0.4 of a cell and up to 1.4 kT from cell to cell, D came out up to 25 % low,
        and beside the rim up to 80 % high, where the estimates at the lag were right.)

        Parameters
        ----------
        iterations : of the estimates and of every replica; a mode of relaxation rate k is left with the share
            (1 − e^{−kτ})^iterations of its error, and more iterations bring noise between neighbouring cells
        """
        first = [self._matched(self.drift, self.diffusion, iterations)]
        pairs = zip(self.drift_replicas, self.diffusion_replicas, strict=True)
        found = first + [self._matched(drift, diffusion, iterations) for drift, diffusion in pairs]
        drifts, diffusions = (np.array(part) for part in zip(*found, strict=True))
        return replace(
            self,
            drift=drifts[0],
            drift_error=spread(drifts[1:]),
            diffusion=diffusions[0],
            diffusion_error=spread(diffusions[1:]),
            drift_replicas=drifts[1:],
            diffusion_replicas=diffusions[1:],
            log_density=None,
        )

    def _matched(self, seen_drift: np.ndarray, seen_diffusion: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return drift and diffusion that look like those seen over the lag."""
        time = self.lag - self.first_lag
        drift, diffusion = seen_drift, seen_diffusion
        for _ in range(count):
            usable = np.linalg.eigvalsh(np.nan_to_num(diffusion)).min(axis=1) > 0
            drift = np.where(usable[:, None], drift, seen_drift)
            diffusion = np.where(usable[:, None, None], diffusion, seen_diffusion)
            equation = ReducedEquation(self.grid, drift, diffusion)
            mean, covariance, at_edge = equation.moments(self.lag)
            if self.first_lag:
                first, first_covariance, _ = equation.moments(self.first_lag)
                mean, covariance = mean - first, covariance - first_covariance
            inner = at_edge < MOST_AT_EDGE
            drift = np.where(inner[:, None], drift + seen_drift - mean / time, seen_drift)
            diffusion = np.where(
                inner[:, None, None], diffusion + seen_diffusion - covariance / (2 * time), seen_diffusion
            )
        return drift, diffusion

    def stationary_density(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the stationary density and its error, shape (n_cells,), per CV unit (or units multiplied)."""
        return self.with_errors(ReducedEquation.stationary_density)

    def surface(self, temperature: Any) -> Surface:
        """Return −kT log of the stationary density, to be compared with the surface of the same CVs.

        Errors are of the difference from the mean over the bins below 25 kJ/mol, as in `Surface`.

        Parameters
        ----------
        temperature : K or a Quantity
        """
        kt = thermal_energy(float(strip_units(temperature, unit.kelvin)))
        laws = [self.reduced.stationary_density()]
        for drift, diffusion in zip(self.drift_replicas, self.diffusion_replicas, strict=True):
            try:
                laws.append(ReducedEquation(self.grid, drift, diffusion, self.log_density).stationary_density())
            except InputError:
                laws.append(np.full(self.grid.n_cells, np.nan))
        return surface_of_laws(np.array(laws), kt, self.grid)

    def mean_first_passage_time(self, start: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        """Return the mean time from one set of cells, at its stationary density, to another, and its error, ps.

        Parameters
        ----------
        start, target : masks of shape (n_cells,) or cell indices
        """
        value, error = self.with_errors(lambda equation: equation.mean_first_passage_time(start, target))
        return float(value), float(error)

    def mean_first_passage_times(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean times from each cell's centre to the set `target` and their errors, shape (n_cells,), ps."""
        return self.with_errors(lambda equation: equation.mean_first_passage_times(target))

    def committor(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability to reach the set b before a from each cell, and its error, shape (n_cells,)."""
        return self.with_errors(lambda equation: equation.committor(a, b))

    def simulate(
        self, starts: np.ndarray, *, time_step: float, steps: int, interval: int, seed: int | np.random.Generator
    ) -> np.ndarray:
        """Return paths of the reduced equation; see `ReducedEquation.simulate`."""
        return self.reduced.simulate(starts, time_step=time_step, steps=steps, interval=interval, seed=seed)


def log_density_on(surface: Surface, grid: CellGrid, kt: float) -> np.ndarray:
    """Return the log density of a surface's bins, added up to cells; NaN where a cell has no sampled bin."""
    density = np.exp(-np.nan_to_num(surface.free_energy, nan=np.inf) / kt)
    shape: list[int] = []
    for edges, cells in zip(surface.edges, grid.edges, strict=False):
        parts = (len(edges) - 1) // (len(cells) - 1)
        if len(surface.edges) != len(grid.edges) or not parts or len(edges[::parts]) != len(cells):
            raise InputError("the surface must have the grid's CVs, and bins that are its cells or whole parts of them")
        if not np.allclose(edges[::parts], cells, atol=1e-6 * np.ptp(cells)):
            raise InputError("the surface's bins must begin and end where the cells of the grid do")
        shape += [len(cells) - 1, parts]
    total = density.reshape(shape).sum(axis=tuple(range(1, len(shape), 2))).ravel()
    with np.errstate(divide="ignore"):
        return np.where(total > 0, np.log(total), np.nan)


def surface_of_laws(laws: np.ndarray, kt: float, grid: CellGrid) -> Surface:
    """Return −kT log of the first row of `laws`, shape (1 + B, n_cells), with errors from the others; as in `Surface`.

    The laws need not be normalised; NaN or zero is unsampled.
    """
    heights = -kt * np.log(np.where(laws > 0, laws, np.nan))
    free_energy = heights[0] - np.nanmin(heights[0])
    low = free_energy < SURFACE_LIMIT_KJ_MOL
    error = spread(heights[1:] - np.nanmean(heights[1:, low], axis=1, keepdims=True))
    return Surface(free_energy.reshape(grid.shape), error.reshape(grid.shape), grid.edges, grid.names, grid.units)
