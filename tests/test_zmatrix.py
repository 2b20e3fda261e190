"""Z-matrices: who places whom, on molecules and on bare graphs, and the way from positions to coordinates and back."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import mdtraj
import numpy as np
import pytest
import torch

from openmm_sgm.cvs import Torsion
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError
from openmm_sgm.zmatrix import ZMatrix, body_frame, build_z_matrix, internal_coordinates, place_atoms

CARBON, HYDROGEN = 12.011, 1.008


class Graph(NamedTuple):
    """Atoms with masses (amu), bonds, constrained bonds and torsion CVs."""

    masses: tuple[float, ...]
    bonds: tuple[tuple[int, int], ...]
    constraints: tuple[tuple[int, int, float], ...] = ()
    torsions: tuple[tuple[int, int, int, int] | None, ...] = ()

    def z_matrix(self) -> ZMatrix:
        bonds = np.array(self.bonds, dtype=np.int64).reshape(-1, 2)
        return build_z_matrix(len(self.masses), bonds, np.array(self.masses), self.constraints, self.torsions)


C, H = CARBON, HYDROGEN
GRAPHS = {
    "chain of six": Graph((C,) * 6, tuple((i, i + 1) for i in range(5)), torsions=((1, 2, 3, 4), None, (5, 4, 3, 2))),
    "chain in disorder": Graph((C,) * 5, ((3, 0), (0, 4), (4, 1), (1, 2)), torsions=((3, 0, 4, 1), (0, 4, 1, 2))),
    "three atoms": Graph((C,) * 3, ((0, 1), (1, 2))),
    "three atoms, centre first": Graph((C,) * 3, ((0, 1), (0, 2))),
    "water": Graph((H, 16.0, H), ((0, 1), (1, 2)), ((0, 1, 0.096), (1, 2, 0.096))),
    "hydrogens only": Graph((H,) * 4, ((0, 1), (1, 2), (2, 3)), torsions=((0, 1, 2, 3),)),
    "star": Graph((C,) * 6, tuple((0, i) for i in range(1, 6))),
    "methane": Graph((H, H, C, H, H), tuple((2, i) for i in (0, 1, 3, 4)), ((0, 2, 0.109),)),
    "ethane": Graph((C, C, *(H,) * 6), ((0, 1), *((i // 3, i + 2) for i in range(6))), torsions=((2, 0, 1, 5),)),
    "ring of three": Graph((C,) * 3, ((0, 1), (1, 2), (2, 0))),
    "ring of five": Graph((C,) * 5, tuple((i, (i + 1) % 5) for i in range(5))),
    "ring of five with arms": Graph(
        (C,) * 5 + (H,) * 10, tuple((i, (i + 1) % 5) for i in range(5)) + tuple((i % 5, i + 5) for i in range(10))
    ),
    "two rings that share a bond": Graph((C,) * 6, ((0, 1), (1, 2), (2, 3), (3, 0), (2, 4), (4, 5), (5, 3))),
    "virtual site": Graph((C, 0.0, C, C, C), ((0, 1), (0, 2), (2, 3), (3, 4), (1, 4)), torsions=((0, 2, 3, 4),)),
}


def random_graph(seed: int) -> Graph:
    """Return a random connected graph, often with rings, of heavy and light atoms in random order."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 16))
    label = rng.permutation(n)
    pairs = {(int(label[rng.integers(i)]), int(label[i])) for i in range(1, n)}
    for _ in range(seed % 3):
        i, j = (int(k) for k in rng.choice(n, 2, replace=False))
        if (j, i) not in pairs:
            pairs.add((i, j))
    masses = np.where(rng.random(n) < 0.5, HYDROGEN, CARBON)
    return Graph(tuple(masses.tolist()), tuple(sorted(pairs)))


