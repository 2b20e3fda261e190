"""The generator's own estimates: importance weights of its draws and absolute free energies of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .frames import Frames, rows_by_window

__all__ = [
    "LEAST_EFFECTIVE",
    "Draws",
    "effective_sample_size",
    "effective_weights",
    "generator_free_energies",
    "resample_draws",
    "resampled_free_energies",
]

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
    for rows in rows_by_window(frames.windows):
        w = np.exp(frames.log_weights[rows] - frames.log_weights[rows].max())
        weights[rows] = w * w.sum() / (w**2).sum()
    return weights


def generator_free_energies(rounds: Sequence[Draws], n_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return F(c) = −log E_q[exp(−β(U + bias_c))|Z|^½ / q(x|c)] and its standard error, kT (README, "How it works", 6).

    Rounds are averaged by their effective numbers. NaN for a window with fewer than `LEAST_EFFECTIVE` in all.
    """
    total, log_mean = np.zeros((2, n_windows))
    variance = np.zeros(n_windows)
    for draws in rounds:
        for rows in rows_by_window(draws.frames.windows):
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


def resample_draws(draws: Draws, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each draw is taken, float32, shape (n, B); those of weight zero are resampled as well."""
    counts = np.ones((len(draws.frames), n_bootstrap), dtype=np.float32)
    for rows in rows_by_window(draws.frames.windows):
        n = int(draws.drawn[draws.frames.windows[rows[0]]])
        p = np.full(len(rows) + 1, 1 / n)
        p[-1] = max(0.0, 1 - len(rows) / n)
        counts[rows] = rng.multinomial(n, p / p.sum(), size=n_bootstrap).T[:-1]
    return counts


def resampled_free_energies(rounds: Sequence[Draws], all_counts: Sequence[np.ndarray], n_windows: int) -> np.ndarray:
    """Return the generator's free energies under resampling, shape (B, n_windows), NaN as in the estimate."""
    n_bootstrap = all_counts[0].shape[1]
    total, value = np.zeros(n_windows), np.zeros((n_bootstrap, n_windows))
    for draws, counts in zip(rounds, all_counts, strict=True):
        for rows in rows_by_window(draws.frames.windows):
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
