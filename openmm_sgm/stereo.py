"""What a molecule keeps in a simulation of finite length: cis or trans of its stiff bonds, and its handedness.

A peptide bond turns once in seconds at room temperature; a strained start, a pull or a hot walker turns it in
picoseconds, and all that is simulated from there is another molecule. Such configurations are refused everywhere: they
have no weight, no chain enters them, and the ensemble that is sampled is that of the molecule as it was given. A bond
whose torsion is a CV is free to turn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import networkx
import numpy as np
import openmm
from openmm import app, unit

from .cvs import CollectiveVariable
from .rotatable import amide_bonds

__all__ = ["Stereo", "stiff_bonds"]

STIFF = 60.0
"""kJ/mol; a bond about which the force field's two-fold torsions add up to a higher barrier counts as a double bond."""
SMALL_RING = 7
"""A bond in a ring of so many atoms or fewer cannot turn."""
PEPTIDE, DOUBLE = "peptide bond", "double bond"


@dataclass(frozen=True)
class Stereo:
    """The cis/trans states and the handedness of a structure.

    Attributes
    ----------
    torsions : (i, j, k, l) of every bond j–k that is kept, along the chain
    cis : of each of them, whether |torsion| is below a right angle
    centres : (centre, three neighbours) of every atom with four
    positive : of each of them, whether the three arms' triple product is above zero
    names : of the bonds, then of the centres, as in "peptide bond ALA2-C NME3-N"
    """

    torsions: tuple[tuple[int, int, int, int], ...] = ()
    cis: tuple[bool, ...] = ()
    centres: tuple[tuple[int, int, int, int], ...] = ()
    positive: tuple[bool, ...] = ()
    names: tuple[str, ...] = ()

    @staticmethod
    def of(
        topology: app.Topology, system: openmm.System, positions: np.ndarray, cvs: tuple[CollectiveVariable, ...] = ()
    ) -> Stereo:
        """Read them off positions (n_atoms, 3), nm; bonds that the CVs turn, see `stiff_bonds`, are left out."""
        neighbours = _neighbours(topology)
        atoms = list(topology.atoms())
        names = [f"{atom.residue.name}{atom.residue.id}-{atom.name}" for atom in atoms]
        bonds = [(quad, kind) for quad, kind in stiff_bonds(topology, system) if not _turned(quad, cvs)]
        centres = [(atom, *sorted(bonded)[:3]) for atom, bonded in sorted(neighbours.items()) if len(bonded) == 4]
        torsions = tuple(quad for quad, _ in bonds)
        return Stereo(
            torsions,
            tuple((_cosines(positions[None], torsions)[0] > 0).tolist()),
            tuple(centres),  # type: ignore[arg-type]
            tuple((_volumes(positions[None], tuple(centres))[0] > 0).tolist()),  # type: ignore[arg-type]
            (
                *(f"{kind} {names[quad[1]]} {names[quad[2]]}" for quad, kind in bonds),
                *(f"centre {names[centre[0]]}" for centre in centres),
            ),
        )

    def kept(self, positions: np.ndarray) -> np.ndarray:
        """Return, for positions (n, n_atoms, 3), whether all is as it was; bool, shape (n,). Not where one is NaN."""
        return np.asarray(self._kept(positions).all(axis=1))

    def changed(self, positions: np.ndarray) -> list[str]:
        """Return what is not as it was in each of the positions (n, n_atoms, 3), in words; '' where all is."""
        kept = self._kept(positions)
        return ["" if row.all() else self._describe(int(row.argmin())) for row in kept]

    def summary(self) -> str:
        """Return the states of the bonds in words, such as "peptide bonds: 2 trans"; '' where there are none."""
        parts = []
        for kind in (PEPTIDE, DOUBLE):
            own = [cis for cis, name in zip(self.cis, self.names, strict=False) if name.startswith(kind)]
            counts = Counter("cis" if cis else "trans" for cis in own)
            if own:
                parts.append(f"{kind}s: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())[::-1]))
        return "; ".join(parts)

    def _describe(self, which: int) -> str:
        if which < len(self.torsions):
            states = ("cis", "trans") if self.cis[which] else ("trans", "cis")
            return f"the {self.names[which]} has turned from {states[0]} to {states[1]}"
        return f"the {self.names[which]} has changed its handedness"

    def _kept(self, positions: np.ndarray) -> np.ndarray:
        """Return bool, shape (n, n_bonds + n_centres), bonds first."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            cosines, volumes = _cosines(positions, self.torsions), _volumes(positions, self.centres)
        bonds = np.where(self._cis, cosines > 0, cosines <= 0)
        return np.hstack([bonds, np.where(self._positive, volumes > 0, volumes < 0)])

    @cached_property
    def _cis(self) -> np.ndarray:
        return np.array(self.cis, dtype=bool)

    @cached_property
    def _positive(self) -> np.ndarray:
        return np.array(self.positive, dtype=bool)


def stiff_bonds(topology: app.Topology, system: openmm.System) -> list[tuple[tuple[int, int, int, int], str]]:
    """Return the torsions (i, j, k, l) about bonds that do not turn by themselves, and what kind each bond is.

    Amide bonds by the bond graph; double bonds by the topology's bond orders, or where the two-fold terms of the
    system's PeriodicTorsionForces add up to a barrier above 60 kJ/mol. Not bonds in rings of seven atoms or fewer, nor
    those one of whose ends looks the same after half a turn (two hydrogens, say). i and l are the neighbours along the
    chain, so that trans is 180° as usual.
    """
    neighbours = _neighbours(topology)
    atoms = list(topology.atoms())
    graph = networkx.Graph([(i, j) for i, bonded in neighbours.items() for j in bonded])
    amides, barriers = amide_bonds(topology), _two_fold_barriers(system, neighbours)
    orders = {frozenset((b.atom1.index, b.atom2.index)): b for b in topology.bonds()}

    def heavy(atom: int) -> bool:
        return atoms[atom].element is not app.element.hydrogen

    def along_the_chain(atom: int) -> tuple[bool, bool, int, int]:
        return heavy(atom), len(neighbours[atom]) > 1, sum(heavy(n) for n in neighbours[atom]), -atom

    found = []
    for j, k in sorted((min(pair), max(pair)) for pair in orders):
        ends = [sorted(set(neighbours[a]) - {b}) for a, b in ((j, k), (k, j))]
        if not all(ends) or not (heavy(j) and heavy(k)):
            continue
        amide = (j, k) in amides
        bond = orders[frozenset((j, k))]
        double = bond.order == 2 or bond.type is app.Double or barriers.get(frozenset((j, k)), 0.0) > STIFF
        if not (amide or double) or _ring_size(graph, j, k) <= SMALL_RING:
            continue
        if any(_alike(end, atoms, neighbours) for end in ends):
            continue
        first, last = (max(end, key=along_the_chain) for end in ends)
        found.append(((first, j, k, last), PEPTIDE if amide else DOUBLE))
    return found


def _neighbours(topology: app.Topology) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {atom.index: [] for atom in topology.atoms()}
    for bond in topology.bonds():
        found[bond.atom1.index].append(bond.atom2.index)
        found[bond.atom2.index].append(bond.atom1.index)
    return found


def _alike(end: list[int], atoms: list[app.topology.Atom], neighbours: dict[int, list[int]]) -> bool:
    """Return whether an end's atoms are several and interchangeable: bare atoms, or with nothing but hydrogens on."""
    looks = [(atoms[a].element, sorted(str(atoms[n].element) for n in neighbours[a])) for a in end]
    terminal = all(sum(atoms[n].element is not app.element.hydrogen for n in neighbours[a]) <= 1 for a in end)
    return len(end) > 1 and terminal and all(look == looks[0] for look in looks)


def _ring_size(graph: networkx.Graph, j: int, k: int) -> float:
    """Return the number of atoms of the smallest ring that a bond is in; infinity where it is in none."""
    rest = networkx.restricted_view(graph, [], [(j, k)])
    try:
        return float(networkx.shortest_path_length(rest, j, k)) + 1
    except networkx.NetworkXNoPath:
        return float("inf")


def _two_fold_barriers(system: openmm.System, neighbours: dict[int, list[int]]) -> dict[frozenset[int], float]:
    """Return the height of the two-fold terms about each bond, kJ/mol; impropers, not bonded in a row, are none."""
    found: dict[frozenset[int], float] = {}
    for force in system.getForces():
        if not isinstance(force, openmm.PeriodicTorsionForce):
            continue
        for index in range(force.getNumTorsions()):
            i, j, k, m, periodicity, _, constant = force.getTorsionParameters(index)
            if periodicity == 2 and j in neighbours[i] and k in neighbours[j] and m in neighbours[k]:
                bond = frozenset((j, k))
                height = 2 * constant.value_in_unit(unit.kilojoule_per_mole)
                found[bond] = found.get(bond, 0.0) + height
    return found


def _turned(quad: tuple[int, ...], cvs: tuple[CollectiveVariable, ...]) -> bool:
    """Return whether a CV of four atoms has the bond in its middle: a torsion, also one written as an expression."""
    return any(len(cv.atoms) == 4 and {quad[1], quad[2]} == set(cv.atoms[1:3]) for cv in cvs)


def _cosines(positions: np.ndarray, torsions: tuple[tuple[int, int, int, int], ...]) -> np.ndarray:
    """Return the cosines of torsions, up to a positive factor, shape (n, m); positions (n, n_atoms, 3)."""
    a, b, c, d = (positions[:, index] for index in np.array(torsions, dtype=np.int64).reshape(-1, 4).T)
    return np.asarray((np.cross(b - a, c - b) * np.cross(c - b, d - c)).sum(axis=-1))


def _volumes(positions: np.ndarray, centres: tuple[tuple[int, int, int, int], ...]) -> np.ndarray:
    """Return the triple products of the arms of centres, shape (n, m)."""
    o, a, b, c = (positions[:, index] for index in np.array(centres, dtype=np.int64).reshape(-1, 4).T)
    return np.asarray((np.cross(a - o, b - o) * (c - o)).sum(axis=-1))
