"""Free energies of windows and surfaces with errors: by MBAR, by the generator's own density, and by both together.

Three estimators share one pool of samples. A window's *chain* (MD and Metropolis states, correlated) goes through MBAR;
a window's *draws* (independent, of known density) give an absolute free energy without any overlap; the combined
estimate is MBAR over MD and draws, held by the draws' absolute free energies within their errors.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import scipy.sparse

from .frames import Frames, rows_by_window
from .importance import (
    LEAST_EFFECTIVE,
    Draws,
    effective_weights,
    generator_free_energies,
    resample_draws,
    resampled_free_energies,
)
from .mbar import bias_terms, newton_system, statistical_inefficiencies, weighted_mbar, window_shares
from .units import thermal_energy
from .windows import WindowGrid

__all__ = ["Estimate", "Method", "Surface", "consistency", "estimate"]

BLOCK, LEAST_BLOCKS = 4.0, 8
"""Length of a bootstrap block in statistical inefficiencies; shorter ones where a chain would have fewer than eight."""
Method: TypeAlias = Literal["combined", "mbar", "generator"]


@dataclass(frozen=True)
class Surface:
    """A free-energy surface on a regular grid of bins.

    Attributes
    ----------
    free_energy, std_error : float64, shape of the bins, kJ/mol; minimum 0, NaN where unsampled
    edges : per CV, bin edges in its unit; names, units : per CV
    """

    free_energy: np.ndarray
    std_error: np.ndarray
    edges: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def centers(self) -> tuple[np.ndarray, ...]:
        """Per CV, bin centres."""
        return tuple(0.5 * (edge[1:] + edge[:-1]) for edge in self.edges)

    def error_below(self, height: float) -> float:
        """Return the RMS standard error (kJ/mol) over bins below `height`, NaN where there is none."""
        low = self.free_energy < height
        return float(np.sqrt(np.mean(self.std_error[low] ** 2))) if low.any() else float("nan")

    def write_csv(self, path: Path) -> None:
        """Write one row per bin: bin centres, free energy and error, both empty where unsampled."""
        with path.open("w", newline="") as file:
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
    frames : the samples that carry weight; log_weights : shape (n,), the weights add up to one
    """

    free_energies: np.ndarray
    std_errors: np.ndarray
    surface: Surface
    frames: Frames
    log_weights: np.ndarray


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
    chain : the windows' equilibrium chains, or None for method "generator"
    rounds : draws, or nothing for method "mbar"
    mbar : free energies by `mbar_free_energies`, kT, shape (n_windows,), for method "mbar": windows that it gives none
        are left out, and MBAR starts from the others for the whole chain, each sample weighing 1 / g

    Raises
    ------
    ValueError
        where method "mbar" is not given `mbar`, or no window has a single effective draw for the other two.
    """
    pool = _pool(chain, rounds, grid, n_bootstrap, rng)
    prior, prior_error = generator_free_energies(rounds, len(grid.centers))
    if method == "mbar":
        if mbar is None:
            raise ValueError("method 'mbar' needs the free energies of mbar_free_energies")
        pool = pool.of_windows(np.isfinite(mbar))
        f = weighted_mbar(pool.terms, pool.weights, pool.sizes, mbar[pool.windows])
        f_replicas = _one_step(pool, f, None, None, None)
    elif not np.isfinite(prior).any():
        raise ValueError("no window has enough effective draws for a free energy of its own")
    else:
        replicas = resampled_free_energies(rounds, pool.draw_counts, len(grid.centers))
        if method == "generator":
            pool = pool.of_windows(np.isfinite(prior))
            f = prior[pool.windows]
            f_replicas = np.where(np.isfinite(replicas[:, pool.windows]), replicas[:, pool.windows], f)
        else:
            held, held_error = prior[pool.windows], prior_error[pool.windows]
            start = np.nan_to_num(held, nan=float(np.nanmean(held)))
            f = weighted_mbar(pool.terms, pool.weights, pool.sizes, start, held, held_error)
            f_replicas = _one_step(pool, f, held, held_error, replicas[:, pool.windows])
    f_replicas = f_replicas - f_replicas.mean(axis=1, keepdims=True) + f.mean()
    free_energies, std_errors = np.full((2, len(grid.centers)), np.nan)
    free_energies[pool.windows], std_errors[pool.windows] = f, f_replicas.std(axis=0, ddof=1)
    surface, log_weights = _surface(pool, f, f_replicas, grid, edges, names, units)
    return Estimate(free_energies, std_errors, surface, pool.frames, log_weights)


@dataclass(frozen=True)
class _Pool:
    """Samples with weights, their bias terms, and resampled weights.

    Attributes
    ----------
    columns : int64, shape (n,); index into `windows`, of the window that each sample belongs to
    terms : sparse, shape (n, K); sizes : shape (K,); replicas : float32, shape (n, B), resampled weights
    draw_counts : per round, resampled counts (n_r, B) of its draws
    """

    frames: Frames
    columns: np.ndarray
    weights: np.ndarray
    windows: np.ndarray
    terms: scipy.sparse.csr_matrix
    sizes: np.ndarray
    replicas: np.ndarray
    draw_counts: list[np.ndarray]

    def of_windows(self, known: np.ndarray) -> _Pool:
        """Return the samples of those windows alone; `known` is a mask over the grid."""
        keep = known[self.windows]
        rows = keep[self.columns]
        renumber = np.cumsum(keep) - 1
        return _Pool(
            self.frames[rows],
            renumber[self.columns[rows]],
            self.weights[rows],
            self.windows[keep],
            self.terms[rows][:, keep],
            self.sizes[keep],
            self.replicas[rows],
            self.draw_counts,
        )


def _pool(
    chain: Frames | None, rounds: Sequence[Draws], grid: WindowGrid, n_bootstrap: int, rng: np.random.Generator
) -> _Pool:
    parts, weights, replicas, draw_counts = [], [], [], []
    if chain is not None and len(chain):
        g = statistical_inefficiencies(chain, grid)
        own = 1 / g[chain.windows]
        parts.append(chain)
        weights.append(own)
        replicas.append(own.astype(np.float32)[:, None] * _block_counts(chain.windows, g, n_bootstrap, rng))
    for draws in rounds:
        counts = resample_draws(draws, n_bootstrap, rng)
        draw_counts.append(counts)
        own = effective_weights(draws.frames)
        own[_sum_by(draws.frames.windows, own, len(grid.centers))[draws.frames.windows] < LEAST_EFFECTIVE] = 0.0
        parts.append(draws.frames)
        weights.append(own)
        replicas.append(own.astype(np.float32)[:, None] * counts)
    frames = Frames.concatenate(parts)
    weight, replica = np.concatenate(weights), np.concatenate(replicas)
    windows, columns = np.unique(frames.windows, return_inverse=True)
    sizes = np.bincount(columns, weight)
    used = (sizes > 0)[columns] & (weight > 0)
    frames, weight, replica = frames[used], weight[used], replica[used]
    windows, columns = np.unique(frames.windows, return_inverse=True)
    sizes = np.bincount(columns, weight)
    # a replica keeps each window's size: it is the law within the window that is resampled
    for rows in rows_by_window(columns):
        replica[rows] *= sizes[columns[rows[0]]] / np.maximum(replica[rows].sum(axis=0), 1e-12)
    return _Pool(frames, columns, weight, windows, bias_terms(frames.cvs, grid, windows), sizes, replica, draw_counts)


def _block_counts(windows: np.ndarray, g: np.ndarray, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each chain sample is taken, float32, shape (n, B), when whole blocks are resampled."""
    counts = np.ones((len(windows), n_bootstrap), dtype=np.float32)
    for rows in rows_by_window(windows):
        length = int(np.ceil(min(BLOCK * g[windows[rows[0]]], max(1, len(rows) / LEAST_BLOCKS))))
        block = np.arange(len(rows)) // length
        n_blocks = block[-1] + 1
        if n_blocks > 1:
            counts[rows] = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_bootstrap).T[block]
    return counts