def torsion_paths(graph: Graph) -> list[tuple[int, int, int, int]]:
    """Return all chains of four bonded atoms, each in one direction."""
    bonded = [set[int]() for _ in graph.masses]
    for i, j in graph.bonds:
        bonded[i].add(j)
        bonded[j].add(i)
    return [
        (a, b, c, d) for b, c in graph.bonds for a, d in itertools.product(bonded[b] - {c}, bonded[c] - {b}) if a != d
    ]


def molecule_z_matrix(molecule: MolecularSystem) -> ZMatrix:
    torsions = [cv.atoms if isinstance(cv, Torsion) else None for cv in molecule.cvs]
    return build_z_matrix(molecule.n_atoms, molecule.bonds, molecule.masses, molecule.constraints, torsions)


def assert_well_placed(z: ZMatrix, bonds: np.ndarray, masses: np.ndarray) -> None:
    """Hold a Z-matrix to what `ZMatrix` and `representation` say of it."""
    real = np.flatnonzero(np.asarray(masses) > 0)
    assert sorted(z.order.tolist()) == real.tolist(), "every atom with mass is placed once, and no other"
    assert z.references.shape == (len(real), 3)
    assert z.constant_bonds.shape == z.cv_torsions.shape == z.closing.shape == (len(real),)
    bonded = {frozenset((int(i), int(j))) for i, j in bonds}
    present = [(z.references[row] >= 0).tolist() for row in range(len(real))]
    wanted = [[False, False, False], [True, False, False], [True, True, False]]
    assert present == wanted[: len(real)] + [[True] * 3] * (len(real) - 3)
    placed: set[int] = set()
    first_sibling: dict[int, int] = {}
    for atom, references, closing in zip(z.order.tolist(), z.references.tolist(), z.closing.tolist(), strict=True):
        c, b, a = references
        used = [r for r in references if r >= 0]
        assert set(used) <= placed, "references are placed before"
        assert len({atom, *used}) == 1 + len(used), "no atom is used twice"
        if c >= 0:
            assert frozenset((atom, c)) in bonded, "an atom hangs on a bond"
        if closing:
            assert frozenset((atom, b)) in bonded, "it has two bonds into the ring"
            assert frozenset((c, a)) in bonded, "and is placed against the ring"
            first_sibling[atom] = b
            first_sibling.setdefault(c, atom)
            placed.add(atom)
            continue
        if b >= 0:
            assert frozenset((c, b)) in bonded, "its angle is one of two bonds"
        if c in first_sibling:
            assert a == first_sibling[c], "later children turn with the first one"
        elif a >= 0:
            assert frozenset((b, a)) in bonded, "the first child's torsion runs along bonds"
        if b >= 0:
            first_sibling.setdefault(c, atom)
        placed.add(atom)


def assert_round_trip(z: ZMatrix, positions: np.ndarray) -> None:
    """Coordinates of positions (n, atoms, 3) place the same molecule: all distances and all signed volumes."""
    n_atoms = positions.shape[1]
    x = torch.as_tensor(positions)
    coordinates = internal_coordinates(x, z)
    placed = place_atoms(*coordinates, z, n_atoms)
    assert placed.shape == x.shape
    assert placed.dtype == torch.float64
    real = torch.as_tensor(np.sort(z.order))
    before, after = x[:, real], placed[:, real]
    # differences, not torch.cdist, whose matrix products cost half of the digits
    distances = [(p[:, :, None] - p[:, None]).norm(dim=-1) for p in (before, after)]
    torch.testing.assert_close(distances[1], distances[0], rtol=0, atol=1e-9)
    fours = torch.tensor(list(itertools.combinations(range(len(real)), 4)), dtype=torch.int64).reshape(-1, 4)
    volumes = [torch.linalg.det(p[:, fours[:, 1:]] - p[:, fours[:, :1]]) for p in (before, after)]
    torch.testing.assert_close(volumes[1], volumes[0], rtol=0, atol=1e-9)
    if len(real) > 3:
        assert volumes[0].abs().max() > 1e-5, "the volumes tell a molecule from its mirror image"
    for found, given in zip(internal_coordinates(placed, z), coordinates, strict=True):
        torch.testing.assert_close(torch.cos(found), torch.cos(given), rtol=0, atol=1e-7)
        torch.testing.assert_close(torch.sin(found), torch.sin(given), rtol=0, atol=1e-7)


