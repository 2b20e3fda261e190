"""The generator's own estimates: importance weights of its draws and absolute free energies of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .frames import Frames, rows_by_window

__all__ = ["LEAST_EFFECTIVE", "Draws", "Weights", "effective_sample_size", "pareto_shape"]

LEAST_EFFECTIVE = 3.0
"""A bin with fewer effective samples has no error that could be trusted, and is left empty."""
LEAST_EFFECTIVE_DRAWS = 10.0
"""A window whose draws are worth fewer has no free energy of its own."""
NEARLY_EQUAL = 0.5
"""Effective share of draws from which the tail of their weights does not matter."""


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


def pareto_shape(log_weights: np.ndarray, drawn: int) -> float:
    """Return k̂, the shape of a generalised Pareto law fitted to the largest weights; inf where they are too few.

    Weights have a finite variance where k < 1/2, and their mean converges in practice where k̂ is below about 0.7
    (Vehtari et al. 2024, JMLR 25 (72)). The fit is that of Zhang & Stephens 2009, Technometrics 51, 316, with the weak
    prior of Vehtari et al., appendix G; the tail is the largest min(n/5, 3√n) weights.

    Parameters
    ----------
    log_weights : of the draws whose weight is not zero; drawn : n, how many there were with the others
    """
    tail = int(min(drawn / 5, 3 * np.sqrt(drawn)))
    if tail < 5 or len(log_weights) <= tail:
        return float("inf")
    ordered = np.sort(log_weights)
    top = np.exp(ordered[-tail:] - ordered[-1])
    x = top - np.exp(ordered[-tail - 1] - ordered[-1])
    if x[-1] <= 0:
        return -float("inf")  # the largest weights are all alike
    x = np.maximum(x, 1e-300)
    m = 30 + int(np.sqrt(tail))
    quartile = x[int(tail / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    k = np.log1p(-theta[:, None] * x).mean(axis=1)
    log_likelihood = tail * (np.log(-theta / k) - k - 1)
    weights = np.exp(log_likelihood - np.logaddexp.reduce(log_likelihood))
    shape = np.log1p(-(theta @ weights) * x).mean()
    return float((shape * tail + 0.5 * 10) / (tail + 10))


@dataclass(frozen=True)
class _Half:
    """Every other draw of a window: rows of those with a weight, how many draws it is of, whether the weights of *the
    other* half can be trusted."""

    window: int
    rows: np.ndarray
    drawn: int
    admitted: bool


class Weights:
    """The importance weights of all rounds' draws together.

    Whatever generator made a draw, the expectation of its weight is the same, exp(−F(c)), so the rounds are pooled: the
    mean is over all that were drawn for a window. Weighing rounds by their own effective numbers would favour those
    that missed the large weights.

    So would asking draws whether they can be trusted and keeping those that say yes: a mean is taken for good where the
    large weights happen to be missing. Each window's draws are split in two, every other one, and either half counts
    where the *other* can be trusted, unless one or two of its own draws carry it all.

    Attributes
    ----------
    windows : int64, shape (n,); log_weights : float64, shape (n,), round after round
    drawn : int64, shape (n_windows,)
    """

    def __init__(self, rounds: Sequence[Draws], n_windows: int) -> None:
        self.windows = np.concatenate([np.zeros(0, dtype=np.int64), *(draws.frames.windows for draws in rounds)])
        self.log_weights = np.concatenate([np.zeros(0), *(draws.frames.log_weights for draws in rounds)])
        self.drawn = np.sum([np.zeros(n_windows, dtype=np.int64), *(draws.drawn for draws in rounds)], axis=0)
        self._rows = [rows for rows in rows_by_window(self.windows) if len(rows)]

    @cached_property
    def effective(self) -> np.ndarray:
        """Weights, shape (n,), that add up to the effective number in each window, trusted or not."""
        weights = np.zeros(len(self.windows))
        for rows in self._rows:
            weights[rows] = self._effective(rows)
        return weights

    @cached_property
    def counted(self) -> np.ndarray:
        """Weights, shape (n,), that add up to the effective number of a window's admitted draws; 0 for the others."""
        weights = np.zeros(len(self.windows))
        for rows, _ in self._admitted.values():
            weights[rows] = self._effective(rows)
        return weights

    @cached_property
    def trusted(self) -> np.ndarray:
        """Whether any of a window's draws are admitted, bool, shape (n_windows,)."""
        trusted = np.zeros(len(self.drawn), dtype=bool)
        trusted[list(self._admitted)] = True
        return trusted

    def _effective(self, rows: np.ndarray) -> np.ndarray:
        w = np.exp(self.log_weights[rows] - self.log_weights[rows].max())
        return np.asarray(w * w.sum() / (w**2).sum())

    def _can_be_trusted(self, rows: np.ndarray, drawn: int) -> bool:
        """Return whether enough of the weights count, and k̂ is below min(1 − 1/log₁₀ n, 0.7) (Vehtari et al. 2024,
        equation 13) or does not matter, the weights being nearly equal."""
        effective = float(self._effective(rows).sum()) if len(rows) else 0.0
        if effective < LEAST_EFFECTIVE_DRAWS / 2:
            return False
        if effective >= NEARLY_EQUAL * drawn:
            return True
        return pareto_shape(self.log_weights[rows], drawn) < min(1 - 1 / np.log10(drawn), 0.7)

    @cached_property
    def _halves(self) -> list[_Half]:
        halves = []
        for rows in self._rows:
            window = int(self.windows[rows[0]])
            without_weight = int(self.drawn[window]) - len(rows)
            parts = (rows[::2], rows[1::2])
            sizes = (len(parts[0]) + without_weight // 2, len(parts[1]) + without_weight - without_weight // 2)
            trust = [self._can_be_trusted(part, size) for part, size in zip(parts, sizes, strict=True)]
            halves += [
                _Half(window, part, size, other and self._effective(part).sum() >= LEAST_EFFECTIVE)
                for part, size, other in zip(parts, sizes, trust[::-1], strict=True)
                if len(part)
            ]
        return halves

    @cached_property
    def _admitted(self) -> dict[int, tuple[np.ndarray, int]]:
        """Rows of each window's admitted draws, and how many draws these are with those of weight zero."""
        found: dict[int, tuple[np.ndarray, int]] = {}
        for half in self._halves:
            if half.admitted:
                rows, drawn = found.get(half.window, (np.zeros(0, dtype=np.int64), 0))
                found[half.window] = (np.concatenate([rows, half.rows]), drawn + half.drawn)
        return found

    def free_energies(self, rough: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return F(c) = −log E_q[exp(−β(U + bias_c))|Z|^½ / q(x|c)] and its standard error, kT, shape (n_windows,).

        README, "How it works", 6. NaN for a window whose weights cannot be trusted, unless a rough value will do.
        """
        f, error = np.full((2, len(self.drawn)), np.nan)
        every = {int(self.windows[rows[0]]): (rows, int(self.drawn[self.windows[rows[0]]])) for rows in self._rows}
        for window, (rows, n) in (every if rough else self._admitted).items():
            top = self.log_weights[rows].max()
            w = np.exp(self.log_weights[rows] - top)
            mean, second = w.sum() / n, (w**2).sum() / n
            f[window] = -np.log(mean) - top
            error[window] = np.sqrt(max(second / mean**2 - 1, 1 / n) / n)
        return f, error

    def resample(self, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
        """Return how often each draw is taken, float32, shape (n, B); those of weight zero are resampled as well.

        Those that are not admitted are left as they are.
        """
        counts = np.ones((len(self.windows), n_bootstrap), dtype=np.float32)
        for rows, n in (self._admitted[window] for window in sorted(self._admitted)):
            p = np.full(len(rows) + 1, 1 / n)
            p[-1] = max(0.0, 1 - len(rows) / n)
            counts[rows] = rng.multinomial(n, p / p.sum(), size=n_bootstrap).T[:-1]
        return counts

    def resampled_free_energies(self, counts: np.ndarray) -> np.ndarray:
        """Return `free_energies` under resampling, shape (B, n_windows), NaN as there; counts by `resample`."""
        f = np.full((counts.shape[1], len(self.drawn)), np.nan)
        for window, (rows, n) in self._admitted.items():
            top = self.log_weights[rows].max()
            mean = np.exp(self.log_weights[rows] - top) @ counts[rows] / n
            with np.errstate(divide="ignore"):
                f[:, window] = np.where(mean > 0, -np.log(mean) - top, np.nan)
        return f
