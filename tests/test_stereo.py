"""The cis/trans states and the handedness of a molecule: which bonds, which states, and nothing else in any sample."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import openmm
import pytest
from conftest import REPOSITORY
from openmm import app

import openmm_sgm as sgm
from openmm_sgm.campaign import Campaign
from openmm_sgm.explore import explore
from openmm_sgm.frames import MD
from openmm_sgm.generator import Samples
from openmm_sgm.inject import impossible
from openmm_sgm.stereo import Stereo, stiff_bonds
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system

ACETYL, AMIDE = (1, 4, 6, 8), (8, 14, 16, 18)
"""The torsions of capped alanine's two peptide bonds."""
QUICK = sgm.SamplerOptions(
    training=sgm.TrainingOptions(steps=100, batch_size=128, rows=2000),
    network=sgm.NetworkOptions(width=32, hidden=48, conditioning=24),
    exploration_training_steps=40,
    rounds=1,
    density_error=0.1,
)


@pytest.fixture(scope="module")
def stereo(alanine: MolecularSystem) -> Stereo:
    return alanine.stereo


def turned(positions: np.ndarray, torsion: tuple[int, ...], moved: range, angle: float = np.pi) -> np.ndarray:
    """Return positions (n_atoms, 3) with the atoms `moved` turned about the bond in the torsion's middle."""
    b, c = positions[torsion[1]], positions[torsion[2]]
    axis = (c - b) / np.linalg.norm(c - b)
    v = positions[list(moved)] - c
    result = positions.copy()
    along = np.outer(v @ axis, axis) * (1 - np.cos(angle))
    result[list(moved)] = c + v * np.cos(angle) + np.cross(axis, v) * np.sin(angle) + along  # Rodrigues' formula
    return result


def rotations(n: int, seed: int) -> np.ndarray:
    """Return random proper rotations, shape (n, 3, 3)."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, 3, 3)))[0]
    return q * np.linalg.det(q)[:, None, None]


# Which bonds and centres


def test_peptide_bonds_and_centres_of_capped_alanine(alanine: MolecularSystem, stereo: Stereo) -> None:
    assert stereo.torsions == (ACETYL, AMIDE)
    assert stereo.cis == (False, False)
    assert stereo.summary() == "peptide bonds: 2 trans"
    assert [centre[0] for centre in stereo.centres] == [1, 8, 10, 18]
    assert stereo.names[:3] == ("peptide bond ACE1-C ALA2-N", "peptide bond ALA2-C NME3-N", "centre ACE1-CH3")
    bonded = {frozenset(pair) for pair in alanine.bonds.tolist()}
    for centre, *arms in stereo.centres:
        assert len(set(arms)) == 3
        assert all(frozenset((centre, arm)) in bonded for arm in arms)


def test_trans_proline_is_named_trans(proline: MolecularSystem) -> None:
    """Along the chain: towards Cα and not Cδ, whichever comes first in the file."""
    names = [atom.name for atom in proline.topology.atoms()]
    assert proline.stereo.summary() == "peptide bonds: 2 trans"
    assert [names[i] for i in proline.stereo.torsions[0]] == ["CH3", "C", "N", "CA"]


def test_a_bond_that_a_cv_turns_is_free(alanine: MolecularSystem) -> None:
    both = (sgm.Torsion("omega", ACETYL), sgm.Torsion("psi", (6, 8, 14, 16)))
    freed = replace(alanine, cvs=both, bins=())
    assert freed.stereo.torsions == (AMIDE,)
    assert freed.stiff_cvs == (ACETYL,)
    assert alanine.stiff_cvs == ()
    oxygen = replace(alanine, cvs=(sgm.Torsion("omega", (5, 4, 6, 7)),), bins=())
    assert oxygen.stereo.torsions == (AMIDE,), "however the torsion is written"
    other = replace(alanine, cvs=(sgm.Distance("r", (1, 18), 0.2, 1.2),), bins=())
    assert other.stereo.torsions == (ACETYL, AMIDE)


def butene(order: int | None, barrier: float) -> tuple[app.Topology, openmm.System]:
    """Return 2-butene without hydrogens on its methyl groups; two-fold terms add up to `barrier`, kJ/mol."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("MOL", topology.addChain())
    symbols = ["C", "C", "C", "C", "H", "H"]
    atoms = [topology.addAtom(f"{s}{k}", app.Element.getBySymbol(s), residue) for k, s in enumerate(symbols)]
    for i, j in ((0, 1), (1, 2), (2, 3), (1, 4), (2, 5)):
        topology.addBond(atoms[i], atoms[j], order=order if (i, j) == (1, 2) else None)
    for _ in atoms:
        system.addParticle(1.0)
    torsions = openmm.PeriodicTorsionForce()
    for i in (0, 4):
        for m in (3, 5):
            torsions.addTorsion(i, 1, 2, m, 2, np.pi, barrier / 8)
    torsions.addTorsion(0, 2, 1, 4, 2, np.pi, 500.0)  # an improper, about no bond
    system.addForce(torsions)
    return topology, system


