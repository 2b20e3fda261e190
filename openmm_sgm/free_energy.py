"""Free energies of windows and surfaces with errors: by MBAR, by the generator's own density, and by both together.

Three estimators share one pool of samples. A window's *chain* (MD and Metropolis states, correlated) goes through MBAR;
a window's *draws* (independent, of known density) give an absolute free energy without any overlap; the combined
estimate is MBAR over MD and draws, held by the draws' absolute free energies within their errors.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from .frames import Frames
from .units import thermal_energy
from .windows import WindowGrid

__all__ = [
    "Draws",
    "Estimate",
    "Surface",
    "bias_terms",
    "consistency",
    "effective_sample_size",
    "effective_weights",
    "estimate",
    "generator_free_energies",
    "mbar_free_energies",
    "statistical_inefficiencies",
    "weighted_mbar",
]

Method: TypeAlias = Literal["combined", "mbar", "generator"]
BIAS_CUTOFF = 40.0
"""Reduced bias (kT) above which a sample says nothing of a window: exp(−40) is below double rounding of a sum."""
OVERLAP_THRESHOLD = 0.03
"""Two windows are connected when this share of one's samples could be the other's (Klimovich et al. 2015, sec. 4.2)."""
LEAST_EFFECTIVE = 3.0
"""A bin, or a window's draws, with fewer effective samples has no error that could be trusted, and is left empty."""


@dataclass(frozen=True)
class Draws:
    """Generated configurations of one round, and how many were drawn for each window of the grid.

    Attributes
    ----------
    frames : those whose weight is not zero
    drawn : int64, shape (n_windows,); the others count with weight zero
    """

    frames: Frames
    drawn: np.ndarray


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


@cache
def _pymbar() -> Any:
    """Return pymbar, imported when it is first needed and without the banners that it logs on import."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import pymbar
    finally:
        logging.disable(before)
    return pymbar


def effective_sample_size(log_weights: np.ndarray) -> float:
    """Return (Σw)²/(n Σw²), Kish's effective sample size as a fraction; 0 where no weight is above zero."""
    top = np.max(log_weights, initial=-np.inf)
    if not np.isfinite(top):
        return 0.0
    w = np.exp(log_weights - top)
    return float(w.sum() ** 2 / (w**2).sum() / len(w))


def effective_weights(frames: Frames) -> np.ndarray:
    """Return weights, shape (n,), of draws that add up to the effective number in each window."""
    weights = np.zeros(len(frames))
    for rows in _rows_by_window(frames.windows):
        w = np.exp(frames.log_weights[rows] - frames.log_weights[rows].max())
        weights[rows] = w * w.sum() / (w**2).sum()
    return weights


