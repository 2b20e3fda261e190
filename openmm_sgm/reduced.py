"""The reduced equation of the CVs, dξ = b dt + √(2D) dW, on a grid of cells: density, passage times, committor, paths.

The Fokker–Planck equation ∂p/∂t = −∇·J, J_i = b_i p − ∂_j (D_ij p) (Itô; Risken, The Fokker-Planck Equation, ch. 4), is
made a Markov chain that jumps between neighbouring cells. D is split into diffusions along the axes and, for its
off-diagonal part, along a diagonal of the grid (Kushner & Dupuis, Numerical Methods for Stochastic Control, ch. 5);
along each the flux is Scharfetter and Gummel's (IEEE Trans. Electron Devices 16, 64, 1969), for which
p ∝ (1/D) exp(∫ b/D) is exact in one dimension, ∫ by the trapezoidal rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
from scipy.linalg import expm
from scipy.ndimage import map_coordinates
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from .cells import CellGrid
from .units import InputError

__all__ = ["ReducedEquation"]

LARGEST_CROSS = 0.95
"""Of the off-diagonal diffusion, as a share of what the jumps along the axes leave positive."""


@dataclass(frozen=True, eq=False)
class ReducedEquation:
    """Drift and diffusion on a grid, and what follows from them.

    Between cells that are known nothing is assumed about those that are not: no flux goes there, nor over the ends of
    a CV that is not periodic. Cells that are cut off from the largest connected set of known ones count as unknown.

    A set of cells is given as a boolean mask of shape (n_cells,) or as cell indices; it is reached at its outer edge.

    Attributes
    ----------
    grid : the cells
    drift : float64, shape (n_cells, d), CV unit/ps; of the Itô equation. NaN where unknown
    diffusion : float64, shape (n_cells, d, d), CV unit²/ps, symmetric; a cell where it is not positive definite is
        unknown. An off-diagonal element too large for jumps between neighbouring cells (it would need one over a
        longer diagonal) is cut to `LARGEST_CROSS` of the largest possible
    log_density : float64, shape (n_cells,), of the stationary law where that is known, see `on_surface`; None where
        the drift alone decides
    """

    grid: CellGrid
    drift: np.ndarray
    diffusion: np.ndarray
    log_density: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, d = self.grid.n_cells, len(self.grid.shape)
        if np.shape(self.drift) != (n, d) or np.shape(self.diffusion) != (n, d, d):
            raise InputError(
                f"drift and diffusion must have shapes ({n}, {d}) and ({n}, {d}, {d}), got {np.shape(self.drift)} "
                f"and {np.shape(self.diffusion)}"
            )
        if not self._usable.any():
            raise InputError("no cell has a drift and a positive diffusion: more bursts are needed")

    @staticmethod
    def on_surface(grid: CellGrid, log_density: np.ndarray, diffusion: np.ndarray) -> ReducedEquation:
        """Return overdamped motion with a stationary law that is known: b = D ∇ln p + ∇·D, in detailed balance.

        log_density : float64, shape (n_cells,), −F/kT of a free-energy surface up to a constant; NaN where unknown
        diffusion : float64, shape (n_cells, d, d), CV unit²/ps
        """
        drift = np.einsum("nij,nj->ni", diffusion, _gradient(grid, log_density))
        for j in range(len(grid.shape)):
            drift = drift + np.stack([_gradient(grid, column)[:, j] for column in diffusion[:, :, j].T], axis=1)
        return ReducedEquation(grid, drift, diffusion, log_density)

    @cached_property
    def _usable(self) -> np.ndarray:
        finite = np.isfinite(self.drift).all(axis=1) & np.isfinite(self.diffusion).all(axis=(1, 2))
        if self.log_density is not None:
            finite &= np.isfinite(self.log_density)
        positive = np.linalg.eigvalsh(np.where(finite[:, None, None], self.diffusion, -np.eye(len(self.grid.shape))))
        return np.asarray((positive > 0).all(axis=1))

    @cached_property
    def _jumps(self) -> tuple[np.ndarray, ...]:
        """Cells i and j of each jump, the diffusion a_i along it in cells²/ps, and v = ∫ b/D from i to j."""
        h = self.grid.spacing
        diffusion = self.diffusion / np.multiply.outer(h, h)
        if len(h) == 1:
            along: dict[tuple[int, ...], np.ndarray] = {(1,): diffusion[:, 0, 0]}
        else:
            cross = diffusion[:, 0, 1]
            most = LARGEST_CROSS * np.fmin(diffusion[:, 0, 0], diffusion[:, 1, 1])
            cross = np.clip(cross, -most, most)
            diffusion = diffusion.copy()
            diffusion[:, 0, 1] = diffusion[:, 1, 0] = cross
            along = {
                (1, 0): diffusion[:, 0, 0] - np.abs(cross),
                (0, 1): diffusion[:, 1, 1] - np.abs(cross),
                (1, 1): np.fmax(cross, 0),
                (1, -1): np.fmax(-cross, 0),
            }
        usable = self._usable
        gradient = np.zeros_like(self.drift)  # D⁻¹ b, which is −∇F/kT for constant D
        gradient[usable] = np.linalg.solve(diffusion[usable], (self.drift[usable] / h)[..., None])[..., 0]
        parts = []
        for offset, a in along.items():
            i, j = self.grid.neighbours(offset)
            both = usable[i] & usable[j]
            i, j = i[both], j[both]
            if self.log_density is None:
                v = 0.5 * (gradient[i] + gradient[j]) @ np.array(offset, dtype=float)
            else:
                both = (a[i] > 0) & (a[j] > 0)
                i, j = i[both], j[both]
                v = self.log_density[j] + np.log(a[j]) - self.log_density[i] - np.log(a[i])
            parts += [(i, j, a[i], v), (j, i, a[j], -v)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    @cached_property
    def known(self) -> np.ndarray:
        """bool, shape (n_cells,): the largest connected set of cells with drift and diffusion."""
        i, j, a, _ = self._jumps
        n = self.grid.n_cells
        graph = scipy.sparse.coo_matrix((a > 0, (i, j)), shape=(n, n))
        labels = connected_components(graph, connection="strong")[1]
        return np.asarray(self._usable & (labels == np.bincount(labels[self._usable]).argmax()))

    def rates(self, absorbing: np.ndarray | None = None) -> scipy.sparse.csr_matrix:
        """Return the generator of the chain: rates i → j in 1/ps, shape (n_cells, n_cells), with rows that sum to zero.

        Jumps into cells of `absorbing` (a mask) end at their edge, half as far.
        """
        i, j, a, v = self._jumps
        rate = a * _bernoulli(-v)
        if absorbing is not None:
            rate = np.where(absorbing[j], 2 * a * _bernoulli(-v / 2), rate)
        keep = self.known[i] & self.known[j]
        n = self.grid.n_cells
        matrix = scipy.sparse.coo_matrix((rate[keep], (i[keep], j[keep])), shape=(n, n)).tocsr()
        return matrix - scipy.sparse.diags(np.asarray(matrix.sum(axis=1)).ravel())

    def stationary_density(self) -> np.ndarray:
        """Return the stationary density, shape (n_cells,), per CV unit (or units multiplied); NaN where unknown."""
        cells = np.flatnonzero(self.known)
        matrix = self.rates()[cells][:, cells]
        weight = np.ones(len(cells))
        if len(cells) > 1:  # one cell's weight set to 1: the rest is an M-matrix, solved with small relative errors
            weight[1:] = _solve(-matrix[1:, 1:].T, np.asarray(matrix[0, 1:].todense()).ravel())
        density = np.full(self.grid.n_cells, np.nan)
        density[cells] = np.fmax(weight, 0) / (np.fmax(weight, 0).sum() * np.prod(self.grid.spacing))
        return density

    def mean_first_passage_times(self, target: np.ndarray) -> np.ndarray:
        """Return the mean time, ps, from each cell's centre to the set `target`, shape (n_cells,); zero within it."""
        inside = self.mask(target, "target")
        times = np.where(self.known, 0.0, np.nan)
        free = np.flatnonzero(self.known & ~inside)
        times[free] = _solve(-self.rates(inside)[free][:, free], np.ones(len(free)))
        return times

    def mean_first_passage_time(self, start: np.ndarray, target: np.ndarray) -> float:
        """Return the mean time, ps, to `target` from the stationary density within the set `start`."""
        inside = self.mask(start, "start")
        weight = self.stationary_density()[inside]
        return float(weight @ self.mean_first_passage_times(target)[inside] / weight.sum())

    def moments(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what the chain that starts in each cell has done after `time` ps: moments of its displacement.

        Returns
        -------
        mean, covariance : shapes (n_cells, d) and (n_cells, d, d), CV units; NaN where unknown
        at_edge : shape (n_cells,), the probability to be in a cell beside an unknown one or an end of the grid
        """
        cells = np.flatnonzero(self.known)
        law = expm(time * self.rates()[cells][:, cells].toarray())
        centers = self.grid.centers[cells]
        step = self.grid.difference(centers[None], centers[:, None])
        n, d = self.drift.shape
        mean, covariance, at_edge = np.full((n, d), np.nan), np.full((n, d, d), np.nan), np.full(n, np.nan)
        mean[cells] = np.einsum("ij,ijk->ik", law, step)
        square = np.stack([np.einsum("ij,ijk->ik", law, step * step[..., k : k + 1]) for k in range(d)], axis=-1)
        covariance[cells] = square - mean[cells][:, :, None] * mean[cells][:, None, :]
        inner = np.ones(n, dtype=bool)
        for offset in np.concatenate([np.eye(d, dtype=int), -np.eye(d, dtype=int)]):
            here, there = self.grid.neighbours(tuple(offset))
            inside = np.zeros(n, dtype=bool)
            inside[here] = self.known[there]
            inner &= inside
        at_edge[cells] = law[:, ~inner[cells]].sum(axis=1)
        return mean, covariance, at_edge

    def committor(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the probability to reach the set `b` before `a`, shape (n_cells,); 0 in a, 1 in b, NaN where unknown.

        Raises
        ------
        InputError
            if the sets share a cell.
        """
        in_a, in_b = self.mask(a, "a"), self.mask(b, "b")
        if (in_a & in_b).any():
            raise InputError("the two sets of a committor must not share a cell")
        matrix = self.rates(in_a | in_b)
        result = np.where(self.known, in_b.astype(float), np.nan)
        free = np.flatnonzero(self.known & ~in_a & ~in_b)
        result[free] = _solve(-matrix[free][:, free], np.asarray(matrix[free][:, in_b].sum(axis=1)).ravel())
        return result

    def simulate(
        self, starts: np.ndarray, *, time_step: float, steps: int, interval: int, seed: int | np.random.Generator
    ) -> np.ndarray:
        """Return paths by the Euler–Maruyama scheme, shape (n, steps // interval + 1, d), periodic CVs wrapped.

        Drift and diffusion are interpolated linearly between the centres of cells, those of unknown cells taken from
        the nearest known one. A step into an unknown cell or off the grid is not made.

        Parameters
        ----------
        starts : float64, shape (n, d), CV units, in known cells
        time_step : ps; D time_step must be small against the square of the cells' spacing
        """
        rng = np.random.default_rng(seed)
        if steps < 1 or interval < 1 or steps % interval or not time_step > 0:
            raise InputError(
                f"steps must be a multiple of interval and time_step positive, got {steps}, {interval}, {time_step}"
            )
        here = self.grid.wrap(np.asarray(starts, dtype=float))
        if here.ndim != 2 or here.shape[1] != len(self.grid.shape) or not self._inside(here).all():
            raise InputError("starts must have shape (n, d) and lie in known cells of the grid")
        drift, diffusion = self._field(self.drift), self._field(self.diffusion)
        path = [here]
        for step in range(1, steps + 1):
            at = self._grid_coordinates(here)
            root = np.linalg.cholesky(2 * time_step * _interpolate(diffusion, at))
            noise = np.einsum("nij,nj->ni", root, rng.standard_normal(here.shape))
            moved = self.grid.wrap(here + time_step * _interpolate(drift, at) + noise)
            here = np.where(self._inside(moved)[:, None], moved, here)
            if step % interval == 0:
                path.append(here)
        return np.stack(path, axis=1)

    def mask(self, cells: np.ndarray, name: str) -> np.ndarray:
        """Return a set of cells, a mask or indices, as a mask of its known cells."""
        return self.grid.mask(cells, self.known, name, "whose drift and diffusion are known")

    def _inside(self, values: np.ndarray) -> np.ndarray:
        cells = self.grid.cells_of(values)
        return np.asarray((cells >= 0) & self.known[np.fmax(cells, 0)])

    def _field(self, values: np.ndarray) -> np.ndarray:
        """Return values on the grid, shape (..., *shape padded by a cell on each side), unknown ones filled."""
        low = np.array([edge[0] for edge in self.grid.edges])
        box = [edge[-1] - edge[0] if p else 0.0 for edge, p in zip(self.grid.edges, self.grid.periodic, strict=True)]
        centers, known = self.grid.centers - low, np.flatnonzero(self.known)
        nearest = cKDTree(centers[known], boxsize=box).query(centers)[1]
        tail = values.shape[1:]
        field = np.moveaxis(values[known[nearest]].reshape(*self.grid.shape, -1), -1, 0)
        for axis, periodic in enumerate(self.grid.periodic):
            width = [(0, 0)] * field.ndim
            width[axis + 1] = (1, 1)
            field = np.pad(field, width, mode="wrap" if periodic else "edge")
        return field.reshape(*tail, *field.shape[1:])

    def _grid_coordinates(self, values: np.ndarray) -> np.ndarray:
        low = np.array([edge[0] for edge in self.grid.edges])
        return np.asarray(((values - low) / self.grid.spacing + 0.5).T)


def _gradient(grid: CellGrid, field: np.ndarray) -> np.ndarray:
    """Return the gradient (n_cells, d) of a field on the cells, one-sided beside unknown cells and ends."""
    columns = []
    for k, h in enumerate(grid.spacing):
        slopes = np.full((2, len(field)), np.nan)
        for row, side in zip(slopes, (1, -1), strict=True):
            offset = [0] * len(grid.shape)
            offset[k] = side
            here, there = grid.neighbours(tuple(offset))
            row[here] = side * (field[there] - field[here]) / h
        count = np.isfinite(slopes).sum(axis=0)
        columns.append(np.where(count > 0, np.nansum(slopes, axis=0) / np.fmax(count, 1), np.nan))
    return np.stack(columns, axis=1)


def _interpolate(field: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return a field of any leading shape at points (d, n): shape (n, *leading)."""
    leading = field.shape[: field.ndim - len(at)]
    result = np.empty((at.shape[1], *leading))
    for index in np.ndindex(leading):
        result[(slice(None), *index)] = map_coordinates(field[index], at, order=1, mode="nearest")
    return result


def _bernoulli(x: np.ndarray) -> np.ndarray:
    """Return x / (exp(x) − 1), without underflow where noise makes x absurd."""
    small = np.abs(x) < 1e-6
    x = np.where(small, 1e-6, x)
    return np.where(small, 1.0, x / np.expm1(np.fmin(x, 100.0)))


def _solve(matrix: scipy.sparse.spmatrix, right: np.ndarray) -> np.ndarray:
    """Solve with an M-matrix (positive diagonal, no positive element off it), which needs no pivoting."""
    if not len(right):
        return right
    options = {"SymmetricMode": True}
    try:
        solver = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    except RuntimeError:  # exactly singular
        raise InputError("drift and diffusion are too noisy to be solved for: more bursts are needed") from None
    return np.asarray(solver.solve(right))