def _one_step(
    pool: _Pool,
    f: np.ndarray,
    prior: np.ndarray | None,
    prior_error: np.ndarray | None,
    prior_replicas: np.ndarray | None,
) -> np.ndarray:
    """Return replicas of MBAR's solution, shape (B, K): one Newton step from f with each replica's weights."""
    _, hessian = newton_system(pool.terms, pool.weights, pool.sizes, f, prior, prior_error)
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
) -> tuple[Surface, np.ndarray]:
    """Return the surface with errors, and the samples' log-weights towards the unbiased ensemble."""
    kt = thermal_energy(grid.temperature_k)
    shape = tuple(len(edge) - 1 for edge in edges)
    log_mixture = np.log(pool.terms @ (pool.sizes * np.exp(f - f.max()))) + f.max()
    cells = [
        np.searchsorted(edge, values, side="right") - 1 for edge, values in zip(edges, pool.frames.cvs.T, strict=True)
    ]
    inside = np.all([(c >= 0) & (c < n) for c, n in zip(cells, shape, strict=True)], axis=0)
    flat = np.ravel_multi_index(tuple(np.clip(c, 0, n - 1) for c, n in zip(cells, shape, strict=True)), shape)
    n_bins = int(np.prod(shape))

    def binned(weights: np.ndarray) -> np.ndarray:
        return np.bincount(flat[inside], weights[inside], minlength=n_bins)

    relative = np.exp(-(log_mixture - log_mixture.min()))
    probability = binned(pool.weights * relative)
    squared = binned((pool.weights * relative) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        sampled = probability**2 / squared >= LEAST_EFFECTIVE
        free_energy = np.where(sampled, -kt * np.log(probability), np.nan)
        replicas = []
        for b in range(len(f_replicas)):
            mixture = pool.terms @ (pool.sizes * np.exp(f_replicas[b] - f.max()))
            p = binned(pool.replicas[:, b] / mixture)
            replicas.append(np.where(p > 0, -kt * np.log(p), np.nan))
    low = free_energy < np.min(free_energy[sampled], initial=np.inf) + 25.0
    stack = np.array(replicas)
    if low.any():
        stack -= np.nanmean(stack[:, low], axis=1, keepdims=True)
    error = np.full(n_bins, np.nan)
    often = np.isfinite(stack).sum(axis=0) >= max(2, 0.8 * len(stack))
    error[often] = np.nanstd(stack[:, often], axis=0, ddof=1)
    empty = ~(np.isfinite(error) & (error > 0) & sampled)
    free_energy, error = np.where(empty, np.nan, free_energy), np.where(empty, np.nan, error)
    log_weights = np.log(pool.weights) - log_mixture
    log_weights -= np.logaddexp.reduce(log_weights)
    lowest = np.min(free_energy[~empty], initial=np.inf)
    surface = Surface(
        (free_energy - lowest).reshape(shape),
        error.reshape(shape),
        tuple(edges),
        tuple(names),
        tuple(units),
    )
    return surface, log_weights


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


def _sum_by(windows: np.ndarray, values: np.ndarray, n_windows: int) -> np.ndarray:
    return np.bincount(windows, values, minlength=n_windows)
