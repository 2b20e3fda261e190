"""Diffusion on a surface that is known, from the likelihood of what bursts do over a lag of any length."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from openmm import unit
from scipy.optimize import minimize

from .cells import CellGrid, bootstrap_weights, spread
from .effective import EffectiveDynamics, log_density_on
from .free_energy import Surface
from .kramers_moyal import agreement, check_bursts, choose_lag, index_of_lag, lag_steps, no_plateau
from .reduced import ReducedEquation
from .units import strip_units, thermal_energy

__all__ = ["fit_diffusion_on_surface"]

LEAST_PROBABILITY = 1e-10
LARGEST_CORRELATION = 0.9
DIFFERENCE = 0.02


def fit_diffusion_on_surface(
    trajectories: np.ndarray,
    time_spacing: Any,
    grid: CellGrid,
    surface: Surface,
    temperature: Any,
    *,
    seed: int | np.random.Generator,
    lags: Sequence[float] | None = None,
    lag: float | None = None,
    groups: np.ndarray | None = None,
    n_bootstrap: int = 100,
) -> EffectiveDynamics:
    """Fit one diffusion tensor for all cells to bursts, the surface being known.

    The likelihood of the bursts is Π P_ij(τ) over their cells i and j at successive multiples of the lag τ, with
    P(τ) = exp(τL) of the reduced equation on the surface (Bicout & Szabo 1998, J. Chem. Phys. 109, 2325; Hummer 2005,
    New J. Phys. 7, 34). The lag may be longer than the CVs' relaxation within basins, where displacements over τ tell
    nothing of drift and diffusion: what is fitted then are the passages between basins, so that velocities and other
    fast motions can be forgotten first. That is the way to passage times where `estimate_drift_and_diffusion` finds no
    plateau. At lags in which the CVs move by less than a cell, the diffusion is too large, because the start's place in
    its cell is not known; and too large or too small where motion is ballistic. Look at `diffusions` over `lags`.

    Parameters
    ----------
    trajectories, time_spacing, seed, groups, n_bootstrap, lag : as for `estimate_drift_and_diffusion`; a burst may be
        of any length
    lags : ps, increasing; None for 1, 2, 4, ... time spacings
    surface : of the same CVs, its bins the cells of the grid or whole parts of them
    temperature : K or a Quantity

    Returns
    -------
    EffectiveDynamics
        with one diffusion for all cells of the surface and a drift that follows from it. Errors are those of the
        diffusion (one Newton step on resampled bursts); the drift's agreement between lags is the diffusion's

    Warns
    -----
    UserWarning
        where no lag agrees with the next, or there is nothing to compare with.

    Raises
    ------
    InputError
        for arrays of another shape, bins that do not fit, lags outside the bursts, or too few bursts.
    """
    values, spacing = check_bursts(trajectories, time_spacing, grid, groups, n_bootstrap)
    steps = lag_steps(lags, spacing, values.shape[1], 1)
    chosen = None if lag is None else index_of_lag(lag, steps * spacing)
    kt = thermal_energy(float(strip_units(temperature, unit.kelvin)))
    log_density = log_density_on(surface, grid, kt)
    cells = grid.cells_of(values.reshape(-1, values.shape[2])).reshape(values.shape[:2])
    known = np.isfinite(np.append(log_density, np.nan))  # the last stands for −1, outside the grid
    sound = known[cells[:, 0]]
    cells = cells[sound]
    ids = np.arange(len(values))[sound] if groups is None else np.asarray(groups)[sound]
    weights = bootstrap_weights(cells[:, 0], ids, n_bootstrap, np.random.default_rng(seed))
    fits = []
    start = _first_guess(grid, spacing, values)
    for step in steps:
        fits.append(_fit(grid, log_density, cells, known, int(step), float(step * spacing), start, weights))
        start = fits[-1][0]
    tensors = [np.array([_tensor(row) for row in fit]) for fit in fits]
    agreements = tuple(
        agreement(a * spacing, b * spacing, [x[:, None], y[:, None]], [x[:, None], y[:, None]])
        for (a, x), (b, y) in itertools.pairwise(zip(steps, tensors, strict=True))
    )
    if chosen is None:
        chosen = choose_lag(agreements)
    has_plateau = chosen < len(agreements) and agreements[chosen].agree
    if not has_plateau:
        warnings.warn(no_plateau(steps[chosen] * spacing, agreements, chosen), stacklevel=2)

    def on_cells(tensor: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(log_density)[:, None, None], tensor, np.nan)

    def drift(tensor: np.ndarray) -> np.ndarray:
        return ReducedEquation.on_surface(grid, log_density, on_cells(tensor)).drift

    diffusions = np.array([on_cells(tensor) for tensor in tensors[chosen]])
    drifts = np.array([drift(tensor) for tensor in tensors[chosen]])
    return EffectiveDynamics(
        grid=grid,
        lag=float(steps[chosen] * spacing),
        first_lag=0.0,
        has_plateau=has_plateau,
        drift=drifts[0],
        drift_error=spread(drifts[1:]),
        diffusion=diffusions[0],
        diffusion_error=spread(diffusions[1:]),
        counts=np.bincount(cells[:, 0], minlength=grid.n_cells),
        lags=steps * spacing,
        drifts=np.array([drift(at[0]) for at in tensors]),
        diffusions=np.array([on_cells(at[0]) for at in tensors]),
        agreements=agreements,
        drift_replicas=drifts[1:],
        diffusion_replicas=diffusions[1:],
        log_density=log_density,
    )


def _first_guess(grid: CellGrid, spacing: float, values: np.ndarray) -> np.ndarray:
    """Return parameters of the tensor ⟨Δ²⟩/2τ at the first time, without correlation."""
    move = grid.difference(values[:, 1], values[:, 0])
    logs = np.log(np.nanmean(move**2, axis=0) / (2 * spacing))
    return np.concatenate([logs, np.zeros(len(logs) - 1)])


def _tensor(parameters: np.ndarray) -> np.ndarray:
    """Return the tensor of ln D per CV and, for two, an unbounded parameter for their correlation."""
    if len(parameters) == 1:
        return np.exp(parameters)[:, None]
    root = np.exp(0.5 * parameters[:2])
    correlation = LARGEST_CORRELATION * np.tanh(parameters[2])
    return np.asarray(root[:, None] * np.array([[1, correlation], [correlation, 1]]) * root)


def _fit(
    grid: CellGrid,
    log_density: np.ndarray,
    cells: np.ndarray,
    known: np.ndarray,
    step: int,
    lag: float,
    start: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Return the likeliest parameters and, by one Newton step, those of the resampled bursts: (1 + B, n_parameters)."""
    here, there = cells[:, :-step:step], cells[:, step::step]
    there = there[:, : here.shape[1]]
    here = here[:, : there.shape[1]]
    both = known[here] & known[there]
    burst = np.broadcast_to(np.arange(len(cells))[:, None], here.shape)[both]
    here, there = here[both], there[both]

    def log_probabilities(parameters: np.ndarray) -> np.ndarray:
        tensor = np.broadcast_to(_tensor(parameters), (grid.n_cells, len(grid.shape), len(grid.shape)))
        equation = ReducedEquation(grid, np.zeros((grid.n_cells, len(grid.shape))), tensor, log_density)
        inside = np.flatnonzero(equation.known)
        index = np.full(grid.n_cells, -1)
        index[inside] = np.arange(len(inside))
        root = np.exp(0.5 * (log_density[inside] - log_density[inside].max()))
        rates = equation.rates()[inside][:, inside].toarray() * root[:, None] / root  # symmetric: detailed balance
        values, vectors = np.linalg.eigh(0.5 * (rates + rates.T))
        law = (vectors * np.exp(lag * values)) @ vectors.T / root[:, None] * root
        reached = (index[here] >= 0) & (index[there] >= 0)
        return np.where(reached, np.log(np.maximum(law[index[here], index[there]], LEAST_PROBABILITY)), 0.0)

    found = minimize(
        lambda p: -log_probabilities(p).sum(), start, method="Nelder-Mead", options={"xatol": 2e-3, "fatol": 1e-2}
    ).x
    shifts = DIFFERENCE * np.eye(len(found))
    ahead = np.array([log_probabilities(found + shift) for shift in shifts])
    behind = np.array([log_probabilities(found - shift) for shift in shifts])
    scores = (ahead - behind) / (2 * DIFFERENCE)
    information = np.zeros((len(found), len(found)))
    for row, column in itertools.combinations_with_replacement(range(len(found)), 2):
        corners = [
            a * b * log_probabilities(found + a * shifts[row] + b * shifts[column]).sum()
            for a, b in itertools.product((1, -1), repeat=2)
        ]
        information[row, column] = information[column, row] = -sum(corners) / (4 * DIFFERENCE**2)
    by_burst = np.array([np.bincount(burst, weights=score, minlength=len(cells)) for score in scores])
    steps = np.linalg.solve(information, by_burst @ (weights - 1).T).T
    return found + steps
