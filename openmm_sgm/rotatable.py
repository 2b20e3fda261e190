"""Bonds about which a molecule turns."""

from __future__ import annotations

import itertools

import networkx
from openmm import app

__all__ = ["first_heavy", "rotatable_bonds"]


def rotatable_bonds(topology: app.Topology) -> list[tuple[int, int]]:
    """Return bonds between heavy atoms that are in no ring and no amide or C=O, as ascending pairs of indices."""
    graph = networkx.Graph()
    atoms = list(topology.atoms())
    for bond in topology.bonds():
        graph.add_edge(bond.atom1.index, bond.atom2.index)
    heavy = {atom.index for atom in atoms if atom.element is not app.element.hydrogen}
    bridges = {tuple(sorted(edge)) for edge in networkx.bridges(graph)}

    def carbonyl(i: int) -> bool:
        terminal = [j for j in graph[i] if graph.degree[j] == 1]
        return atoms[i].element is app.element.carbon and any(
            atoms[j].element in (app.element.oxygen, app.element.sulfur) for j in terminal
        )

    def amide(i: int, j: int) -> bool:
        return any(carbonyl(a) and atoms[b].element is app.element.nitrogen for a, b in itertools.permutations((i, j)))

    return [(i, j) for i, j in sorted(bridges) if i in heavy and j in heavy and not amide(i, j)]


def first_heavy(topology: app.Topology, here: int, other: int) -> int | None:
    """Return the first heavy atom bound to `here` besides `other`."""
    atoms = list(topology.atoms())
    bound = sorted(
        {a.index for bond in topology.bonds() for a in bond if here in (bond.atom1.index, bond.atom2.index)}
        - {here, other}
    )
    heavy = [i for i in bound if atoms[i].element is not app.element.hydrogen]
    return heavy[0] if heavy else None
