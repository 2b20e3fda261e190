"""Equal cells over the CVs, and moments over what starts in each of them, with bootstrap replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from .cvs import CollectiveVariable
from .system import bin_counts
from .units import InputError

__all__ = ["CellGrid", "CellMoments", "bootstrap_weights", "spread"]

LEAST_MEMBERS = 8


@dataclass(frozen=True, eq=False)
class CellGrid:
    """Equal cells over one or two CVs, numbered with the last CV running fastest.

    >>> grid = CellGrid.of_cvs([phi, psi], bins=18)
    >>> grid.cells_of(np.array([[-1.4, 2.6]]))

    Attributes
    ----------
    edges : per CV, evenly spaced cell edges in its unit; those of a periodic CV cover its period once
    periodic : per CV
    names, units : per CV, for output
    """

    edges: tuple[np.ndarray, ...]
    periodic: tuple[bool, ...]
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        edges = tuple(np.asarray(edge, dtype=float) for edge in self.edges)
        if not 1 <= len(edges) <= 2 or len(self.periodic) != len(edges):
            raise InputError(
                f"a grid needs the edges and the periodicity of one or two CVs, got {len(edges)} and "
                f"{len(self.periodic)}"
            )
        for edge in edges:
            width = np.diff(edge)
            if len(edge) < 4 or not (width > 0).all() or np.ptp(width) > 1e-6 * width.mean():
                raise InputError("the edges of a grid must increase in equal steps and make three cells or more")
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "names", tuple(self.names) or tuple(f"cv{k}" for k in range(len(edges))))
        object.__setattr__(self, "units", tuple(self.units) or ("",) * len(edges))

    @staticmethod
    def of_cvs(cvs: Sequence[CollectiveVariable], bins: int | Sequence[int]) -> CellGrid:
        """Return the grid over the ranges of CVs; `bins` is the number of cells for all or one for each."""
        counts = bin_counts(bins, cvs)
        return CellGrid(
            tuple(np.linspace(*_range(cv), n + 1) for cv, n in zip(cvs, counts, strict=True)),
            tuple(cv.period is not None for cv in cvs),
            tuple(cv.name for cv in cvs),
            tuple(cv.unit for cv in cvs),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(edge) - 1 for edge in self.edges)

    @property
    def n_cells(self) -> int:
        return int(np.prod(self.shape))

    @property
    def spacing(self) -> np.ndarray:
        """float64, shape (d,), CV units."""
        return np.array([edge[1] - edge[0] for edge in self.edges])

    @property
    def centers(self) -> np.ndarray:
        """float64, shape (n_cells, d), CV units."""
        axes = [0.5 * (edge[1:] + edge[:-1]) for edge in self.edges]
        return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)

    def wrap(self, values: np.ndarray) -> np.ndarray:
        """Return values (..., d) with periodic CVs brought into their range."""
        low = np.array([edge[0] for edge in self.edges])
        return low + self._modulo(values - low, 0.0)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a − b, shape (..., d), the shorter way round for a periodic CV."""
        return self._modulo(np.asarray(a, dtype=float) - b, 0.5)

    def _modulo(self, values: np.ndarray, offset: float) -> np.ndarray:
        period = np.array([edge[-1] - edge[0] for edge in self.edges])
        return values - np.where(self.periodic, period * np.floor(values / period + offset), 0.0)

    def cells_of(self, values: np.ndarray) -> np.ndarray:
        """Return the cell, int64, shape (n,), of each of values (n, d); −1 outside the grid or for NaN."""
        low = np.array([edge[0] for edge in self.edges])
        scaled = np.nan_to_num((self.wrap(np.asarray(values, dtype=float)) - low) / self.spacing, nan=-1.0)
        index = np.floor(np.clip(scaled, -1, np.array(self.shape))).astype(np.int64)
        index = np.where(self.periodic, np.where(index == self.shape, 0, index), index)  # rounding at the end
        inside = np.asarray(np.logical_and(index >= 0, index < self.shape).all(axis=1))
        cells = np.ravel_multi_index(tuple(np.where(inside[:, None], index, 0).T), self.shape)
        return np.where(inside, cells, -1)

    def mask(self, cells: np.ndarray, known: np.ndarray, name: str, otherwise: str) -> np.ndarray:
        """Return a set of cells, a mask or indices, as a mask of those that are known.

        Raises
        ------
        InputError
            for a mask of another shape, or a set without a known cell: `name` and, for that, what to say of it.
        """
        cells = np.asarray(cells)
        inside = np.zeros(self.n_cells, dtype=bool)
        if cells.dtype == bool and cells.shape != inside.shape:
            raise InputError(f"{name} must be a mask of shape {inside.shape} or cell indices, got shape {cells.shape}")
        inside[cells] = True
        inside &= known
        if not inside.any():
            raise InputError(f"{name} has no cell {otherwise}: choose other cells")
        return inside

    def neighbours(self, offset: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return (cells, the cells that lie `offset` cells from them), where there are such."""
        index = np.stack(np.unravel_index(np.arange(self.n_cells), self.shape), axis=1) + np.array(offset)
        index = np.where(self.periodic, index % self.shape, index)
        there = np.logical_and(index >= 0, index < self.shape).all(axis=1)
        return np.flatnonzero(there), np.ravel_multi_index(tuple(index[there].T), self.shape)


def _range(cv: CollectiveVariable) -> tuple[float, float]:
    assert cv.minimum is not None
    assert cv.maximum is not None
    return cv.minimum, cv.maximum


class CellMoments:
    """Moments over the bursts of each cell, for the bursts as they are (row 0) and resampled (the other rows)."""

    def __init__(self, cells: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> None:
        n, bursts = len(counts), len(cells)
        self.member = scipy.sparse.csr_matrix((np.ones(bursts), (cells, np.arange(bursts))), shape=(n, bursts))
        self.weights = np.ascontiguousarray(weights.T)
        self.total = self._sum(np.ones(bursts))
        self.known = (counts >= LEAST_MEMBERS) & (self.total > 1)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.asarray((self.member.multiply(values[None, :]).tocsr() @ self.weights).T)

    def moments(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean, shape (rows, n_cells, d), and covariance, (rows, n_cells, d, d), of values (n_bursts, d)."""
        d = values.shape[1]
        total = np.where(self.known, self.total, np.nan)
        mean = np.stack([self._sum(values[:, k]) / total for k in range(d)], axis=-1)
        covariance = np.empty((*total.shape, d, d))
        for i in range(d):
            for j in range(i + 1):
                product = self._sum(values[:, i] * values[:, j]) / total - mean[..., i] * mean[..., j]
                covariance[..., i, j] = covariance[..., j, i] = product * total / (total - 1)
        return mean, covariance


def bootstrap_weights(cells: np.ndarray, groups: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each burst counts, shape (1 + count, n_bursts): once, then as resampled.

    Groups are drawn with replacement from those that start in the same cell (that of the group's first burst), so that
    no cell is emptied by chance.
    """
    first, group = np.unique(groups, return_index=True, return_inverse=True)[1:]
    order = np.argsort(cells[first], kind="stable")
    sizes = np.unique(cells[first], return_counts=True)[1]
    offset = np.repeat(np.cumsum(sizes) - sizes, sizes)
    among = np.repeat(sizes, sizes)
    weights = np.ones((1 + count, len(cells)))
    for row in weights[1:]:
        drawn = order[offset + (rng.random(len(order)) * among).astype(np.int64)]
        row[:] = np.bincount(drawn, minlength=len(order))[group]
    return weights


def spread(replicas: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the first axis, NaN where fewer than half of the values are finite."""
    finite = np.isfinite(replicas)
    count = finite.sum(axis=0)
    safe = np.where(finite, replicas, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = safe.sum(axis=0) / count
        variance = (np.where(finite, replicas - mean, 0.0) ** 2).sum(axis=0) / (count - 1)
    return np.where(2 * count >= max(len(replicas), 4), np.sqrt(variance), np.nan)
