"""MBAR over umbrella windows with a weight for each sample, which pymbar does not know; errors of chains by pymbar."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from .frames import Frames, rows_by_window
from .windows import WindowGrid

__all__ = [
    "bias_terms",
    "largest_connected",
    "mbar_free_energies",
    "mbar_gradient",
    "mbar_hessian",
    "overlap_matrix",
    "settled_from",
    "statistical_inefficiencies",
    "weighted_mbar",
    "window_shares",
]

BIAS_CUTOFF = 30.0
"""Reduced bias (kT) above which a sample says nothing of a window: exp(−30) is 1e-13."""
ROWS = 512
LEAST_SAMPLES = 5.0
CHORD_KT = 0.3
"""After a step shorter than this the Hessian, nearly all of the cost, is kept for the next."""
OVERLAP_THRESHOLD = 0.03
"""Two windows are connected when this share of one's samples could be the other's (Klimovich et al. 2015, sec. 4.2)."""


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


def statistical_inefficiencies(chain: Frames, grid: WindowGrid) -> np.ndarray:
    """Return g ≥ 1 per window of the grid (Chodera et al. 2007, equation 20): the largest over CVs and the energy.

    And no less than n Σh²/(Σh)² for a chain that holds its states for h steps each, as a Metropolis chain with few
    acceptances does: its time series is too short for its own correlation time.
    """
    result = np.ones(len(grid.centers))
    for rows in rows_by_window(chain.windows):
        if len(rows) < 4:
            continue
        offsets = grid.difference(chain.cvs[rows], chain.labels[rows])
        series = [*offsets.T, chain.energies[rows]]
        holding = np.diff(np.flatnonzero(np.diff(chain.energies[rows], prepend=np.nan, append=np.nan) != 0))
        inefficiencies = [float((holding**2).sum()) / len(rows)]
        inefficiencies += [_pymbar().timeseries.statistical_inefficiency(s) for s in series if np.ptp(s) > 0]
        result[chain.windows[rows[0]]] = max(inefficiencies)
    return result


def mbar_free_energies(
    chain: Frames, grid: WindowGrid, guess: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return free energies and standard errors (kT, shape (n_windows,)) and the overlap matrix of the sampled windows.

    Shirts & Chodera 2008. Every sample counts, with the weight 1/g of its window's statistical inefficiency; the
    overlap, and the standard errors by pymbar, are those of samples decorrelated window by window. The errors are of
    the difference to the mean of all. On autoregressive chains true errors are 0.9 to 1.0 times as large where a window
    has 60 independent samples or more, 1.3 times with ten, 1.6 times with five (g is then underestimated; measured).

    Windows with fewer than `LEAST_SAMPLES` independent samples get NaN: a chain that has hardly moved holds one basin
    of a window that may have several, and ties the windows on either side of a ridge together wrongly (measured). So
    do windows that do not overlap with the largest connected set. Where no window has enough, all count.

    Parameters
    ----------
    guess : free energies to start from, kT, NaN where unknown; a good one saves most of the time
    """
    g = statistical_inefficiencies(chain, grid)
    of_window = rows_by_window(chain.windows)
    enough = [rows for rows in of_window if len(rows) >= LEAST_SAMPLES * g[chain.windows[rows[0]]]] or of_window
    keep = [_decorrelated(rows, g[chain.windows[rows[0]]]) for rows in enough]
    windows = np.array([chain.windows[rows[0]] for rows in keep])
    counts = np.array([len(rows) for rows in keep])
    samples = np.concatenate(keep)
    terms = bias_terms(chain.cvs[samples], grid, windows)
    known = np.zeros(1) if guess is None or not np.isfinite(guess).any() else guess[np.isfinite(guess)]
    start = np.full(len(windows), known.mean()) if guess is None else np.nan_to_num(guess[windows], nan=known.mean())
    rough = weighted_mbar(terms, np.ones(len(samples)), counts.astype(float), start)
    overlap = overlap_matrix(terms, rough, counts.astype(float), np.ones(len(samples)))
    del terms
    linked = largest_connected(overlap, counts)
    columns = np.flatnonzero(linked)
    rows = samples[np.repeat(linked, counts)]
    mbar = _pymbar().MBAR(
        grid.reduced_bias(chain.cvs[rows][None], grid.centers[windows[columns]][:, None]),
        counts[columns],
        initial_f_k=rough[columns] - rough[columns][0],
        solver_protocol="robust",
    )
    f, error = np.full((2, len(grid.centers)), np.nan)
    every = np.concatenate([rows for rows, used in zip(enough, linked, strict=True) if used])
    weights = 1 / g[chain.windows[every]]
    sizes = np.array([len(rows) for rows in enough])[columns] / g[windows[columns]]
    f[windows[columns]] = weighted_mbar(bias_terms(chain.cvs[every], grid, windows[columns]), weights, sizes, mbar.f_k)
    theta = mbar.compute_free_energy_differences(compute_uncertainty=True)["dDelta_f"] ** 2
    # Var(f_k − mean f) from the variances of all differences
    error[windows[columns]] = np.sqrt(np.maximum(theta.mean(axis=1) - theta.mean() / 2, 0.0))
    return f, error, overlap