@pytest.mark.parametrize(
    ("order", "barrier", "kinds"),
    [(2, 0.0, ["double bond"]), (None, 100.0, ["double bond"]), (None, 30.0, []), (1, 30.0, [])],
)
def test_double_bonds_by_order_or_by_the_force_field(order: int | None, barrier: float, kinds: list[str]) -> None:
    found = stiff_bonds(*butene(order, barrier))
    assert [kind for _, kind in found] == kinds
    assert [quad for quad, _ in found] == [(0, 1, 2, 3)] * len(kinds)


def test_ends_that_look_the_same_after_half_a_turn_have_no_state(alanine: MolecularSystem) -> None:
    """Primary amides, and double bonds to =CH2."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("MOL", topology.addChain())
    symbols = ["C", "C", "O", "N", "H", "H"]
    atoms = [topology.addAtom(f"{s}{k}", app.Element.getBySymbol(s), residue) for k, s in enumerate(symbols)]
    for i, j in ((0, 1), (1, 2), (1, 3), (3, 4), (3, 5)):
        topology.addBond(atoms[i], atoms[j])
    assert stiff_bonds(topology, system) == []


def test_peptide_bonds_of_a_large_ring_count_and_those_of_a_small_one_do_not() -> None:
    def ring(size: int) -> tuple[app.Topology, openmm.System]:
        topology = app.Topology()
        residue = topology.addResidue("RNG", topology.addChain())
        symbols = ["C", "N"] + ["C"] * (size - 2)
        atoms = [topology.addAtom(f"{s}{k}", app.Element.getBySymbol(s), residue) for k, s in enumerate(symbols)]
        oxygen = topology.addAtom("O", app.element.oxygen, residue)
        hydrogen = topology.addAtom("H", app.element.hydrogen, residue)
        for k in range(size):
            topology.addBond(atoms[k], atoms[(k + 1) % size])
        topology.addBond(atoms[0], oxygen)
        topology.addBond(atoms[1], hydrogen)
        return topology, openmm.System()

    assert [kind for _, kind in stiff_bonds(*ring(12))] == ["peptide bond"]
    assert stiff_bonds(*ring(6)) == []


# Which states


def test_a_turned_peptide_bond_is_named(alanine: MolecularSystem, stereo: Stereo) -> None:
    cis = turned(alanine.positions, AMIDE, range(16, 22))
    assert stereo.kept(np.stack([alanine.positions, cis])).tolist() == [True, False]
    assert stereo.changed(np.stack([alanine.positions, cis])) == [
        "",
        "the peptide bond ALA2-C NME3-N has turned from trans to cis",
    ]
    given = replace(alanine, positions=cis)
    assert given.stereo.summary() == "peptide bonds: 1 trans, 1 cis"
    assert given.stereo.changed(alanine.positions[None]) == [
        "the peptide bond ALA2-C NME3-N has turned from cis to trans"
    ]


def test_states_survive_motion_and_conformation(
    alanine: MolecularSystem, stereo: Stereo, alanine_conformations: np.ndarray
) -> None:
    kept = stereo.kept(alanine_conformations)
    assert kept.shape == (24,)
    assert kept.dtype == bool
    assert kept.all()
    moved = alanine.positions @ rotations(20, 17) + np.random.default_rng(18).normal(scale=50, size=(20, 1, 3))
    assert stereo.kept(moved).all()
    assert stereo.kept(alanine_conformations[:0]).shape == (0,)


def test_mirroring_changes_the_handedness(stereo: Stereo, alanine_conformations: np.ndarray) -> None:
    assert not stereo.kept(-alanine_conformations).any()
    assert not stereo.kept(alanine_conformations * [1.0, 1.0, -1.0]).any()
    assert stereo.kept(alanine_conformations * [-1.0, 1.0, -1.0]).all(), "two mirrors are a rotation"
    mixed = alanine_conformations.copy()
    mixed[::2] *= -1
    np.testing.assert_array_equal(stereo.kept(mixed), np.arange(24) % 2 == 1)


@pytest.mark.parametrize("pair", [(9, 10), (6, 14), (11, 12), (0, 3), (20, 21)], ids=str)
def test_two_neighbours_swapped_change_the_handedness(
    pair: tuple[int, int], stereo: Stereo, alanine_conformations: np.ndarray
) -> None:
    swapped = alanine_conformations.copy()
    swapped[:, list(pair)] = alanine_conformations[:, list(pair[::-1])]
    assert not stereo.kept(swapped).any()


def test_a_molecule_without_bonds_or_centres_keeps_its_state() -> None:
    water = np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]])
    assert Stereo().kept(np.stack([water, -water])).all()
    assert Stereo().changed(water[None]) == [""]
    assert Stereo().summary() == ""


def test_configurations_that_are_not_finite_do_not_keep_their_state(alanine: MolecularSystem, stereo: Stereo) -> None:
    x = np.repeat(alanine.positions[None], 2, axis=0)
    x[0] = np.nan
    assert stereo.kept(x).tolist() == [False, True]


# Nothing else in any sample


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_strained_start_keeps_its_peptide_bonds(seed: int) -> None:
    """Without the descent before the first umbrella all windows of seeds 1 to 3 held a cis bond (seen)."""
    molecule = load_system(REPOSITORY / "tests" / "data" / "capped_threonine")
    campaign = Campaign(molecule, sgm.SamplerOptions(), np.random.SeedSequence(seed), lambda line: None)
    explore(campaign, 3000, generate=False)
    held = np.array([walker.positions for walker in campaign.walkers.values() if not walker.failure])
    assert len(held) >= 5
    assert molecule.stereo.kept(held).all()
    assert molecule.stereo.kept(np.concatenate([part.positions for part in campaign.chain])).all()


def test_a_walker_that_turns_a_bond_is_set_aside_with_its_name(alanine: MolecularSystem) -> None:
    """A free run from a barrier's top: it falls to the other side, is started again, and given up if it falls again."""
    campaign = Campaign(alanine, QUICK, np.random.SeedSequence(1), lambda line: None)
    cis = turned(alanine.positions, AMIDE, range(16, 22))
    campaign.run([campaign.segment(0, cis, None, None, 0, 0, 20)], MD, {0: "a test"})
    assert campaign.walkers[0].failure is not None
    assert "the peptide bond ALA2-C NME3-N has turned from trans to cis at the start" in campaign.walkers[0].failure
    assert not campaign.chain, "none of its frames is kept"


