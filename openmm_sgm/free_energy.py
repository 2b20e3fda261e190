"""Free energies of windows and surfaces with errors: by MBAR, by the generator's own density, and by both together.

Three estimators share one pool of samples. A window's *chain* (MD and Metropolis states, correlated) goes through MBAR;
a window's *draws* (independent, of known density) give an absolute free energy without any overlap; the combined
estimate is MBAR over MD and draws, held by the draws' absolute free energies within their errors. A window's generated
configurations count there as draws where their weights can be trusted, and as states of its Metropolis chain where they
cannot, never as both.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import scipy.sparse

from .cells import CellGrid
from .files import replacing
from .frames import INJECTED, Frames, Selection, rows_by_window
from .importance import LEAST_EFFECTIVE, Draws, Weights
from .mbar import (
    bias_terms,
    largest_connected,
    mbar_hessian,
    overlap_matrix,
    statistical_inefficiencies,
    weighted_mbar,
    window_shares,
)
from .units import InputError, SamplingError, thermal_energy
from .windows import WindowGrid

__all__ = ["Estimate", "Method", "Surface", "consistency", "estimate", "simulated_minus_generated"]

BLOCK, LEAST_BLOCKS = 4.0, 8
"""Length of a bootstrap block in statistical inefficiencies; shorter ones where a chain would have fewer than eight."""
LEAST_AVERAGED = 10.0
"""Effective samples (Kish) below which an average gets no error."""
MOST_MISSING = 0.05
"""Share of the ensemble in windows without an estimate from which an average over the others is none of the whole."""
SINGLE_PRECISION = 1e-7
Method: TypeAlias = Literal["combined", "mbar", "generator"]


@dataclass(frozen=True)
class Surface:
    """A free-energy surface on a regular grid of bins.

    Attributes
    ----------
    free_energy : float64, shape of the bins, kJ/mol; minimum 0, NaN where unsampled
    std_error : of the difference from the mean over the bins below 25 kJ/mol (not from the minimum, whose bin has an
        error of its own)
    edges : per CV, bin edges in its unit; names, units : per CV
    left_out : windows that nothing is known of, in words: not visited, or joined to the others by nothing reliable
    """

    free_energy: np.ndarray
    std_error: np.ndarray
    edges: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all of the CVs' range has been looked at, and is on one scale."""
        return not self.left_out

    @property
    def centers(self) -> tuple[np.ndarray, ...]:
        """Per CV, bin centres."""
        return tuple(0.5 * (edge[1:] + edge[:-1]) for edge in self.edges)

    def bins_of(self, values: np.ndarray) -> np.ndarray:
        """Return the flat index of the bin of each of the CV values (n, n_cvs), int64, shape (n,); −1 outside."""
        return _bins_of(values, self.edges)

    def empty(self) -> Surface:
        """Return the same bins, all unsampled."""
        nothing = np.full(self.free_energy.shape, np.nan)
        return replace(self, free_energy=nothing, std_error=nothing)

    def error_below(self, height: float) -> float:
        """Return the RMS standard error (kJ/mol) over bins below `height`, NaN where there is none."""
        low = self.free_energy < height
        return float(np.sqrt(np.mean(self.std_error[low] ** 2))) if low.any() else float("nan")

    def write_csv(self, path: Path) -> None:
        """Write one row per bin: bin centres, free energy and error, both empty where unsampled."""
        with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*self.names, "free_energy_kj_mol", "std_error_kj_mol"])
            for index in np.ndindex(self.free_energy.shape):
                point = [f"{axis[k]:.6f}" for axis, k in zip(self.centers, index, strict=True)]
                values = (self.free_energy[index], self.std_error[index])
                writer.writerow(point + ["" if np.isnan(v) else f"{v:.4f}" for v in values])


