"""Equivalent hydrogens are found where the physics says so, and turned without changing energy or handedness."""

from __future__ import annotations

import copy
from dataclasses import fields

import numpy as np
import openmm
import pytest

from openmm_sgm.cvs import CollectiveVariable, Torsion
from openmm_sgm.simulate import MDSettings, evaluate
from openmm_sgm.symmetry import permuted, threefold_rotors
from openmm_sgm.system import MolecularSystem

METHYLS = [(0, 2, 3), (11, 12, 13), (19, 20, 21)]
"""Hydrogens of the acetyl, alanine's side chain and the methylamide."""


def settings_of(molecule: MolecularSystem) -> MDSettings:
    """Return settings on the Reference platform, which is in double precision."""
    system, prefixes, physical_groups = molecule.biased_system()
    return MDSettings(
        system_xml=openmm.XmlSerializer.serialize(system),
        physical_groups=physical_groups,
        bias_prefixes=prefixes,
        temperature_k=molecule.temperature_k,
        time_step_fs=molecule.time_step_fs,
        friction_per_ps=molecule.friction_per_ps,
        platform="Reference",
        platform_properties={},
    )


def changed(molecule: MolecularSystem, **changes: object) -> MolecularSystem:
    """Return the molecule with some fields replaced."""
    return MolecularSystem(**{field.name: getattr(molecule, field.name) for field in fields(molecule)} | changes)


@pytest.fixture(scope="module")
def settings(alanine: MolecularSystem) -> MDSettings:
    return settings_of(alanine)


# Finding them


def test_alanine_has_three_methyl_groups(
    alanine: MolecularSystem, settings: MDSettings, alanine_conformations: np.ndarray
) -> None:
    groups, cost = threefold_rotors(alanine, settings, alanine_conformations[:4])
    assert sorted(groups) == METHYLS
    assert cost == 4 * (1 + 3), "the configurations as they are, and once more for each candidate"
    names = [[atom.name for atom in alanine.topology.atoms() if atom.index in group] for group in METHYLS]
    assert names == [["H1", "H2", "H3"], ["HB1", "HB2", "HB3"], ["H1", "H2", "H3"]]


def test_methylenes_of_a_ring_are_no_rotors(proline: MolecularSystem) -> None:
    x = proline.positions + np.random.default_rng(1).normal(scale=0.005, size=(3, 26, 3))
    groups, cost = threefold_rotors(proline, settings_of(proline), x)
    assert sorted(groups) == [(0, 2, 3), (23, 24, 25)]
    assert cost == 3 * (1 + 2)