# Structure


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_well_placed(name: str) -> None:
    graph = GRAPHS[name]
    assert_well_placed(graph.z_matrix(), np.array(graph.bonds), np.array(graph.masses))


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_are_well_placed_and_come_back(seed: int) -> None:
    graph = random_graph(seed)
    z = graph.z_matrix()
    assert_well_placed(z, np.array(graph.bonds), np.array(graph.masses))
    assert_round_trip(z, np.random.default_rng(seed).normal(scale=0.2, size=(6, len(graph.masses), 3)))


@pytest.mark.parametrize("seed", range(0, 42, 3))
def test_any_one_torsion_of_a_tree_is_a_coordinate(seed: int) -> None:
    graph = random_graph(seed)
    assert len(graph.bonds) == len(graph.masses) - 1
    for torsion in torsion_paths(graph):
        for atoms in (torsion, torsion[::-1]):
            z = graph._replace(torsions=(None, atoms)).z_matrix()
            assert_well_placed(z, np.array(graph.bonds), np.array(graph.masses))
            (row,) = np.flatnonzero(z.cv_torsions >= 0)
            assert z.cv_torsions[row] == 1
            assert (z.order[row], *z.references[row]) in (atoms, atoms[::-1])


@pytest.mark.parametrize("seed", range(0, 42, 3))
def test_any_two_torsions_about_different_bonds_of_heavy_atoms_are_coordinates(seed: int) -> None:
    graph = random_graph(seed)
    graph = graph._replace(masses=(CARBON,) * len(graph.masses))
    for pair in itertools.combinations(torsion_paths(graph)[::2], 2):
        if set(pair[0][1:3]) != set(pair[1][1:3]):
            z = graph._replace(torsions=pair).z_matrix()
            assert sorted(z.cv_torsions.tolist())[-2:] == [0, 1], f"torsions {pair}"


def test_two_torsions_from_one_hydrogen_are_coordinates() -> None:
    """Placed from the hydrogen, both are; from a carbon at either end, only the nearer one is."""
    carbons = ((4, 0), (0, 6), (6, 3), (3, 7))
    hydrogens = tuple((carbon, k + 8) for k, carbon in enumerate((4, 4, 4, 0, 0, 3, 3, 7, 7, 7)))
    masses = (C, H, H, C, C, H, C, C) + (H,) * 10
    graph = Graph(masses, (*carbons, *hydrogens, (6, 2), (6, 1), (0, 5)), torsions=((2, 6, 0, 4), (2, 6, 3, 7)))
    z = graph.z_matrix()
    assert_well_placed(z, np.array(graph.bonds), np.array(graph.masses))
    assert sorted(z.cv_torsions.tolist())[-2:] == [0, 1]


@pytest.mark.parametrize("name", ["alanine", "proline"])
def test_molecules_are_well_placed(name: str, request: pytest.FixtureRequest) -> None:
    molecule = request.getfixturevalue(name)
    assert_well_placed(molecule_z_matrix(molecule), molecule.bonds, molecule.masses)


def test_both_torsions_of_alanine_are_coordinates(alanine: MolecularSystem) -> None:
    z = molecule_z_matrix(alanine)
    assert sorted(z.cv_torsions.tolist()) == [-1] * 20 + [0, 1]
    for k, atoms in enumerate([(4, 6, 8, 14), (6, 8, 14, 16)]):
        (row,) = np.flatnonzero(z.cv_torsions == k)
        assert (z.order[row], *z.references[row]) in (atoms, atoms[::-1])


