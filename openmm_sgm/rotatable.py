"""Bonds about which a molecule turns."""

from __future__ import annotations

import networkx
from openmm import app

__all__ = ["amide_bonds", "first_heavy", "rotatable_bonds"]


def rotatable_bonds(topology: app.Topology) -> list[tuple[int, int]]:
    """Return bonds between heavy atoms that are in no ring and no amide or C=O, as ascending pairs of indices."""
    graph = networkx.Graph()
    atoms = list(topology.atoms())
    for bond in topology.bonds():
        graph.add_edge(bond.atom1.index, bond.atom2.index)
    heavy = {atom.index for atom in atoms if atom.element is not app.element.hydrogen}
    bridges = {tuple(sorted(edge)) for edge in networkx.bridges(graph)}
    return [(i, j) for i, j in sorted(bridges - amide_bonds(topology)) if i in heavy and j in heavy]


def amide_bonds(topology: app.Topology) -> set[tuple[int, int]]:
    """Return the bonds between the carbon of a C=O or C=S and a nitrogen, as ascending pairs of indices."""
    atoms = list(topology.atoms())
    bound: list[set[int]] = [set() for _ in atoms]
    for bond in topology.bonds():
        bound[bond.atom1.index].add(bond.atom2.index)
        bound[bond.atom2.index].add(bond.atom1.index)

    def carbonyl(i: int) -> bool:
        return atoms[i].element is app.element.carbon and any(
            len(bound[j]) == 1 and atoms[j].element in (app.element.oxygen, app.element.sulfur) for j in bound[i]
        )

    return {
        (min(i, j), max(i, j))
        for i in range(len(atoms))
        if carbonyl(i)
        for j in bound[i]
        if atoms[j].element is app.element.nitrogen
    }


def first_heavy(topology: app.Topology, here: int, other: int) -> int | None:
    """Return the first heavy atom bound to `here` besides `other`."""
    atoms = list(topology.atoms())
    bound = sorted(
        {a.index for bond in topology.bonds() for a in bond if here in (bond.atom1.index, bond.atom2.index)}
        - {here, other}
    )
    heavy = [i for i in bound if atoms[i].element is not app.element.hydrogen]
    return heavy[0] if heavy else None
