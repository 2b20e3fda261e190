"""A Markov model of the CVs over a finite lag, from bursts: stationary density, passage times and committor without D.

Drift and diffusion are the limit of short lags, and where the CVs have memory there is no lag that is short for the one
and long for the other (see `EffectiveDynamics`). Transition probabilities between cells need no such limit: bursts that
start in equilibrium within each cell give P(τ) of the projected dynamics, whose stationary law is the projected
equilibrium at any lag, memory or not (Sarich, Noé & Schütte 2010, Multiscale Model. Simul. 8, 1154). Passage times
need a lag after which the motion has forgotten how it came into its cell; that they no longer change with the lag is
the sign of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from openmm import unit
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from .cells import LEAST_MEMBERS, CellGrid, bootstrap_weights, spread
from .effective import surface_of_laws
from .free_energy import Surface
from .kramers_moyal import check_bursts, lag_steps
from .units import InputError, strip_units, thermal_energy

__all__ = ["TransitionModel", "estimate_transitions"]

CONVERGED = 1e-9
MOST_STEPS, SHORTEST = 200, 1e-6


@dataclass(frozen=True, eq=False)
class TransitionModel:
    """Where bursts from each cell are after a lag, and what follows when each next stretch forgets the one before.

    >>> bursts = run_bursts(simulation, frames, [phi, psi], steps=2500, interval=50, seed=1)
    >>> grid = CellGrid.of_cvs([phi, psi], bins=18)
    >>> short, long = (
    ...     estimate_transitions(bursts.values, bursts.time_spacing, grid, lag=lag, seed=1) for lag in (0.2, 5.0)
    ... )
    >>> surface = short.surface(300.0)
    >>> time, error = long.mean_first_passage_time(start, target)  # ps; look at several lags

    A set of cells is given as a boolean mask of shape (n_cells,) or as cell indices.

    Attributes
    ----------
    grid : the cells
    lag : ps
    known : bool, shape (n_cells,); the largest set of cells with 8 bursts or more among which the bursts move. A burst
        that leaves them is taken to end where it last was in one of them
    paths : int64, shape (n_bursts, n_times); the cell of each burst at each time up to the lag, −1 outside the grid
    time_spacing : ps, of the paths
    weights : shape (1 + B, n_bursts); how often each burst counts: once, then as resampled
    """

    grid: CellGrid
    lag: float
    known: np.ndarray
    paths: np.ndarray
    time_spacing: float
    weights: np.ndarray

    def _stopped(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where each burst is when it reaches `target` or last is in a known cell, and the step of that."""
        allowed = self.known[self.paths] & (self.paths >= 0)
        steps = np.arange(self.paths.shape[1])
        last = np.where(allowed, steps, 0).max(axis=1)
        hit = allowed & target[self.paths]
        step = np.where(hit.any(axis=1), hit.argmax(axis=1), last)
        return self.paths[np.arange(len(step)), step], step

    def _resampled_counts(self, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield transitions between known cells, shape (n_known, n_known), and the bursts' weights, for each row."""
        index = np.cumsum(self.known) - 1
        n = int(self.known.sum())
        flat = index[self.paths[:, 0]] * n + index[ends]
        for weights in self.weights:
            yield np.bincount(flat, weights=weights, minlength=n * n).reshape(n, n), weights

    def counts(self) -> np.ndarray:
        """Return the transitions over the lag between known cells, float64, shape (n_cells, n_cells).

        A burst that is in no known cell at the end counts as one that stayed where it began, which leaves the ratios
        of the other cells' probabilities as they are.
        """
        ends = self._ends()
        n = self.grid.n_cells
        return np.bincount(self.paths[:, 0] * n + ends, minlength=n * n).reshape(n, n).astype(float)

    def _ends(self) -> np.ndarray:
        ends = self.paths[:, -1]
        return np.where((ends >= 0) & self.known[ends], ends, self.paths[:, 0])

    @cached_property
    def _laws(self) -> np.ndarray:
        """Stationary probabilities, shape (1 + B, n_cells): of the bursts as they are, and resampled."""
        law = np.ones(int(self.known.sum()))
        laws: list[np.ndarray] = []
        for counts, _ in self._resampled_counts(self._ends()):
            try:
                laws.append(reversible_law(counts, laws[0] if laws else law))
            except np.linalg.LinAlgError:  # resampling has cut a cell off
                laws.append(np.full(len(law), np.nan))
        return self._on_grid(np.array(laws))

    def stationary_density(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the stationary density and its error, shape (n_cells,), per CV unit (or units multiplied).

        Of the likeliest transition probabilities in detailed balance, `reversible_law`. NaN where unknown.
        """
        density = self._laws / np.prod(self.grid.spacing)
        return density[0], spread(density[1:])

    def surface(self, temperature: Any) -> Surface:
        """Return −kT log of the stationary density; errors as in `Surface`.

        Parameters
        ----------
        temperature : K or a Quantity
        """
        kt = thermal_energy(float(strip_units(temperature, unit.kelvin)))
        return surface_of_laws(self._laws, kt, self.grid)

    def mean_first_passage_times(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean times from each cell to the set `target` and their errors, shape (n_cells,), ps.

        Passages are seen at the bursts' time spacing, not at the lag: the time that a burst takes to `target` counts as
        it is, and otherwise that to its end plus what the end's cell has.
        """
        times = self._passage_times(self._mask(target, "target"))
        return times[0], spread(times[1:])

    def mean_first_passage_time(self, start: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        """Return the mean time from one set of cells, at its stationary density, to another, and its error, ps."""
        inside = self._mask(start, "start")
        times = self._passage_times(self._mask(target, "target"))[:, inside]
        weight = self._laws[:, inside]
        values = (times * weight).sum(axis=1) / weight.sum(axis=1)
        return float(values[0]), float(spread(values[1:]))

    def _passage_times(self, target: np.ndarray) -> np.ndarray:
        """Return the times from every cell, shape (1 + B, n_cells)."""
        ends, steps = self._stopped(target)
        free = ~target[self.known]
        first = (np.cumsum(self.known) - 1)[self.paths[:, 0]]
        rows = []
        for counts, weights in self._resampled_counts(ends):
            spent = np.bincount(first, weights=weights * steps * self.time_spacing, minlength=len(counts))
            rows.append(np.where(free, _solve(counts, free, spent), 0.0))
        return self._on_grid(np.array(rows))

    def committor(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability to reach the set b before a from each cell, and its error, shape (n_cells,).

        Raises
        ------
        InputError
            if the sets share a cell.
        """
        in_a, in_b = self._mask(a, "a"), self._mask(b, "b")
        if (in_a & in_b).any():
            raise InputError("the two sets of a committor must not share a cell")
        free, reached = ~(in_a | in_b)[self.known], in_b[self.known]
        ends = self._stopped(in_a | in_b)[0]
        rows = [
            np.where(free, _solve(counts, free, counts @ reached), reached)
            for counts, _ in self._resampled_counts(ends)
        ]
        values = self._on_grid(np.array(rows))
        return values[0], spread(values[1:])

    def _mask(self, cells: np.ndarray, name: str) -> np.ndarray:
        return self.grid.mask(cells, self.known, name, "that enough bursts started from")

    def _on_grid(self, values: np.ndarray) -> np.ndarray:
        """Return values of the known cells, shape (rows, n_known), on all cells, NaN elsewhere."""
        result = np.full((len(values), self.grid.n_cells), np.nan)
        result[:, self.known] = values
        return result


def estimate_transitions(
    trajectories: np.ndarray,
    time_spacing: Any,
    grid: CellGrid,
    *,
    lag: float,
    seed: int | np.random.Generator,
    groups: np.ndarray | None = None,
    n_bootstrap: int = 100,
) -> TransitionModel:
    """Return the transition model of bursts over a lag.

    Parameters
    ----------
    trajectories : float64, shape (n_bursts, n_times, d), CV units. Their starts must be an equilibrium sample within
        each cell (`Estimate.starts`); how many there are in which cell does not matter
    time_spacing : ps or a Quantity
    lag : ps, a multiple of the time spacing within the bursts
    groups : shape (n_bursts,); bursts of equal group (those from one configuration) are resampled together
    n_bootstrap : replicas for the errors

    Warns
    -----
    UserWarning
        where two cells or more that bursts move among are cut off from the largest set: they have no value.

    Raises
    ------
    InputError
        for arrays of another shape, a lag outside the bursts, or where no cell has 8 bursts.
    """
    values, spacing = check_bursts(trajectories, time_spacing, grid, groups, n_bootstrap)
    step = int(lag_steps([lag], spacing, values.shape[1], 1)[0])
    values = values[:, : step + 1]
    ids = np.arange(len(values)) if groups is None else np.asarray(groups)
    paths = grid.cells_of(values.reshape(-1, values.shape[2])).reshape(values.shape[:2])
    sound = (paths[:, 0] >= 0) & np.isfinite(values).all(axis=(1, 2))
    paths, ids = paths[sound], ids[sound]
    known = np.bincount(paths[:, 0], minlength=grid.n_cells) >= LEAST_MEMBERS
    if not known.any():
        raise InputError(f"no cell has {LEAST_MEMBERS} bursts: more are needed, or fewer cells")
    labels = _joined(paths, known)
    sizes = np.bincount(labels[known], minlength=labels.max() + 1)
    known &= labels == sizes.argmax()
    apart = np.sort(sizes)[-2] if len(sizes) > 1 else 0
    if apart > 1:  # single cells at the edges are often cut off
        warnings.warn(
            f"bursts of {step * spacing:g} ps do not lead from a set of {apart} cells to the largest set, of "
            f"{known.sum()}, and back: it is left out; start bursts between them, or take a longer lag",
            stacklevel=2,
        )
    inside = known[paths[:, 0]]
    paths, ids = paths[inside], ids[inside]
    weights = bootstrap_weights(paths[:, 0], ids, n_bootstrap, np.random.default_rng(seed))
    return TransitionModel(grid, float(step * spacing), known, paths, spacing, weights)


def _joined(paths: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return a number for each cell, equal for known cells that bursts lead to from each other and back."""
    first, last = paths[:, 0], paths[:, -1]
    both = known[first] & (last >= 0) & known[last]
    n = len(known)
    matrix = np.bincount(first[both] * n + last[both], minlength=n * n).reshape(n, n)
    return np.asarray(connected_components(matrix, directed=True, connection="strong")[1])


def _solve(counts: np.ndarray, free: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the solution of Σ_j (N_i δ_ij − C_ij) x_j = right_i over the cells `free`, x being 0 in the others.

    NaN throughout where it has none, because some cells never get out.
    """
    result = np.zeros(len(counts))
    matrix = np.diag(counts.sum(axis=1)) - counts
    try:
        result[free] = np.linalg.solve(matrix[np.ix_(free, free)], right[free])
    except np.linalg.LinAlgError:
        result[:] = np.nan
    return result


def reversible_law(counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the stationary law of the likeliest transition matrix in detailed balance with itself.

    With x_ij = π_i P_ij, the likelihood Π P_ij^C_ij is greatest where x_ij = (C_ij + C_ji) / (N_i/π_i + N_j/π_j), N_i
    the row sums of C (Prinz et al. 2011, J. Chem. Phys. 134, 174105, equation 29). The law is then the minimum over u
    of the convex Σ_{i≤j} B_ij log(N_i e^{−u_i} + N_j e^{−u_j}) + Σ_i N_i u_i at u = ln π, with B = C + Cᵀ and half of
    that on the diagonal, found by Newton steps that are shortened where they overshoot.

    Parameters
    ----------
    counts : float64, shape (n, n), of a strongly connected graph
    start : shape (n,), positive; a first guess of the law

    Raises
    ------
    numpy.linalg.LinAlgError
        where there is no such law: cells that the others are not reached from, or that are not reached.
    """
    rows = counts.sum(axis=1)
    i, j = np.nonzero(np.triu(counts + counts.T))
    both = np.where(i == j, counts[i, i], counts[i, j] + counts[j, i])
    n, u = len(rows), np.log(start)

    def value(u: np.ndarray) -> float:
        logs = np.log(rows) - u
        return float(both @ np.logaddexp(logs[i], logs[j]) + rows @ u)

    for _ in range(MOST_STEPS):
        logs = np.log(rows) - u
        p = expit(logs[i] - logs[j])
        gradient = rows - np.bincount(i, both * p, n) - np.bincount(j, both * (1 - p), n)
        if np.abs(gradient).max() < CONVERGED * rows.max():
            law = np.exp(u - u.max())
            return law / law.sum()
        hessian = np.zeros((n, n))
        np.add.at(hessian, (i, j), -both * p * (1 - p))
        hessian += hessian.T
        hessian -= np.diag(hessian.sum(axis=1))
        step = np.zeros(n)
        step[1:] = -np.linalg.solve(hessian[1:, 1:], gradient[1:])  # u_0 stays: only differences matter
        here, length = value(u), 1.0
        while value(u + length * step) > here + 1e-4 * length * (gradient @ step) and length > SHORTEST:
            length /= 2
        u = u + length * step
    raise np.linalg.LinAlgError("the stationary law does not settle: too few bursts go back and forth")