def test_psi_of_proline_is_a_coordinate_and_the_ring_is_closed_by_a_bond(proline: MolecularSystem) -> None:
    z = molecule_z_matrix(proline)
    assert sorted(z.cv_torsions.tolist()) == [-1] * 25 + [0]
    (row,) = np.flatnonzero(z.cv_torsions == 0)
    assert (z.order[row], *z.references[row]) in ((6, 16, 18, 20), (20, 18, 16, 6))
    # all bonds of the ring are coordinates: one atom has two
    placed = [frozenset((int(a), int(c))) for a, c in zip(z.order[1:], z.references[1:, 0], strict=True)]
    (row,) = np.flatnonzero(z.closing)
    assert {int(z.order[row]), *z.references[row].tolist()} < {6, 7, 10, 13, 16}
    placed.append(frozenset((int(z.order[row]), int(z.references[row, 1]))))
    assert sorted(map(sorted, placed)) == sorted(map(sorted, {frozenset(pair) for pair in proline.bonds.tolist()}))


def test_phi_and_psi_of_proline_can_both_be_coordinates(proline: MolecularSystem) -> None:
    torsions = [(4, 6, 16, 18), (6, 16, 18, 20)]
    z = build_z_matrix(26, proline.bonds, proline.masses, proline.constraints, torsions)
    assert_well_placed(z, proline.bonds, proline.masses)
    assert sorted(z.cv_torsions.tolist()) == [-1] * 24 + [0, 1]


@pytest.mark.parametrize("name", ["alanine", "proline"])
def test_cv_torsions_are_the_values_of_the_cvs(name: str, request: pytest.FixtureRequest) -> None:
    molecule = request.getfixturevalue(name)
    z = molecule_z_matrix(molecule)
    x = molecule.positions + np.random.default_rng(1).normal(scale=0.01, size=(5, molecule.n_atoms, 3))
    _, _, torsions = internal_coordinates(torch.as_tensor(x), z)
    values = molecule.evaluate_cvs(x)
    for row in np.flatnonzero(z.cv_torsions >= 0):
        k = z.cv_torsions[row]
        difference = molecule.cvs[k].difference(torsions[:, row - 3].numpy(), values[:, k])
        np.testing.assert_allclose(difference, 0, atol=1e-5)


def test_a_cv_that_is_no_chain_of_bonds_is_no_coordinate() -> None:
    for atoms in ((0, 2, 1, 3), (0, 1, 2, 5), (3, 1, 2, 0)):
        z = GRAPHS["chain of six"]._replace(torsions=(atoms, (0, 1, 2, 3))).z_matrix()
        assert sorted(z.cv_torsions.tolist()) == [-1] * 5 + [1]


@pytest.mark.parametrize("name", ["alanine", "proline"])
def test_constrained_bonds_are_constants(name: str, request: pytest.FixtureRequest) -> None:
    molecule = request.getfixturevalue(name)
    z = molecule_z_matrix(molecule)
    expected = {frozenset((i, j)): length for i, j, length in molecule.constraints}
    found = {
        frozenset((int(z.order[row]), int(z.references[row, 0]))): z.constant_bonds[row]
        for row in np.flatnonzero(~np.isnan(z.constant_bonds))
    }
    assert found == expected
    assert np.isnan(z.constant_bonds[0]), "the first atom has no bond"


def test_constraints_of_graphs() -> None:
    z = GRAPHS["water"].z_matrix()
    np.testing.assert_array_equal(z.constant_bonds, [np.nan, 0.096, 0.096])
    z = GRAPHS["methane"].z_matrix()
    np.testing.assert_array_equal(z.constant_bonds, np.where(z.order == 0, 0.109, np.nan))
    assert np.isnan(GRAPHS["ring of five"].z_matrix().constant_bonds).all()


# Refusals


PIECES = {
    "two chains": Graph((C,) * 6, ((0, 1), (1, 2), (3, 4), (4, 5))),
    "two rings": Graph((C,) * 6, ((0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3))),
    "held by a virtual site": Graph((C, C, C, 0.0, C, C, C), ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6))),
    "a hydrogen apart": Graph((C, C, C, H), ((0, 1), (1, 2))),
    "a heavy atom apart": Graph((C, C, C, C), ((0, 1), (1, 2))),
    "no bonds": Graph((C, C, C), ()),
}


