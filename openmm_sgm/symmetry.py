"""Equivalent hydrogens: relabelling them by a rotation gives another configuration of the same weight, for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .simulate import MDSettings, evaluate
from .system import MolecularSystem

__all__ = ["permuted", "threefold_rotors"]

ENERGY_TOLERANCE = 1e-4
"""kJ/mol; relabelled configurations of equal energy differ by rounding only."""


def threefold_rotors(
    molecule: MolecularSystem, settings: MDSettings, positions: np.ndarray
) -> tuple[list[tuple[int, int, int]], int]:
    """Return groups of three equivalent atoms on a four-coordinated one, such as a methyl's, and the energies it took.

    A group is one when a cyclic relabelling, which keeps every handedness, leaves the potential energy and all CVs of
    `positions` (n, n_atoms, 3) unchanged; terminal atoms of equal mass are the candidates.
    """
    neighbours: dict[int, list[int]] = {i: [] for i in range(molecule.n_atoms)}
    for i, j in molecule.bonds:
        neighbours[int(i)].append(int(j))
        neighbours[int(j)].append(int(i))
    groups: list[tuple[int, int, int]] = []
    energies, _, cost = evaluate(settings, positions)
    cvs = molecule.evaluate_cvs(positions)
    for bonded in neighbours.values():
        if len(bonded) != 4:
            continue
        ends = sorted(n for n in bonded if len(neighbours[n]) == 1)
        if len(ends) != 3 or len({molecule.masses[n] for n in ends}) > 1:
            continue
        group = (ends[0], ends[1], ends[2])
        turned = positions.copy()
        turned[:, group] = positions[:, np.roll(group, 1)]
        again, _, more = evaluate(settings, turned)
        cost += more
        same_cvs = all(
            np.abs(cv.difference(a, b)).max() < 1e-4
            for cv, a, b in zip(molecule.cvs, molecule.evaluate_cvs(turned).T, cvs.T, strict=True)
        )
        if same_cvs and np.abs(again - energies).max() < ENERGY_TOLERANCE:
            groups.append(group)
    return groups, cost


def permuted(
    arrays: Sequence[np.ndarray], groups: Sequence[tuple[int, int, int]], rng: np.random.Generator
) -> list[np.ndarray]:
    """Return copies of arrays (n, n_atoms, 3) in which each group is turned by a random one of its three rotations."""
    copies = [array.copy() for array in arrays]
    for group in groups:
        turns = rng.integers(3, size=len(arrays[0]))
        for turn in (1, 2):
            rows = np.flatnonzero(turns == turn)[:, None]
            for copy, array in zip(copies, arrays, strict=True):
                copy[rows, list(group)] = array[rows, np.roll(group, turn)]
    return copies
