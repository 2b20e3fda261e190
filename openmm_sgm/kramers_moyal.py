"""Drift and diffusion of the CVs from short bursts, at several lags (Kramers–Moyal coefficients)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from openmm import unit
from scipy.stats import chi2

from .cells import LEAST_MEMBERS, CellGrid, CellMoments, bootstrap_weights, spread
from .effective import EffectiveDynamics, LagAgreement
from .units import InputError, strip_units

__all__ = [
    "agreement",
    "check_bursts",
    "choose_lag",
    "estimate_drift_and_diffusion",
    "index_of_lag",
    "lag_steps",
    "no_plateau",
]

Estimator = Literal["slope", "direct"]


def estimate_drift_and_diffusion(
    trajectories: np.ndarray,
    time_spacing: Any,
    grid: CellGrid,
    *,
    seed: int | np.random.Generator,
    estimator: Estimator = "slope",
    lags: Sequence[float] | None = None,
    lag: float | None = None,
    groups: np.ndarray | None = None,
    n_bootstrap: int = 100,
) -> EffectiveDynamics:
    """Estimate drift and diffusion in the cells of a grid from bursts, by the cell that each burst starts in.

    The Kramers–Moyal coefficients of the Itô equation (Risken, The Fokker-Planck Equation, ch. 4; from data: Siegert,
    Friedrich & Peinke 1998, Phys. Lett. A 243, 275) are, with Δ(τ) = ξ(τ) − ξ(0) and averages over a cell's bursts,

    - `direct`: b = ⟨Δ(τ)⟩/τ and D = cov Δ(τ) / 2τ. The covariance, not ⟨ΔΔᵀ⟩, takes out the drift's share b²τ/2
      (Ragwitz & Kantz 2001, Phys. Rev. Lett. 87, 254501);
    - `slope`: the same between two lags, b = [⟨Δ(τ)⟩ − ⟨Δ(τ₁)⟩]/(τ − τ₁), D = [cov Δ(τ) − cov Δ(τ₁)] / 2(τ − τ₁)
      with τ₁ half of τ. What bursts do at first is not diffusion: with Langevin dynamics of friction γ a CV moves
      ballistically, cov Δ = 2D[τ − (1 − e^{−γτ})/γ] for a free particle, and fast coordinates slip towards the law that
      they have while the CVs move. The difference takes out such a slip once it is over; `direct` has it to order 1/γτ.

    Either needs a lag above the time in which velocities and other fast motions are forgotten and below that in which
    the CVs move across the features of their surface; at a lag τ both estimates are off by a factor of about 1 − kτ/2
    (drift) and 1 − kτ (diffusion) in a well where the CV relaxes at the rate k, the slope by half as much again.

    Estimates are made at all `lags`; the shortest that agrees with the next, in drift and in diffusion, is taken.

    Parameters
    ----------
    trajectories : float64, shape (n_bursts, n_times, d), CV units; a burst with a NaN or a start outside the grid is
        left out. A burst must start from a configuration in equilibrium at its CV values, see `run_bursts`
    time_spacing : ps or a Quantity
    lags : ps, increasing; None for 1, 2, 4, ... time spacings, from 2 for `slope`. Where one is no whole number of
        spacings the nearest is taken
    lag : ps; the one of `lags` to take, whatever the agreement; None to choose
    groups : int, shape (n_bursts,); bursts of one group are resampled together: `Bursts.starts` for copies of one
        start, or the number of the trajectory from which bursts were cut (and then a group lies in several cells)
    n_bootstrap : resamplings for the errors

    Warns
    -----
    UserWarning
        where no lag agrees with the next, or there is nothing to compare with.

    Raises
    ------
    InputError
        for arrays of another shape, lags outside the bursts, or too few bursts.
    """
    values, spacing = check_bursts(trajectories, time_spacing, grid, groups, n_bootstrap)
    if estimator not in ("slope", "direct"):
        raise InputError(f"estimator must be 'slope' or 'direct', got {estimator!r}")
    steps = lag_steps(lags, spacing, values.shape[1], 2 if estimator == "slope" else 1)
    chosen = None if lag is None else index_of_lag(lag, steps * spacing)

    cells = grid.cells_of(values[:, 0])
    sound = np.isfinite(values).all(axis=(1, 2)) & (cells >= 0)
    values, cells = values[sound], cells[sound]
    counts = np.bincount(cells, minlength=grid.n_cells)
    if counts.max(initial=0) < LEAST_MEMBERS:
        raise InputError(f"no cell has {LEAST_MEMBERS} bursts: start more, or make the cells larger")
    ids = np.arange(len(values)) if groups is None else np.asarray(groups)[sound]
    weights = bootstrap_weights(cells, ids, n_bootstrap, np.random.default_rng(seed))

    sums = CellMoments(cells, counts, weights)
    drifts, diffusions = [], []
    for step in steps:
        first = step // 2 if estimator == "slope" else 0
        mean, covariance = sums.moments(grid.difference(values[:, step], values[:, 0]))
        if first:
            slip, slip_covariance = sums.moments(grid.difference(values[:, first], values[:, 0]))
            mean, covariance = mean - slip, covariance - slip_covariance
        time = (step - first) * spacing
        drifts.append(mean / time)
        diffusions.append(covariance / (2 * time))
    agreements = tuple(
        agreement(a * spacing, b * spacing, drifts[k : k + 2], diffusions[k : k + 2])
        for k, (a, b) in enumerate(itertools.pairwise(steps))
    )
    if chosen is None:
        chosen = choose_lag(agreements)
    has_plateau = chosen < len(agreements) and agreements[chosen].agree
    if not has_plateau:
        warnings.warn(no_plateau(steps[chosen] * spacing, agreements, chosen), stacklevel=2)
    drift, diffusion = drifts[chosen], diffusions[chosen]
    return EffectiveDynamics(
        grid=grid,
        lag=float(steps[chosen] * spacing),
        first_lag=float(steps[chosen] // 2 * spacing if estimator == "slope" else 0.0),
        has_plateau=has_plateau,
        drift=drift[0],
        drift_error=spread(drift[1:]),
        diffusion=diffusion[0],
        diffusion_error=spread(diffusion[1:]),
        counts=counts,
        lags=steps * spacing,
        drifts=np.array([at[0] for at in drifts]),
        diffusions=np.array([at[0] for at in diffusions]),
        agreements=agreements,
        drift_replicas=drift[1:],
        diffusion_replicas=diffusion[1:],
    )


def check_bursts(
    trajectories: np.ndarray, time_spacing: Any, grid: CellGrid, groups: np.ndarray | None, n_bootstrap: int
) -> tuple[np.ndarray, float]:
    """Return trajectories as float64 and the time spacing in ps, or say what is wrong with them."""
    values = np.asarray(trajectories, dtype=float)
    spacing = float(strip_units(time_spacing, unit.picosecond))
    d = len(grid.shape)
    if values.ndim != 3 or values.shape[2] != d or values.shape[1] < 2:
        raise InputError(f"trajectories must have shape (n_bursts, n_times, {d}), got {values.shape}")
    if not spacing > 0:
        raise InputError(f"time_spacing must be positive, got {spacing}")
    if n_bootstrap < 2:
        raise InputError(f"n_bootstrap must be 2 or more, got {n_bootstrap}")
    if groups is not None and np.shape(groups) != (len(values),):
        raise InputError(f"groups must have shape ({len(values)},), got {np.shape(groups)}")
    return values, spacing


def lag_steps(lags: Sequence[float] | None, spacing: float, n_times: int, least: int) -> np.ndarray:
    """Return lags in time spacings, by default doubling from the `least`."""
    if n_times <= least:
        raise InputError(f"bursts must have {least + 1} times or more, got {n_times}")
    if lags is None:
        return least * 2 ** np.arange(int(np.log2((n_times - 1) // least)) + 1)
    steps = np.rint(np.asarray(lags, dtype=float) / spacing).astype(np.int64)
    if steps.ndim != 1 or not len(steps) or (np.diff(steps) <= 0).any() or steps[0] < least or steps[-1] >= n_times:
        raise InputError(
            f"lags must increase, from {least * spacing:g} to {(n_times - 1) * spacing:g} ps in steps of "
            f"{spacing:g} ps, got {lags}"
        )
    return steps


def index_of_lag(lag: float, lags: np.ndarray) -> int:
    """Return which of the lags is meant."""
    index = int(np.abs(lags - lag).argmin())
    if not np.isclose(lags[index], lag, rtol=1e-6):
        raise InputError(f"lag must be one of {', '.join(f'{value:g}' for value in lags)} ps, got {lag}")
    return index


def agreement(lag: float, next_lag: float, drifts: list[np.ndarray], diffusions: list[np.ndarray]) -> LagAgreement:
    """Return how two estimates, with their replicas, agree."""
    drift, diffusion = _compare(*drifts), _compare(*diffusions)
    pairs = zip(drift, diffusion, strict=True)
    return LagAgreement(float(lag), float(next_lag), *(value for pair in pairs for value in pair))


def _compare(here: np.ndarray, there: np.ndarray) -> tuple[float, float, float]:
    """Return (p-value, change beyond noise, noise) of the differences of two estimates with their replicas."""
    difference = there - here
    if difference.ndim == 4:  # a symmetric matrix counts each of its elements once
        rows, columns = np.tril_indices(difference.shape[-1])
        difference, here = difference[..., rows, columns], here[..., rows, columns]
    variance = spread(difference[1:]) ** 2
    valid = np.isfinite(difference[0]) & (variance > 0)
    if not valid.any():
        return float("nan"), float("nan"), float("nan")
    square, variance = difference[0][valid] ** 2, variance[valid]
    scale = np.sqrt(np.mean(here[0][valid] ** 2))
    change = np.sqrt(max(np.mean(square - variance), 0.0)) / scale
    p_value = chi2.sf((square / variance).sum(), valid.sum())
    return float(p_value), float(change), float(np.sqrt(variance.mean()) / scale)


def choose_lag(agreements: Sequence[LagAgreement]) -> int:
    """Return the first lag that agrees with the next, or else the one whose diffusion and drift change least."""
    agreeing = [k for k, found in enumerate(agreements) if found.agree]
    if agreeing or not agreements:
        return agreeing[0] if agreeing else 0
    return int(np.argmin([found.drift_change + found.diffusion_change for found in agreements]))


def no_plateau(lag: float, agreements: Sequence[LagAgreement], chosen: int) -> str:
    """Return the warning."""
    if chosen >= len(agreements):
        return f"nothing to compare the estimates at {lag:g} ps with: give longer bursts, or another lag"
    found = agreements[chosen]
    return (
        f"no plateau at {lag:g} ps: up to {found.next_lag:g} ps the drift changes by {100 * found.drift_change:.0f} % "
        f"and the diffusion by {100 * found.diffusion_change:.0f} % beyond noise (RMS); the reduced equation may be a "
        "bad model, see EffectiveDynamics"
    )