def _decorrelated(rows: np.ndarray, g: float) -> np.ndarray:
    """Return n / g of the rows, g apart on average (as `pymbar.timeseries.subsample_correlated_data`, which prints)."""
    return rows[np.arange(0, len(rows), g).astype(int)]


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
    steps are taken, none longer than 3 kT, until the last is below 1e-7 kT. Near the solution the Hessian is kept (the
    chord method) as long as each step is less than half of the one before.

    Parameters
    ----------
    terms : sparse, shape (n, K), exp(−b_ik); weights : shape (n,)
    sizes : shape (K,), Σ of the weights of each window's own samples, all above zero
    prior, prior_error : shape (K,), m and s; NaN where there is none
    """
    f = np.zeros(len(sizes)) if start is None else start - np.mean(start)
    inverse, before = None, np.inf
    for _ in range(500):
        gradient = mbar_gradient(terms, weights, sizes, f, prior, prior_error)
        if inverse is None or before > CHORD_KT:
            inverse = np.linalg.pinv(mbar_hessian(terms, weights, sizes, f, prior_error), rcond=1e-12, hermitian=True)
        step = inverse @ gradient
        step -= step.mean()
        largest = np.abs(step).max()
        step *= min(1.0, 3.0 / max(largest, 1e-300))
        f = f + step
        if largest < 1e-7:
            lost = np.abs(gradient) > 1e-3 * sizes
            if not lost.any():
                break
            f = f + np.where(lost, 3.0 * np.sign(gradient), 0.0)  # so far off that the Hessian knows nothing of them
            f, largest = f - f.mean(), np.inf
        before = largest if largest < 0.5 * before else np.inf  # too slow: the Hessian is renewed
    else:
        warnings.warn("MBAR did not converge: the last step changed a free energy by more than 1e-7 kT", stacklevel=2)
    return f


def mbar_gradient(
    terms: scipy.sparse.csr_matrix,
    weights: np.ndarray,
    sizes: np.ndarray,
    f: np.ndarray,
    prior: np.ndarray | None,
    prior_error: np.ndarray | None,
) -> np.ndarray:
    """Return the gradient of the objective of `weighted_mbar` at f."""
    scale = sizes * np.exp(f - f.max())
    gradient = sizes - scale * (terms.T @ (weights * _inverse(terms @ scale)))
    if prior is not None and prior_error is not None:
        precision = _precision(prior_error)
        residual = f - np.nan_to_num(prior)
        gradient = gradient - precision * (residual - (precision * residual).sum() / precision.sum())
    return np.asarray(gradient)


def mbar_hessian(
    terms: scipy.sparse.csr_matrix,
    weights: np.ndarray,
    sizes: np.ndarray,
    f: np.ndarray,
    prior_error: np.ndarray | None,
) -> np.ndarray:
    """Return minus the Hessian of the objective of `weighted_mbar` at f."""
    shares = window_shares(terms, sizes, f)
    hessian = np.diag(shares.T @ weights) - _weighted_gram(shares, weights)
    if prior_error is not None:
        precision = _precision(prior_error)
        hessian = hessian + np.diag(precision) - np.outer(precision, precision) / precision.sum()
    return hessian


def _weighted_gram(shares: scipy.sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """Return Sᵀ diag(w) S, dense. A few hundred rows at a time and the columns that they have: as samples come mostly
    in the order of their windows these are few, and dense products are several times as fast as sparse ones."""
    gram = np.zeros((shares.shape[1], shares.shape[1]))
    for start in range(0, shares.shape[0], ROWS):
        part = shares[start : start + ROWS]
        present = np.zeros(shares.shape[1], dtype=bool)
        present[part.indices] = True
        columns, index = np.flatnonzero(present), (np.cumsum(present) - 1)[part.indices]
        dense = scipy.sparse.csr_matrix((part.data, index, part.indptr), shape=(part.shape[0], len(columns))).toarray()
        gram[np.ix_(columns, columns)] += (dense * weights[start : start + ROWS, None]).T @ dense
    return gram


def _precision(error: np.ndarray) -> np.ndarray:
    known = np.isfinite(error)
    return np.where(known, 1 / np.where(known, error, 1.0) ** 2, 0.0)


def _inverse(values: np.ndarray) -> np.ndarray:
    return np.divide(1, values, out=np.zeros_like(values), where=values > 0)


def _by_row(matrix: scipy.sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    return np.repeat(values, np.diff(matrix.indptr))


def window_shares(terms: scipy.sparse.csr_matrix, sizes: np.ndarray, f: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return N_k exp(f_k − b_ik) / Σ_l N_l exp(f_l − b_il), rows of sum one, or of zero for a sample far from all."""
    scale = sizes * np.exp(f - f.max())
    data = terms.data * scale[terms.indices] * _by_row(terms, _inverse(terms @ scale))
    return scipy.sparse.csr_matrix((data, terms.indices, terms.indptr), shape=terms.shape)