def test_frames_of_a_run_that_turns_a_bond_are_not_kept(alanine: MolecularSystem) -> None:
    """Pulled over by a force that the umbrellas know nothing of."""
    system = copy.deepcopy(alanine.system)
    turning = openmm.CustomTorsionForce("300*(1-cos(theta))")
    turning.addTorsion(*AMIDE, [])
    system.addForce(turning)
    campaign = Campaign(replace(alanine, system=system), QUICK, np.random.SeedSequence(1), lambda line: None)
    campaign.run([campaign.segment(0, alanine.positions, None, None, 0, 0, 400)], MD, {0: "a test"})
    assert campaign.walkers[0].failure is not None
    assert "ALA2-C NME3-N has turned from trans to cis in the run" in campaign.walkers[0].failure
    assert not campaign.chain


def test_starts_in_another_state_are_not_taken(alanine: MolecularSystem) -> None:
    cis = turned(alanine.positions, AMIDE, range(16, 22))
    far = turned(cis, (4, 6, 8, 14), range(9, 22), 1.0)
    campaign = Campaign(alanine, QUICK, np.random.SeedSequence(1), lambda line: None)
    campaign.starts = np.stack([cis, far])
    explore(campaign, 4000, generate=False)
    failures = [walker.failure for walker in campaign.walkers.values() if walker.failure]
    assert any("has turned from trans to cis at the start" in failure for failure in failures)
    assert alanine.stereo.kept(np.concatenate([part.positions for part in campaign.chain])).all()


def test_generated_configurations_in_another_state_have_no_weight(alanine: MolecularSystem) -> None:
    cis = turned(alanine.positions, AMIDE, range(16, 22))
    samples = Samples(
        np.stack([alanine.positions, cis]), np.zeros(2), np.ones(2, dtype=bool), np.zeros(2, dtype=np.int64)
    )
    reasons = impossible(samples, np.zeros(2), alanine.stereo)
    assert reasons.tolist() == ["", "the peptide bond ALA2-C NME3-N has turned from trans to cis"]