@pytest.mark.parametrize("name", PIECES)
def test_several_pieces_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="the molecule is in several pieces; one bonded molecule is supported"):
        PIECES[name].z_matrix()


@pytest.mark.parametrize(
    ("graph", "constraint"),
    [
        (GRAPHS["chain of six"], (0, 2, 0.25)),
        (GRAPHS["water"], (0, 2, 0.15)),
        (GRAPHS["star"], (1, 2, 0.15)),
        (GRAPHS["virtual site"], (0, 1, 0.1)),
    ],
    ids=["angle", "rigid water", "leaves", "virtual site"],
)
def test_a_constraint_that_is_no_bond_is_refused(graph: Graph, constraint: tuple[int, int, float]) -> None:
    with pytest.raises(InputError, match="constraints that close a ring are not supported"):
        graph._replace(constraints=(*graph.constraints, constraint)).z_matrix()


@pytest.mark.parametrize("size", [3, 5])
def test_a_ring_of_constraints_is_refused(size: int) -> None:
    """One bond of a ring is left over by any Z-matrix, so it cannot be a constant of it."""
    bonds = tuple((i, (i + 1) % size) for i in range(size))
    ring = Graph((C,) * size, bonds, tuple((i, j, 0.15) for i, j in bonds))
    with pytest.raises(InputError, match="constraints that close a ring are not supported"):
        ring.z_matrix()


@pytest.mark.parametrize(
    "graph",
    [Graph((), ()), Graph((C,), ()), Graph((C, C), ((0, 1),)), Graph((C, 0.0, C), ((0, 1), (1, 2), (0, 2)))],
    ids=["none", "one", "two", "two and a virtual site"],
)
def test_fewer_than_three_atoms_are_refused(graph: Graph) -> None:
    with pytest.raises(InputError, match="at least three atoms with mass"):
        graph.z_matrix()


# Coordinates


@pytest.mark.parametrize("name", GRAPHS)
def test_round_trip_of_graphs(name: str) -> None:
    graph = GRAPHS[name]
    positions = np.random.default_rng(5).normal(scale=0.2, size=(20, len(graph.masses), 3))
    assert_round_trip(graph.z_matrix(), positions)


def test_round_trip_of_alanine(alanine: MolecularSystem, alanine_conformations: np.ndarray) -> None:
    assert_round_trip(molecule_z_matrix(alanine), alanine_conformations)


def test_round_trip_of_proline(proline: MolecularSystem) -> None:
    shaken = proline.positions + np.random.default_rng(2).normal(scale=0.02, size=(10, 26, 3))
    assert_round_trip(molecule_z_matrix(proline), shaken)


def test_coordinates_tell_mirror_images_apart(alanine: MolecularSystem) -> None:
    z = molecule_z_matrix(alanine)
    x = torch.as_tensor(alanine.positions[None])
    bonds, angles, torsions = internal_coordinates(x, z)
    for found, expected in zip(internal_coordinates(-x, z), (bonds, angles, -torsions), strict=True):
        torch.testing.assert_close(torch.cos(found), torch.cos(expected), rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.sin(found), torch.sin(expected), rtol=0, atol=1e-12)
    mirrored = place_atoms(bonds, angles, -torsions, z, 22)
    straight = place_atoms(bonds, angles, torsions, z, 22)
    torch.testing.assert_close(mirrored, straight * torch.tensor([1.0, 1.0, -1.0]), rtol=0, atol=1e-12)