@dataclass(frozen=True)
class Estimate:
    """Window free energies, the surface they give, and the samples' weights towards the unbiased ensemble.

    Attributes
    ----------
    free_energies, std_errors : float64, shape (n_windows,), kT; NaN where a window has no estimate
    surface : see `Surface`
    samples : those that carry weight; log_weights : shape (n,), the weights add up to one
    replicas : float32, shape (n, B); the weights under B resamplings of the data, see `estimate`
    missing : share of the ensemble that may lie in windows which have no estimate, as far as is known
    """

    free_energies: np.ndarray
    std_errors: np.ndarray
    surface: Surface
    samples: Selection
    log_weights: np.ndarray
    replicas: np.ndarray
    missing: float = 0.0

    def average(self, values: np.ndarray, log_factor: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of a property over the unbiased ensemble, and its standard error from the resampled weights.

        >>> distances = mdtraj.compute_distances(trajectory, [[0, 5]])[:, 0]  # of `estimate.samples.take().positions`
        >>> mean, error = estimate.average(distances)

        Parameters
        ----------
        values : of each of `samples`, shape (n,) or (n, m)
        log_factor : shape (n,), logarithm of what the ensemble's weights are multiplied with, such as minus a bias in
            kT; None for the unbiased ensemble

        The error is NaN where fewer than `LEAST_AVERAGED` samples carry the weight, and too small where they are some
        tens (by 2 at 37, measured); and where all samples have one value, which says nothing of how rare others are.

        Where windows that may hold a part of the ensemble have no estimate (`missing`), that part times the range of
        the values is in the error; both are NaN, with a warning, where it is more than `MOST_MISSING`. Averages with a
        `log_factor` are of what the factor leaves, and know nothing of this.
        """
        values = np.asarray(values, dtype=float)
        if log_factor is None and self.missing > MOST_MISSING:
            warnings.warn(
                f"windows that may hold {self.missing:.0%} of the ensemble have no estimate, so that averages and "
                "populations are not known: surface().left_out names them; give run() more force evaluations",
                stacklevel=2,
            )
            return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
        factor = np.ones(len(values)) if log_factor is None else np.exp(log_factor - np.max(log_factor))
        weights = np.exp(self.log_weights) * factor
        mean = weights @ values / weights.sum()
        if weights.sum() ** 2 / (weights**2).sum() < LEAST_AVERAGED:
            return mean, np.full(values.shape[1:], np.nan)
        columns = values.reshape(len(values), -1)
        replicas = ((factor[:, None] * columns).T @ self.replicas / (factor @ self.replicas)).T
        error = replicas.reshape(-1, *values.shape[1:]).std(axis=0, ddof=1)
        seen = values[weights > 0]
        spread = np.ptp(seen, axis=0)
        if log_factor is None:
            error = np.hypot(error, self.missing * spread)
        return mean, np.where(spread > 0, error, np.nan)[()]

    def starts(self, grid: CellGrid, per_cell: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return configurations to start unbiased bursts from: an equilibrium sample within each cell of a grid.

        Drawn with replacement by their weights, so that one may come several times; cells with fewer than
        `LEAST_AVERAGED` effective samples get none.

        >>> positions, sample = estimate.starts(grid, per_cell=20, seed=1)
        >>> bursts = run_bursts(simulation, positions, cvs, steps=2500, interval=50, seed=2)
        >>> model = estimate_transitions(bursts.values, bursts.time_spacing, grid, lag=5.0, groups=sample, seed=3)

        Parameters
        ----------
        grid : cells over the same CVs
        per_cell : starts in each

        Returns
        -------
        positions : float64, shape (n, n_atoms, 3), nm, cell after cell
        sample : int64, shape (n,); which of `samples` each is

        Raises
        ------
        InputError
            where no cell has enough samples.
        """
        rng = np.random.default_rng(seed)
        cells = grid.cells_of(self.samples.column("cvs"))
        chosen = []
        for cell in range(grid.n_cells):
            rows = np.flatnonzero(cells == cell)
            weights = np.exp(self.log_weights[rows] - self.log_weights[rows].max(initial=-np.inf))
            if len(rows) and weights.sum() ** 2 / (weights**2).sum() >= LEAST_AVERAGED:
                chosen.append(rng.choice(rows, per_cell, p=weights / weights.sum()))
        if not chosen:
            raise InputError(f"no cell has {LEAST_AVERAGED:g} effective samples: sample for longer, or use fewer cells")
        sample = np.concatenate(chosen)
        return self.samples.take(sample).positions, sample


def estimate(
    chain: Frames | None,
    rounds: Sequence[Draws],
    grid: WindowGrid,
    edges: Sequence[np.ndarray],
    names: Sequence[str],
    units: Sequence[str],
    *,
    method: Method = "combined",
    mbar: np.ndarray | None = None,
    start: np.ndarray | None = None,
    n_bootstrap: int = 50,
    rng: np.random.Generator,
) -> Estimate:
    """Estimate window free energies and the surface, with bootstrap errors.

    The bins' probabilities are p(bin) ∝ Σ_{i in bin} ω_i / Σ_k N_k exp(f_k − b_k(ξ_i)). Chains are resampled in blocks
    of four statistical inefficiencies, draws one by one, and each replica's free energies follow by one Newton step
    from the solution. Errors are of F − (its mean over the bins below 25 kJ/mol), so that the surface's arbitrary
    constant is no part of them.

    Parameters
    ----------
    chain : the windows' equilibrium chains, injected states among them, or None for method "generator"
    rounds : draws, or nothing for method "mbar"
    mbar : free energies by `mbar_free_energies`, kT, shape (n_windows,), for method "mbar": windows that it gives none
        are left out, and MBAR starts from the others for the whole chain, each sample weighing 1 / g
    start : free energies to start the combined estimate from, kT, shape (n_windows,), NaN where unknown

    Raises
    ------
    ValueError
        where method "mbar" is not given `mbar`
    SamplingError
        where method "generator" has no window whose weights can be trusted
    """
    draws = Weights(rounds, len(grid.centers))
    if method == "generator" and not draws.trusted.any():
        raise SamplingError("in no window can the generated configurations' weights be trusted")
    if method == "combined" and chain is not None:
        chain = chain[(chain.source != INJECTED) | ~draws.trusted[chain.windows]]
    pool = _pool(chain, rounds, draws, grid, n_bootstrap, rng)
    if method == "mbar":
        if mbar is None:
            raise ValueError("method 'mbar' needs the free energies of mbar_free_energies")
        nothing = np.full(len(mbar), np.nan)
        pool, f = _solved(pool.of_windows(np.isfinite(mbar)), nothing, nothing, mbar)
        f_replicas = _one_step(pool, f, None, None, None)
    else:
        prior, prior_error = draws.free_energies()
        replicas = draws.resampled_free_energies(pool.draw_counts)
        replicas = np.where(np.isfinite(replicas), replicas, prior)
        if method == "generator":
            pool = pool.of_windows(draws.trusted)
            f, f_replicas = prior[pool.windows], replicas[:, pool.windows]
        else:
            pool, f = _solved(pool, prior, prior_error, start)
            held = prior[pool.windows]
            if np.isfinite(held).any():
                f_replicas = _one_step(pool, f, held, prior_error[pool.windows], replicas[:, pool.windows])
            else:
                f_replicas = _one_step(pool, f, None, None, None)
    f_replicas = f_replicas - f_replicas.mean(axis=1, keepdims=True) + f.mean()
    free_energies, std_errors = np.full((2, len(grid.centers)), np.nan)
    free_energies[pool.windows], std_errors[pool.windows] = f, f_replicas.std(axis=0, ddof=1)
    surface, log_weights, replica_weights = _surface(pool, f, f_replicas, grid, edges, names, units)
    return Estimate(free_energies, std_errors, surface, pool.samples, log_weights, replica_weights)


@dataclass(frozen=True)
class _Pool:
    """Samples with weights, their bias terms, and resampled weights.

    Attributes
    ----------
    samples : n of them; cvs : theirs, shape (n, n_cvs)
    columns : int64, shape (n,); index into `windows`, of the window that each sample belongs to
    terms : sparse, shape (n, K); sizes : shape (K,); replicas : float32, shape (n, B), resampled weights
    draw_counts : float32, shape (n_draws, B), resampled counts of all draws
    """

    samples: Selection
    cvs: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    windows: np.ndarray
    terms: scipy.sparse.csr_matrix
    sizes: np.ndarray
    replicas: np.ndarray
    draw_counts: np.ndarray

    def of_windows(self, known: np.ndarray) -> _Pool:
        """Return the samples of those windows alone; `known` is a mask over the grid."""
        keep = known[self.windows]
        rows = keep[self.columns]
        renumber = np.cumsum(keep) - 1
        return _Pool(
            self.samples[rows],
            self.cvs[rows],
            renumber[self.columns[rows]],
            self.weights[rows],
            self.windows[keep],
            self.terms[rows][:, keep],
            self.sizes[keep],
            self.replicas[rows],
            self.draw_counts,
        )


def _pool(
    chain: Frames | None,
    rounds: Sequence[Draws],
    draws: Weights,
    grid: WindowGrid,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> _Pool:
    """Return the chain's samples, each weighing 1 / g, and the draws of windows that can be trusted."""
    parts, weights, replicas = [], [], []
    if chain is not None and len(chain):
        g = statistical_inefficiencies(chain, grid)
        own = 1 / g[chain.windows]
        parts.append(chain)
        weights.append(own)
        replicas.append(own.astype(np.float32)[:, None] * _block_counts(chain.windows, g, n_bootstrap, rng))
    draw_counts = draws.resample(n_bootstrap, rng)
    own = draws.counted
    parts += [part.frames for part in rounds]
    weights.append(own)
    replicas.append(own.astype(np.float32)[:, None] * draw_counts)
    weight, replica = np.concatenate(weights), np.concatenate(replicas)
    windows, columns = np.unique(np.concatenate([part.windows for part in parts]), return_inverse=True)
    samples = Selection.of(parts)
    cvs = samples.column("cvs")
    terms = bias_terms(cvs, grid, windows)
    # a sample beyond the cutoff of every window tells nothing of any
    used = (weight > 0) & (np.asarray(terms.sum(axis=1)).ravel() > 0)
    samples, cvs = samples[used], cvs[used]
    weight, replica, terms = weight[used], replica[used], terms[used]
    kept, columns = np.unique(columns[used], return_inverse=True)
    windows, terms = windows[kept], terms[:, kept]
    sizes = np.bincount(columns, weight)
    # a replica keeps each window's size: it is the law within the window that is resampled
    for rows in rows_by_window(columns):
        replica[rows] *= sizes[columns[rows[0]]] / np.maximum(replica[rows].sum(axis=0), 1e-12)
    return _Pool(samples, cvs, columns, weight, windows, terms, sizes, replica, draw_counts)


def _solved(
    pool: _Pool, prior: np.ndarray, prior_error: np.ndarray, guess: np.ndarray | None
) -> tuple[_Pool, np.ndarray]:
    """Return MBAR's free energies held by the prior, and the pool of the windows that they are defined for: those that
    overlap with each other or have a free energy of their own."""
    while True:
        held, held_error = prior[pool.windows], prior_error[pool.windows]
        known = np.isfinite(held)
        start = np.where(known, held, held[known].mean() if known.any() else 0.0)
        if guess is not None and np.isfinite(guess[pool.windows]).all():
            start = guess[pool.windows]
        anchors = (held, held_error) if known.any() else (None, None)
        f = weighted_mbar(pool.terms, pool.weights, pool.sizes, start, *anchors)
        overlap = overlap_matrix(pool.terms, f, pool.sizes, pool.weights)
        joined = largest_connected(overlap, pool.sizes, known)
        if joined.all():
            return pool, f
        keep = np.zeros(len(prior), dtype=bool)
        keep[pool.windows[joined]] = True
        pool = pool.of_windows(keep)


def _block_counts(windows: np.ndarray, g: np.ndarray, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each chain sample is taken, float32, shape (n, B), when whole blocks are resampled.

    Blocks of length L catch the correlation within them only: of a process whose correlation decays exponentially, with
    statistical inefficiency g = 1 + 2τ, the share 1 − 2τ²(1 − exp(−L/τ)) / (L g) of the variance of the mean. Where
    chains are short, so that blocks are too, fewer blocks are taken by that share, which makes up for it.
    """
    counts = np.ones((len(windows), n_bootstrap), dtype=np.float32)
    for rows in rows_by_window(windows):
        inefficiency = g[windows[rows[0]]]
        length = int(np.ceil(min(BLOCK * inefficiency, max(1, len(rows) / LEAST_BLOCKS))))
        block = np.arange(len(rows)) // length
        n_blocks = int(block[-1]) + 1
        if n_blocks > 1:
            tau = (inefficiency - 1) / 2
            caught = 1 - 2 * tau**2 * -np.expm1(-length / tau) / (length * inefficiency) if tau > 0 else 1.0
            taken = max(1, round((n_blocks - 1) * caught))
            counts[rows] = rng.multinomial(taken, np.full(n_blocks, 1 / n_blocks), size=n_bootstrap).T[block]
            counts[rows] *= n_blocks / taken
    return counts


def _one_step(
    pool: _Pool,
    f: np.ndarray,
    prior: np.ndarray | None,
    prior_error: np.ndarray | None,
    prior_replicas: np.ndarray | None,
) -> np.ndarray:
    """Return replicas of MBAR's solution, shape (B, K): one Newton step from f with each replica's weights."""
    hessian = mbar_hessian(pool.terms, pool.weights, pool.sizes, f, prior_error)
    gradients = pool.sizes[:, None] - window_shares(pool.terms, pool.sizes, f).T @ pool.replicas
    if prior is not None and prior_error is not None and prior_replicas is not None:
        known = np.isfinite(prior)
        precision = np.where(known, 1 / np.where(known, prior_error, 1.0) ** 2, 0.0)
        residual = np.where(known[:, None], f[:, None] - prior_replicas.T, 0.0)
        constant = (precision[:, None] * residual).sum(axis=0) / precision.sum()
        gradients -= precision[:, None] * (residual - constant)
    return f + np.linalg.lstsq(hessian, gradients, rcond=1e-12)[0].T


def _surface(
    pool: _Pool,
    f: np.ndarray,
    f_replicas: np.ndarray,
    grid: WindowGrid,
    edges: Sequence[np.ndarray],
    names: Sequence[str],
    units: Sequence[str],
) -> tuple[Surface, np.ndarray, np.ndarray]:
    """Return the surface with errors, and the samples' log-weights and resampled weights, all adding up to one."""
    kt = thermal_energy(grid.temperature_k)
    shape = tuple(len(edge) - 1 for edge in edges)
    log_mixture = np.log(pool.terms @ (pool.sizes * np.exp(f - f.max()))) + f.max()
    flat = _bins_of(pool.cvs, edges)
    inside = flat >= 0
    n_bins = int(np.prod(shape))

    def binned(weights: np.ndarray) -> np.ndarray:
        return np.bincount(flat[inside], weights[inside], minlength=n_bins)

    log_weights = np.log(pool.weights) - log_mixture
    log_weights -= np.logaddexp.reduce(log_weights)
    weights = np.exp(log_weights)
    probability, squared = binned(weights), binned(weights**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        sampled = probability**2 / squared >= LEAST_EFFECTIVE
        free_energy = np.where(sampled, -kt * np.log(probability), np.nan)
        replicas, replica_weights = [], np.empty_like(pool.replicas)
        for b in range(len(f_replicas)):
            mixture = pool.terms @ (pool.sizes * np.exp(f_replicas[b] - f.max()))
            resampled = pool.replicas[:, b] / mixture
            replica_weights[:, b] = resampled / resampled.sum()
            p = binned(resampled)
            replicas.append(np.where(p > 0, -kt * np.log(p), np.nan))
    low = free_energy < np.min(free_energy[sampled], initial=np.inf) + 25.0
    stack = np.array(replicas)
    if low.any():
        stack = stack[np.isfinite(stack[:, low]).any(axis=1)]
        stack -= np.nanmean(stack[:, low], axis=1, keepdims=True)
    error = np.full(n_bins, np.nan)
    often = np.isfinite(stack).sum(axis=0) >= max(2, 0.8 * len(stack))
    error[often] = np.nanstd(stack[:, often], axis=0, ddof=1)
    empty = ~(np.isfinite(error) & (error > 0) & sampled)
    free_energy, error = np.where(empty, np.nan, free_energy), np.where(empty, np.nan, error)
    lowest = np.min(free_energy[~empty], initial=np.inf)
    surface = Surface(
        (free_energy - lowest).reshape(shape),
        error.reshape(shape),
        tuple(edges),
        tuple(names),
        tuple(units),
    )
    return surface, log_weights, replica_weights


def _bins_of(values: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    """Return the flat index of the bin of each point (n, n_cvs), −1 outside the edges.

    What lies beyond the outermost edges by rounding alone is inside: mdtraj's π is 3.14159274.
    """
    shape = [len(edge) - 1 for edge in edges]
    inside, cells = np.ones(len(values), dtype=bool), []
    for edge, column, n in zip(edges, values.T, shape, strict=True):
        slack = SINGLE_PRECISION * (edge[-1] - edge[0])
        inside &= (column >= edge[0] - slack) & (column <= edge[-1] + slack)
        cells.append(np.clip(np.searchsorted(edge, column, side="right") - 1, 0, n - 1))
    return np.where(inside, np.ravel_multi_index(tuple(cells), shape), -1)


def consistency(generator: np.ndarray, mbar: np.ndarray, kt: float, height: float = 25.0) -> tuple[np.ndarray, float]:
    """Return the micro-macro difference per window, kJ/mol, and its RMS over windows below `height` kJ/mol.

    The two are aligned by their mean difference over those windows. NaN where either is missing.
    """
    difference = kt * (generator - mbar)
    if not np.isfinite(difference).any():
        return difference, float("nan")
    low = np.isfinite(difference) & (kt * (generator - np.nanmin(generator)) < height)
    difference = difference - difference[low].mean()
    return difference, float(np.sqrt(np.mean(difference[low] ** 2)))


def simulated_minus_generated(simulated: Frames, rounds: Sequence[Draws], draws: Weights) -> tuple[float, float]:
    """Return the mean over windows of ⟨U⟩ of simulated frames minus ⟨U⟩ of the weighted draws, and its standard error.

    kJ/mol. Independent of what Metropolis tests share with the draws: a density with a factor missing gives draws that
    molecular dynamics leaves at once. Over windows that have both and whose weights can be trusted.
    """
    energies = np.concatenate([np.zeros(0), *(part.frames.energies for part in rounds)])
    weight, n = _sum_by(draws.windows, draws.counted, len(draws.drawn)), len(draws.drawn)
    counts = np.bincount(simulated.windows, minlength=n)
    both = draws.trusted & (counts > 0)
    if both.sum() < 2:
        return float("nan"), float("nan")
    generated = _sum_by(draws.windows, draws.counted * energies, n)[both] / weight[both]
    difference = _sum_by(simulated.windows, simulated.energies, n)[both] / counts[both] - generated
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(both.sum()))


def _sum_by(windows: np.ndarray, values: np.ndarray, n_windows: int) -> np.ndarray:
    return np.bincount(windows, values, minlength=n_windows)
