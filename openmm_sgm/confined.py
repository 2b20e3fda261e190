"""Torsions that have stayed in one place in every window: states that no comparison of windows can find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .hidden import TORSION, observables_of
from .rotatable import first_heavy, rotatable_bonds
from .system import MolecularSystem

__all__ = ["ConfinedTorsion", "confined_torsions"]

SHARE = 0.99
"""Of the frames, that the arc must hold."""
LARGEST_ARC = np.pi
"""One rotamer of three spreads over 160° in strained windows, two next to each other over 220°."""
MOST_FRAMES = 20_000
TETRAHEDRAL = 4


@dataclass(frozen=True)
class ConfinedTorsion:
    """A torsion about a bond that can rotate, and the arc in which it has stayed.

    Attributes
    ----------
    name : as that of the observable in `hidden.observables_of`
    start, width : rad; the arc begins at `start` in [−π, π) and goes up
    """

    name: str
    start: float
    width: float

    def __str__(self) -> str:
        end = (self.start + self.width + np.pi) % (2 * np.pi) - np.pi
        return f"{self.name} ({np.degrees(self.start):.0f}° to {np.degrees(end):.0f}°)"


def confined_torsions(molecule: MolecularSystem, *positions: np.ndarray) -> tuple[ConfinedTorsion, ...]:
    """Return the torsions that are no CV and lie in one arc of at most 180° in 99 % of the configurations.

    Of bonds between heavy atoms that are in no ring and no amide, one end at least tetrahedral; those whose ends are
    symmetric under rotation are left out. Such a torsion may have no other state, or one that nothing has visited.

    Parameters
    ----------
    positions : float64, shape (n, n_atoms, 3), nm; one array or more, which together are all that was visited. More
        than 20,000 configurations are thinned evenly
    """
    topology = molecule.topology
    taken = {frozenset(cv.atoms[1:3]) for cv in molecule.cvs if len(cv.atoms) == 4}  # an expression may be a torsion
    degree = np.bincount(molecule.bonds.ravel(), minlength=molecule.n_atoms)
    atoms = list(molecule.mdtraj_topology.atoms)
    names = [
        f"{TORSION}{atoms[i].residue}-{atoms[i].name} {atoms[j].residue}-{atoms[j].name}"
        for i, j in rotatable_bonds(topology)
        if frozenset((i, j)) not in taken
        and max(degree[i], degree[j]) == TETRAHEDRAL
        and first_heavy(topology, i, j) is not None
        and first_heavy(topology, j, i) is not None
    ]
    total = sum(len(part) for part in positions)
    if not names or not total:
        return ()
    thinned = np.concatenate([part[:: -(-total // MOST_FRAMES)] for part in positions])
    observables = {o.name: o for o in observables_of(molecule.trajectory(thinned))}
    found = []
    for name in names:
        values, period = observables[name].values, observables[name].period
        if period is not None and np.isclose(period, 2 * np.pi):  # not folded by a symmetry
            start, width = _smallest_arc(values)
            if width <= LARGEST_ARC:
                found.append(ConfinedTorsion(name, start, width))
    return tuple(found)


def _smallest_arc(angles: np.ndarray) -> tuple[float, float]:
    """Return start and width of the smallest arc that holds `SHARE` of the angles."""
    ordered = np.sort((angles + np.pi) % (2 * np.pi) - np.pi)
    n = len(ordered)
    count = int(np.ceil(SHARE * n))
    wrapped = np.concatenate([ordered, ordered + 2 * np.pi])
    widths = wrapped[count - 1 : count - 1 + n] - ordered
    k = int(widths.argmin())
    return float(ordered[k]), float(widths[k])