def test_a_virtual_site_does_not_move_the_others() -> None:
    graph = GRAPHS["virtual site"]
    z = graph.z_matrix()
    assert 1 not in z.order
    assert 1 not in z.references
    positions = np.random.default_rng(6).normal(scale=0.2, size=(4, 5, 3))
    coordinates = internal_coordinates(torch.as_tensor(positions), z)
    moved = positions + np.eye(5)[1][:, None]
    for a, b in zip(coordinates, internal_coordinates(torch.as_tensor(moved), z), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert place_atoms(*coordinates, z, 5).shape == (4, 5, 3)


@pytest.mark.parametrize("name", ["alanine", "proline"])
def test_coordinates_against_mdtraj(name: str, request: pytest.FixtureRequest) -> None:
    molecule = request.getfixturevalue(name)
    z = molecule_z_matrix(molecule)
    rng = np.random.default_rng(7)
    x = molecule.positions + rng.normal(scale=0.01, size=(8, molecule.n_atoms, 3))
    trajectory = molecule.trajectory(x)
    bonds, angles, torsions = (c.numpy() for c in internal_coordinates(torch.as_tensor(x), z))
    assert bonds.shape == (8, molecule.n_atoms - 1)
    assert angles.shape == (8, molecule.n_atoms - 2)
    assert torsions.shape == (8, molecule.n_atoms - 3)
    c, b, a = z.references.T
    pairs = np.stack([z.order, c], axis=1)[1:]
    triples = np.stack([z.order, c, b], axis=1)[2:]
    fours = np.stack([a, b, c, z.order], axis=1)[3:]
    # mdtraj works in single precision
    np.testing.assert_allclose(bonds, mdtraj.compute_distances(trajectory, pairs), atol=1e-6)
    expected = mdtraj.compute_angles(trajectory, triples)
    closing = np.flatnonzero(z.closing[2:])
    expected[:, closing] = mdtraj.compute_distances(trajectory, triples[closing][:, [0, 2]].reshape(-1, 2))
    np.testing.assert_allclose(angles, expected, atol=2e-5)
    difference = torsions - mdtraj.compute_dihedrals(trajectory, fours)
    np.testing.assert_allclose(np.remainder(difference + np.pi, 2 * np.pi) - np.pi, 0, atol=2e-5)


def test_coordinates_do_not_notice_a_rigid_motion(alanine: MolecularSystem, alanine_conformations: np.ndarray) -> None:
    z = molecule_z_matrix(alanine)
    rotation = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    before = internal_coordinates(torch.as_tensor(alanine_conformations), z)
    after = internal_coordinates(torch.as_tensor(alanine_conformations @ rotation + [1.0, -2.0, 0.5]), z)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(torch.cos(a), torch.cos(b), rtol=0, atol=1e-11)
        torch.testing.assert_close(torch.sin(a), torch.sin(b), rtol=0, atol=1e-11)


def test_angles_are_accurate_near_a_straight_line() -> None:
    z = GRAPHS["three atoms"].z_matrix()
    for deviation in (1e-3, 1e-6, 1e-9):
        x = torch.tensor([[[-0.1, 0, 0], [0, 0, 0], [0.1 * np.cos(deviation), 0.1 * np.sin(deviation), 0]]])
        _, angles, _ = internal_coordinates(x.double(), z)
        assert np.pi - angles.item() == pytest.approx(deviation, rel=1e-5)


@pytest.mark.parametrize("name", ["chain of six", "star", "methane", "water", "ring of five", "virtual site"])
def test_body_frame_turns_into_the_frame_of_place_atoms(name: str) -> None:
    graph = GRAPHS[name]
    z = graph.z_matrix()
    x = torch.as_tensor(np.random.default_rng(9).normal(scale=0.2, size=(12, len(graph.masses), 3)))
    rotations = body_frame(x, z)
    identity = torch.eye(3, dtype=torch.float64).expand(12, 3, 3)
    torch.testing.assert_close(rotations.transpose(1, 2) @ rotations, identity, rtol=0, atol=1e-12)
    assert (torch.linalg.det(rotations) > 0).all()
    turned = (x - x[:, z.order[:1]]) @ rotations
    placed = place_atoms(*internal_coordinates(x, z), z, len(graph.masses))
    torch.testing.assert_close(placed[:, z.order], turned[:, z.order], rtol=0, atol=1e-9)