def bias_terms(cvs: np.ndarray, grid: WindowGrid, windows: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return exp(−b_ik), shape (n, K), without those below the cutoff; a row may be empty."""
    blocks = []
    for start in range(0, len(cvs), 4096):
        reduced = grid.reduced_bias(cvs[start : start + 4096, None], grid.centers[windows])
        blocks.append(scipy.sparse.csr_matrix(np.where(reduced < BIAS_CUTOFF, np.exp(-reduced), 0.0)))
    return scipy.sparse.vstack(blocks).tocsr()


def overlap_matrix(terms: scipy.sparse.csr_matrix, f: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return O, shape (K, K), rows of sum one: how far the samples of one window could be another's.

    O_kl = N_l ∫ p_k p_l / Σ_m N_m p_m, estimated over all samples (Klimovich et al. 2015, equation 17).
    """
    return _weighted_gram(window_shares(terms, sizes, f), weights) / sizes[:, None]


def largest_connected(overlap: np.ndarray, sizes: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Return which windows belong to the largest set (by samples) that is joined throughout; bool, shape (K,).

    Windows are joined by overlap, and those `known` (bool, shape (K,)), which have absolute free energies, in any case.
    """
    linked = overlap + overlap.T > 2 * OVERLAP_THRESHOLD
    if known is not None:
        linked |= known[:, None] & known[None, :]
    _, label = scipy.sparse.csgraph.connected_components(linked, directed=False)
    return np.asarray(label == np.argmax(np.bincount(label, sizes)))


def settled_from(chain: Frames, grid: WindowGrid) -> np.ndarray:
    """Return which frames come after their window's equilibration; bool, shape (n,).

    Chodera 2016 by pymbar's `detect_equilibration`: the first frame kept is the one that leaves most effective samples,
    the latest over CVs and energy, but never more than half of a window's frames are dropped.
    """
    keep = np.ones(len(chain), dtype=bool)
    for rows in rows_by_window(chain.windows):
        if len(rows) < 4:
            continue
        series = [*grid.difference(chain.cvs[rows], chain.labels[rows]).T, chain.energies[rows]]
        starts = [
            _pymbar().timeseries.detect_equilibration(s, nskip=-(-len(rows) // 20))[0] for s in series if np.ptp(s) > 0
        ]
        keep[rows[: min(len(rows) // 2, max(starts, default=0))]] = False
    return keep