def generator_free_energies(rounds: Sequence[Draws], n_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return F(c) = −log E_q[exp(−β(U + bias_c))|Z|^½ / q(x|c)] and its standard error, kT (DESIGN, equation 6).

    Rounds are averaged by their effective numbers. NaN for a window with fewer than `LEAST_EFFECTIVE` in all.
    """
    total, log_mean = np.zeros((2, n_windows))
    variance = np.zeros(n_windows)
    for draws in rounds:
        for rows in _rows_by_window(draws.frames.windows):
            window = draws.frames.windows[rows[0]]
            log_w, n = draws.frames.log_weights[rows], draws.drawn[window]
            top = log_w.max()
            w = np.exp(log_w - top)
            mean, second = w.sum() / n, (w**2).sum() / n
            effective = n * mean**2 / second
            if effective < LEAST_EFFECTIVE:
                continue
            total[window] += effective
            log_mean[window] += effective * (np.log(mean) + top)
            variance[window] += effective**2 * max(second / mean**2 - 1, 1 / n) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, -log_mean / total, np.nan), np.where(total > 0, np.sqrt(variance) / total, np.nan)


def statistical_inefficiencies(chain: Frames, grid: WindowGrid) -> np.ndarray:
    """Return g ≥ 1 per window of the grid (Chodera et al. 2007, equation 20): the largest over CVs and the energy."""
    result = np.ones(len(grid.centers))
    for rows in _rows_by_window(chain.windows):
        if len(rows) < 4:
            continue
        offsets = grid.difference(chain.cvs[rows], chain.labels[rows])
        series = [*offsets.T, chain.energies[rows]]
        usable = [s for s in series if np.ptp(s) > 0]
        if usable:
            result[chain.windows[rows[0]]] = max(_pymbar().timeseries.statistical_inefficiency(s) for s in usable)
    return result


def mbar_free_energies(
    chain: Frames, grid: WindowGrid, guess: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return free energies and standard errors (kT, shape (n_windows,)) and the overlap matrix of the sampled windows.

    Shirts & Chodera 2008, by pymbar, on samples decorrelated window by window. Windows that do not overlap with the
    largest connected set get NaN. The standard errors are of the difference to the mean of all.

    Parameters
    ----------
    guess : free energies to start from, kT, NaN where unknown; a good one saves most of the time
    """
    g = statistical_inefficiencies(chain, grid)
    keep = [rows[:: max(1, round(g[chain.windows[rows[0]]]))] for rows in _rows_by_window(chain.windows)]
    windows = np.array([chain.windows[rows[0]] for rows in keep])
    counts = np.array([len(rows) for rows in keep])
    samples = np.concatenate(keep)
    reduced = grid.reduced_bias(chain.cvs[samples][None], grid.centers[windows][:, None])
    terms = scipy.sparse.csr_matrix(np.where(reduced < BIAS_CUTOFF, np.exp(-reduced), 0.0).T)
    start = np.zeros(len(windows)) if guess is None else np.nan_to_num(guess[windows], nan=np.nanmean(guess))
    rough = weighted_mbar(terms, np.ones(len(samples)), counts.astype(float), start)
    linked = _connected(terms, rough, counts.astype(float), np.ones(len(samples)))
    columns = np.flatnonzero(linked)
    rows = np.flatnonzero(np.repeat(linked, counts))
    mbar = _pymbar().MBAR(
        reduced[np.ix_(columns, rows)],
        counts[columns],
        initial_f_k=rough[columns] - rough[columns][0],
        solver_protocol="robust",
    )
    f, error = np.full((2, len(grid.centers)), np.nan)
    overlap = np.zeros((len(windows), len(windows)))
    overlap[np.ix_(columns, columns)] = mbar.compute_overlap()["matrix"]
    f[windows[columns]] = mbar.f_k - np.mean(mbar.f_k)
    theta = mbar.compute_free_energy_differences(compute_uncertainty=True)["dDelta_f"] ** 2
    # Var(f_k − mean f) from the variances of all differences
    error[windows[columns]] = np.sqrt(np.maximum(theta.mean(axis=1) - theta.mean() / 2, 0.0))
    return f, error, overlap


def weighted_mbar(
    terms: scipy.sparse.csr_matrix,
    weights: np.ndarray,
    sizes: np.ndarray,
    start: np.ndarray | None = None,
    prior: np.ndarray | None = None,
    prior_error: np.ndarray | None = None,
) -> np.ndarray:
    """Return MBAR free energies (kT, shape (K,), mean 0) of weighted samples, held by known free energies if given.

    Maximises Σ_k N_k f_k − Σ_i ω_i log Σ_k N_k exp(f_k − b_ik) (Shirts & Chodera 2008, equation C1, with a weight for
    each sample; pymbar knows none) − Σ_k (f_k − m_k − a)²/2s_k², the constant a free. The function is concave; Newton
    steps are taken, none longer than 3 kT, until the last is below 1e-7 kT.

    Parameters
    ----------
    terms : sparse, shape (n, K), exp(−b_ik); weights : shape (n,)
    sizes : shape (K,), Σ of the weights of each window's own samples, all above zero
    prior, prior_error : shape (K,), m and s; NaN where there is none
    """
    f = np.zeros(len(sizes)) if start is None else start - np.mean(start)
    for _ in range(500):
        gradient, hessian = _newton(terms, weights, sizes, f, prior, prior_error)
        step = np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
        step -= step.mean()
        step *= min(1.0, 3.0 / max(np.abs(step).max(), 1e-300))
        f = f + step
        if np.abs(step).max() < 1e-7:
            break
    return f


def _newton(
    terms: scipy.sparse.csr_matrix,
    weights: np.ndarray,
    sizes: np.ndarray,
    f: np.ndarray,
    prior: np.ndarray | None,
    prior_error: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of the objective and minus its Hessian at f."""
    shares = _shares(terms, sizes, f)
    weighted = shares.multiply(weights[:, None]).tocsr()
    column_sums = np.asarray(weighted.sum(axis=0)).ravel()
    gradient = sizes - column_sums
    hessian = np.diag(column_sums) - (weighted.T @ shares).toarray()
    if prior is not None and prior_error is not None:
        precision = np.where(np.isfinite(prior), 1 / np.where(np.isfinite(prior), prior_error, 1.0) ** 2, 0.0)
        residual = f - np.nan_to_num(prior)
        constant = (precision * residual).sum() / precision.sum()
        gradient = gradient - precision * (residual - constant)
        hessian = hessian + np.diag(precision) - np.outer(precision, precision) / precision.sum()
    return gradient, hessian


def _shares(terms: scipy.sparse.csr_matrix, sizes: np.ndarray, f: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return N_k exp(f_k − b_ik) / Σ_l N_l exp(f_l − b_il), rows of sum one."""
    scaled = terms.multiply((sizes * np.exp(f - f.max()))[None, :]).tocsr()
    return scaled.multiply(1 / np.asarray(scaled.sum(axis=1))).tocsr()


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
    of two statistical inefficiencies, draws one by one, and each replica's free energies follow by one Newton step
    from the solution. Errors are of F − (its mean over the bins below 25 kJ/mol), so that the surface's arbitrary
    constant is no part of them.

    Parameters
    ----------
    chain : the windows' equilibrium chains, or None for method "generator"
    rounds : draws, or nothing for method "mbar"
    mbar : free energies by `mbar_free_energies`, kT, shape (n_windows,); for method "mbar" they are taken as they are
    """
    pool = _pool(chain, rounds, grid, n_bootstrap, rng)
    prior, prior_error = generator_free_energies(rounds, len(grid.centers))
    if method == "mbar":
        if mbar is None:
            raise ValueError("method 'mbar' needs the free energies of mbar_free_energies")
        pool = pool.of_windows(np.isfinite(mbar))
        f = mbar[pool.windows]
        f_replicas = _one_step(pool, f, None, None, None)
    else:
        replicas = _prior_replicas(rounds, pool, len(grid.centers))
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
        replicas.append(own[:, None] * _block_counts(chain.windows, g, n_bootstrap, rng))
    for draws in rounds:
        counts = _draw_counts(draws, n_bootstrap, rng)
        draw_counts.append(counts)
        own = effective_weights(draws.frames)
        own[_sum_by(draws.frames.windows, own, len(grid.centers))[draws.frames.windows] < LEAST_EFFECTIVE] = 0.0
        parts.append(draws.frames)
        weights.append(own)
        replicas.append(own[:, None] * counts)
    frames = Frames.concatenate(parts)
    weight, replica = np.concatenate(weights), np.concatenate(replicas).astype(np.float32)
    windows, columns = np.unique(frames.windows, return_inverse=True)
    sizes = np.bincount(columns, weight)
    used = (sizes > 0)[columns] & (weight > 0)
    frames, weight, replica = frames[used], weight[used], replica[used]
    windows, columns = np.unique(frames.windows, return_inverse=True)
    sizes = np.bincount(columns, weight)
    # a replica keeps each window's size: it is the law within the window that is resampled
    for rows in _rows_by_window(columns):
        replica[rows] *= sizes[columns[rows[0]]] / np.maximum(replica[rows].sum(axis=0), 1e-12)
    return _Pool(frames, columns, weight, windows, bias_terms(frames.cvs, grid, windows), sizes, replica, draw_counts)


def bias_terms(cvs: np.ndarray, grid: WindowGrid, windows: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return exp(−b_ik), shape (n, K), without those below the cutoff."""
    blocks = []
    for start in range(0, len(cvs), 4096):
        reduced = grid.reduced_bias(cvs[start : start + 4096, None], grid.centers[windows])
        blocks.append(scipy.sparse.csr_matrix(np.where(reduced < BIAS_CUTOFF, np.exp(-reduced), 0.0)))
    return scipy.sparse.vstack(blocks).tocsr()


def _block_counts(windows: np.ndarray, g: np.ndarray, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each chain sample is taken, shape (n, B), when blocks of two inefficiencies are resampled."""
    counts = np.ones((len(windows), n_bootstrap))
    for rows in _rows_by_window(windows):
        length = int(np.ceil(2 * g[windows[rows[0]]]))
        block = np.arange(len(rows)) // length
        n_blocks = block[-1] + 1
        if n_blocks > 1:
            counts[rows] = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_bootstrap).T[block]
    return counts


def _draw_counts(draws: Draws, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each draw is taken, shape (n, B); draws of weight zero are resampled with the others."""
    counts = np.ones((len(draws.frames), n_bootstrap))
    for rows in _rows_by_window(draws.frames.windows):
        n = int(draws.drawn[draws.frames.windows[rows[0]]])
        p = np.full(len(rows) + 1, 1 / n)
        p[-1] = max(0.0, 1 - len(rows) / n)
        counts[rows] = rng.multinomial(n, p / p.sum(), size=n_bootstrap).T[:-1]
    return counts


def _prior_replicas(rounds: Sequence[Draws], pool: _Pool, n_windows: int) -> np.ndarray:
    """Return the generator's free energies under resampling, shape (B, n_windows), NaN as in the estimate."""
    n_bootstrap = pool.replicas.shape[1]
    total, value = np.zeros(n_windows), np.zeros((n_bootstrap, n_windows))
    for draws, counts in zip(rounds, pool.draw_counts, strict=True):
        for rows in _rows_by_window(draws.frames.windows):
            window = draws.frames.windows[rows[0]]
            log_w = draws.frames.log_weights[rows]
            w = np.exp(log_w - log_w.max())
            effective = w.sum() ** 2 / (w**2).sum()
            if effective < LEAST_EFFECTIVE:
                continue
            total[window] += effective
            mean = np.maximum(w @ counts[rows], 1e-300) / draws.drawn[window]
            value[:, window] -= effective * (np.log(mean) + log_w.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, value / total, np.nan)


def _one_step(
    pool: _Pool,
    f: np.ndarray,
    prior: np.ndarray | None,
    prior_error: np.ndarray | None,
    prior_replicas: np.ndarray | None,
) -> np.ndarray:
    """Return replicas of MBAR's solution, shape (B, K): one Newton step from f with each replica's weights."""
    _, hessian = _newton(pool.terms, pool.weights, pool.sizes, f, prior, prior_error)
    gradients = pool.sizes[:, None] - _shares(pool.terms, pool.sizes, f).T @ pool.replicas
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
    low = free_energy < np.nanmin(free_energy) + 25.0
    stack = np.array(replicas)
    stack -= np.nanmean(stack[:, low], axis=1, keepdims=True)
    error = np.full(n_bins, np.nan)
    often = np.isfinite(stack).sum(axis=0) >= max(2, 0.8 * len(stack))
    error[often] = np.nanstd(stack[:, often], axis=0, ddof=1)
    empty = ~(np.isfinite(error) & (error > 0) & sampled)
    free_energy, error = np.where(empty, np.nan, free_energy), np.where(empty, np.nan, error)
    log_weights = np.log(pool.weights) - log_mixture
    log_weights -= np.logaddexp.reduce(log_weights)
    surface = Surface(
        (free_energy - np.nanmin(free_energy)).reshape(shape),
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
    low = np.isfinite(difference) & (kt * (generator - np.nanmin(generator)) < height)
    if not low.any():
        return difference, float("nan")
    difference = difference - difference[low].mean()
    return difference, float(np.sqrt(np.mean(difference[low] ** 2)))


def _connected(terms: scipy.sparse.csr_matrix, f: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return which windows belong to the largest set (by samples) that overlaps throughout; bool, shape (K,)."""
    shares = _shares(terms, sizes, f)
    overlap = (shares.T @ shares.multiply(weights[:, None])).toarray() / sizes
    _, label = scipy.sparse.csgraph.connected_components(overlap + overlap.T > 2 * OVERLAP_THRESHOLD, directed=False)
    largest = np.argmax(np.bincount(label, sizes))
    return np.asarray(label == largest)


def _rows_by_window(windows: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each window's samples, in their order."""
    order = np.argsort(windows, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(windows[order])) + 1) if len(windows) else []


def _sum_by(windows: np.ndarray, values: np.ndarray, n_windows: int) -> np.ndarray:
    return np.bincount(windows, values, minlength=n_windows)
