"""Basins of a free-energy surface: which bins run down to which minimum, how likely each is, and what lies between.

Every bin belongs to the minimum that steepest descent from it ends in. Two basins are one where the barrier between
them, seen from the higher minimum, is lower than 1 kT or than twice its standard error: such a barrier is not known to
be there. Basins are lettered by descending population.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from .free_energy import Estimate, Surface
from .units import InputError, thermal_energy

__all__ = ["Barrier", "Basin", "Basins", "find_basins", "letter"]

NOWHERE = -1
"""The basin of a bin that belongs to none."""
LEAST_STD_ERRORS = 2.0
OFFSET = 1.0
"""kJ/mol; added to what a sparse graph is weighted with, where a weight of zero would be no edge."""


@dataclass(frozen=True)
class Basin:
    """One basin.

    Attributes
    ----------
    label : A, B, C, … by descending population
    minimum : float64, shape (d,), centre of its lowest bin, in the CVs' units
    population, population_error : probability of its bins in the unbiased ensemble
    free_energy, free_energy_error : kJ/mol, of the basin as a whole, −kT ln of its population over that of A
    """

    label: str
    minimum: np.ndarray
    population: float
    population_error: float
    free_energy: float
    free_energy_error: float


@dataclass(frozen=True)
class Barrier:
    """The lowest path between two basins that meet.

    Attributes
    ----------
    first, second : indices of the two basins
    top : flat index of the highest bin of the path
    height, std_error : kJ/mol; free energy of that bin over the surface's minimum, and its standard error
    path : int64, flat indices of the bins from one minimum to the other
    """

    first: int
    second: int
    top: int
    height: float
    std_error: float
    path: np.ndarray


@dataclass(frozen=True)
class Basins:
    """The basins of a surface, in the order in which they are lettered.

    Attributes
    ----------
    basin_of : int64, shape of the surface; index of each bin's basin, −1 where there is none
    minima : int64, shape (n,); flat index of each basin's lowest bin
    barriers : between basins that meet, the lowest first; n − 1 of them where all sampled bins hang together
    surface, kt : what they are of
    """

    basin_of: np.ndarray
    minima: np.ndarray
    barriers: tuple[Barrier, ...]
    surface: Surface
    kt: float

    def __len__(self) -> int:
        return len(self.minima)

    def point(self, index: int) -> np.ndarray:
        """Return the centre of the bin with that flat index, float64, shape (d,)."""
        places = np.unravel_index(index, self.basin_of.shape)
        return np.array([axis[k] for axis, k in zip(self.surface.centers, places, strict=True)])

    def flank(self, barrier: Barrier) -> np.ndarray:
        """Return the bins of a barrier's path that lie in the upper half of its rise from the higher minimum."""
        values = self.surface.free_energy.ravel()
        foot = max(values[self.minima[barrier.first]], values[self.minima[barrier.second]])
        return barrier.path[values[barrier.path] >= 0.5 * (foot + barrier.height)]

    def populations(self, estimate: Estimate) -> list[Basin]:
        """Return the basins with populations and free energies, and their errors by the estimate's bootstrap.

        The free energy over A's is of the share of each basin in the two together, so that what their errors have in
        common cancels. Errors are NaN where fewer than ten effective samples carry the weight, see `Estimate.average`.
        """
        owner = self.of_points(estimate.samples.column("cvs"))
        inside = (owner[:, None] == np.arange(len(self))).astype(float)
        population, error = estimate.average(inside)
        found = []
        for k in range(len(self)):
            free, free_error = (0.0, 0.0) if k == 0 else self._over_the_first(estimate, owner, k)
            found.append(
                Basin(
                    letter(k), self.point(int(self.minima[k])), float(population[k]), float(error[k]), free, free_error
                )
            )
        return found

    def _over_the_first(self, estimate: Estimate, owner: np.ndarray, k: int) -> tuple[float, float]:
        in_either = (owner == 0) | (owner == k)
        if not in_either.any():
            return float("nan"), float("nan")
        share, error = estimate.average(owner == k, np.where(in_either, 0.0, -np.inf))
        if not 0 < share < 1:
            return float("nan"), float("nan")
        return float(self.kt * np.log((1 - share) / share)), float(self.kt * error / (share * (1 - share)))

    def of_points(self, values: np.ndarray) -> np.ndarray:
        """Return the basin of each of the CV values (n, d), int64, shape (n,); −1 where there is none."""
        bins = self.surface.bins_of(values)
        return np.where(bins < 0, NOWHERE, self.basin_of.ravel()[bins])


def letter(index: int) -> str:
    """Return A, B, …, Z, AA, AB, … for 0, 1, …"""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def find_basins(
    surface: Surface, periodic: Sequence[bool], temperature_k: float, highest: float = float("inf")
) -> Basins:
    """Return the basins of a surface over one to three CVs.

    >>> basins = find_basins(estimate.surface, (True, True), 300.0)
    >>> for basin in basins.populations(estimate):
    ...     print(basin.label, basin.minimum, basin.population, basin.population_error)

    Parameters
    ----------
    periodic : per CV, whether the last bin is a neighbour of the first
    highest : kJ/mol; a basin whose minimum lies higher is none, and its bins belong to nothing

    The bins' neighbours are the 3^d − 1 around them, diagonal ones too; unsampled bins have none. The lowest path
    between two bins is that whose highest bin is lowest, which the minimum spanning tree of the bins holds.

    Raises
    ------
    InputError
        where `periodic` is not of the surface's dimension, or no bin is sampled.
    """
    if len(periodic) != surface.free_energy.ndim:
        raise InputError(f"a surface over {surface.free_energy.ndim} CVs needs as many periodicities, got {periodic}")
    if not np.isfinite(surface.free_energy).any():
        raise InputError("no bin of the surface is sampled: there are no basins")
    kt, shape = thermal_energy(temperature_k), surface.free_energy.shape
    values, errors = surface.free_energy.ravel(), surface.std_error.ravel()
    first, second, length = (np.concatenate(part) for part in zip(*_bonds(surface, periodic), strict=True))
    sampled = np.isfinite(values)
    minimum_of = _descend(values, first, second, length)
    owner = _merged(values, errors, minimum_of, first, second, kt)
    owner = np.where(sampled & (values[np.where(owner < 0, 0, owner)] <= highest), owner, NOWHERE)
    minima = np.unique(owner[owner >= 0])
    population = np.array([np.exp(-values[owner == m] / kt).sum() for m in minima])
    minima = minima[np.argsort(-population, kind="stable")]
    number = np.full(len(values) + 1, NOWHERE)
    number[minima] = np.arange(len(minima))
    basin_of = number[owner]  # −1 is the last, which stays −1
    barriers = _barriers(values, errors, basin_of, minima, first, second)
    return Basins(basin_of.reshape(shape), minima, tuple(barriers), surface, kt)