@pytest.mark.parametrize("what", ["charge", "mass"])
def test_hydrogens_that_differ_are_not_equivalent(
    what: str, alanine: MolecularSystem, alanine_conformations: np.ndarray
) -> None:
    for odd in (METHYLS[1:2], METHYLS):
        system = copy.deepcopy(alanine.system)
        (coulomb,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
        for group in odd:
            if what == "charge":
                charge, sigma, epsilon = coulomb.getParticleParameters(group[1])
                coulomb.setParticleParameters(group[1], 1.1 * charge, sigma, epsilon)
            else:
                system.setParticleMass(group[1], 2.014)
        molecule = changed(alanine, system=system)
        groups, _ = threefold_rotors(molecule, settings_of(molecule), alanine_conformations[:4])
        assert sorted(groups) == [group for group in METHYLS if group not in odd]


def test_hydrogens_that_a_cv_tells_apart_are_not_equivalent(
    alanine: MolecularSystem, alanine_conformations: np.ndarray
) -> None:
    cvs: tuple[CollectiveVariable, ...] = (alanine.cvs[0], Torsion("methyl", (6, 8, 10, 12)))
    molecule = changed(alanine, cvs=cvs)
    groups, _ = threefold_rotors(molecule, settings_of(molecule), alanine_conformations[:4])
    assert sorted(groups) == [METHYLS[0], METHYLS[2]]


# Turning them


def turns_of(before: np.ndarray, after: np.ndarray, group: tuple[int, int, int]) -> np.ndarray:
    """Return, per configuration, by how many places the group's positions moved on; −1 where it was no rotation."""
    result = np.full(len(before), -1)
    for turn in range(3):
        same = (after[:, list(group)] == before[:, np.roll(group, turn)]).all(axis=(1, 2))
        result[same] = turn
    return result


@pytest.fixture(scope="module")
def many(alanine_conformations: np.ndarray) -> np.ndarray:
    """Each of the conformations sixteen times over, shape (384, 22, 3)."""
    return np.tile(alanine_conformations, (16, 1, 1))


def test_permuted_turns_groups_cyclically_and_independently(many: np.ndarray) -> None:
    before = many.copy()
    (after,) = permuted([many], METHYLS, np.random.default_rng(2))
    np.testing.assert_array_equal(many, before, err_msg="the arrays given are left as they were")
    others = np.setdiff1d(np.arange(22), np.ravel(METHYLS))
    np.testing.assert_array_equal(after[:, others], before[:, others])
    turns = np.stack([turns_of(before, after, group) for group in METHYLS])
    assert (turns >= 0).all(), "every change is a rotation, none a swap"
    counts = np.unique(turns + 3 * np.arange(3)[:, None], return_counts=True)[1]
    # each of nine counts is binomial with p = 1/3: within four standard errors
    assert counts.shape == (9,)
    assert np.abs(counts - len(many) / 3).max() < 4 * np.sqrt(len(many) * 2 / 9)
    # and all 27 combinations occur: about 14 of each are expected
    assert len(np.unique(turns, axis=1).T) == 27


def test_permuted_keeps_the_set_of_positions_and_the_handedness(alanine: MolecularSystem, many: np.ndarray) -> None:
    (after,) = permuted([many], METHYLS, np.random.default_rng(3))
    assert (after != many).any(axis=(1, 2)).mean() > 0.9
    for old, new in zip(many, after, strict=True):
        np.testing.assert_array_equal(np.sort(old.view("f8,f8,f8").ravel()), np.sort(new.view("f8,f8,f8").ravel()))
    stereo = alanine.stereo
    assert stereo.centres[0] == (1, 0, 2, 3), "the handedness of a methyl group is that of its labels"
    assert stereo.kept(many).all()
    assert stereo.kept(after).all()
    swapped = many.copy()
    swapped[:, [11, 12]] = many[:, [12, 11]]
    assert not stereo.kept(swapped).any(), "a swap would be noticed"


def test_permuted_keeps_the_energy_and_turns_forces_alike(
    settings: MDSettings, alanine_conformations: np.ndarray
) -> None:
    energies, forces, _ = evaluate(settings, alanine_conformations)
    turned_positions, turned_forces = permuted([alanine_conformations, forces], METHYLS, np.random.default_rng(4))
    assert (turned_positions != alanine_conformations).any(axis=(1, 2)).sum() > 15
    new_energies, new_forces, _ = evaluate(settings, turned_positions)
    np.testing.assert_allclose(new_energies, energies, rtol=0, atol=1e-8)
    np.testing.assert_allclose(new_forces, turned_forces, rtol=0, atol=1e-6)
    assert np.abs(new_forces - forces).max() > 1, "forces that stayed behind would be noticed"


def test_permuted_is_a_function_of_its_seed(alanine_conformations: np.ndarray) -> None:
    one, two, other = (permuted([alanine_conformations], METHYLS, np.random.default_rng(seed))[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_nothing_to_turn(alanine_conformations: np.ndarray) -> None:
    (same,) = permuted([alanine_conformations], [], np.random.default_rng(7))
    np.testing.assert_array_equal(same, alanine_conformations)
    assert same is not alanine_conformations
    (none,) = permuted([alanine_conformations[:0]], METHYLS, np.random.default_rng(8))
    assert none.shape == (0, 22, 3)