def _bonds(surface: Surface, periodic: Sequence[bool]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pairs of sampled neighbouring bins, each pair once, with their distance in bins."""
    shape = surface.free_energy.shape
    sampled = np.isfinite(surface.free_energy.ravel())
    index = np.stack(np.unravel_index(np.arange(sampled.size), shape), axis=1)
    for offset in itertools.product((-1, 0, 1), repeat=len(shape)):
        if offset <= (0,) * len(shape):
            continue
        there = np.where(periodic, (index + offset) % shape, index + offset)
        inside = np.all((there >= 0) & (there < shape), axis=1)
        here = np.flatnonzero(inside)
        other = np.ravel_multi_index(tuple(there[inside].T), shape)
        both = sampled[here] & sampled[other] & (here != other)
        yield here[both], other[both], np.full(both.sum(), np.linalg.norm(offset))


def _descend(values: np.ndarray, first: np.ndarray, second: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return the bin in which steepest descent from each bin ends, −1 for unsampled ones.

    Of equal bins the one with the smaller index counts as the lower, so that a plateau has one minimum a neighbour.
    """
    start, end = np.concatenate([first, second]), np.concatenate([second, first])
    drop = values[start] - values[end]
    down = (drop > 0) | ((drop == 0) & (end < start))
    start, end, slope = start[down], end[down], (drop / np.concatenate([length, length]))[down]
    order = np.lexsort((end, -slope, start))
    steepest, where = np.unique(start[order], return_index=True)
    following = np.where(np.isfinite(values), np.arange(len(values)), NOWHERE)
    following[steepest] = end[order][where]
    while True:
        further = np.where(following < 0, NOWHERE, following[following])
        if np.array_equal(further, following):
            return following
        following = further


def _passes(
    values: np.ndarray, owner: np.ndarray, first: np.ndarray, second: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """Yield (an owner, another, the higher of two neighbouring bins of theirs), the lowest pass of each two first."""
    a, b = owner[first], owner[second]
    apart = (a != b) & (a >= 0) & (b >= 0)
    first, second, a, b = first[apart], second[apart], a[apart], b[apart]
    top = np.where(values[first] >= values[second], first, second)
    low, high = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((values[top], high, low))
    _, lowest = np.unique(np.stack([low[order], high[order]], axis=1), axis=0, return_index=True)
    kept = order[lowest]
    for k in kept[np.argsort(values[top[kept]], kind="stable")]:
        yield int(low[k]), int(high[k]), int(top[k])


def _merged(
    values: np.ndarray, errors: np.ndarray, owner: np.ndarray, first: np.ndarray, second: np.ndarray, kt: float
) -> np.ndarray:
    """Return the owner of each bin, the lowest minimum of all those between which no barrier is known to be."""
    bins = np.unique(owner[owner >= 0]).tolist()
    joined, same, lowest = DisjointSet(bins), DisjointSet(bins), {k: k for k in bins}
    for a, b, top in _passes(values, owner, first, second):
        if not joined.merge(a, b):
            continue  # a lower path leads from one to the other
        a, b = lowest[same[a]], lowest[same[b]]
        lower, higher = (a, b) if values[a] <= values[b] else (b, a)
        least = max(kt, LEAST_STD_ERRORS * float(np.hypot(errors[top], errors[higher])))
        if not values[top] - values[higher] >= least:
            same.merge(a, b)
            lowest[same[a]] = lower
    merged = np.full(len(values), NOWHERE)
    number = np.full(len(values), NOWHERE)
    number[bins] = [lowest[same[k]] for k in bins]
    merged[owner >= 0] = number[owner[owner >= 0]]
    return merged


def _barriers(
    values: np.ndarray,
    errors: np.ndarray,
    basin_of: np.ndarray,
    minima: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> Iterator[Barrier]:
    """Yield the lowest paths between basins that no lower path joins."""
    weights = np.maximum(values[first], values[second]) - np.nanmin(values) + OFFSET
    n = len(values)
    tree = minimum_spanning_tree(scipy.sparse.csr_matrix((weights, (first, second)), shape=(n, n)))
    joined = DisjointSet(range(len(minima)))
    for a, b, _ in _passes(values, basin_of, first, second):
        if not joined.merge(a, b):
            continue
        before = breadth_first_order(tree, minima[a], directed=False)[1]
        path = [int(minima[b])]
        while path[-1] != minima[a]:
            path.append(int(before[path[-1]]))
        top = max(path, key=lambda k: values[k])
        yield Barrier(a, b, top, float(values[top]), float(errors[top]), np.array(path[::-1]))
