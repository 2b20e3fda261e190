"""Torsions that stay in one place, of configurations turned by hand.

Seen to fail with an arc that does not go over ±180°, with the share of frames left out, with CVs not taken out, with
peptide bonds let in, and with torsions that a symmetry folds let in.
"""

from __future__ import annotations

import mdtraj
import numpy as np
import pytest
from conftest import REPOSITORY

from openmm_sgm.confined import confined_torsions
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system


@pytest.fixture(scope="module")
def serine() -> MolecularSystem:
    """Capped serine; CVs phi and psi, so that chi1, about CA - CB, is none."""
    return load_system(REPOSITORY / "systems" / "serine_dipeptide_vacuum")


def turned(molecule: MolecularSystem, quad: tuple[int, ...], angles: np.ndarray) -> np.ndarray:
    """Return the starting structure with everything behind the torsion's bond turned to these angles (rad)."""
    neighbours: dict[int, set[int]] = {}
    for a, b in molecule.bonds.tolist():
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    _, i, j, _ = quad
    behind, todo = {j}, [j]
    while todo:
        for n in neighbours[todo.pop()] - behind - {i}:
            behind.add(n)
            todo.append(n)
    x = molecule.positions
    now = mdtraj.compute_dihedrals(molecule.trajectory(x[None]), [quad], periodic=False)[0, 0]
    axis = (x[j] - x[i]) / np.linalg.norm(x[j] - x[i])
    moved = np.array(sorted(behind))
    v = x[moved] - x[j]
    result = np.repeat(x[None], len(angles), axis=0)
    for k, angle in enumerate(np.asarray(angles) - now):
        result[k, moved] = (
            x[j]
            + v * np.cos(angle)
            + np.cross(axis, v) * np.sin(angle)
            + np.outer(v @ axis, axis) * (1 - np.cos(angle))
        )
    return result


CHI1 = (6, 8, 10, 13)


def test_a_rotamer_that_is_the_only_one_is_named(serine: MolecularSystem) -> None:
    """With an arc over 180 degrees; and not one that one frame in fifty has left."""
    rng = np.random.default_rng(1)
    angles = np.pi + np.radians(rng.uniform(-50, 50, 2000))
    (found,) = confined_torsions(serine, turned(serine, CHI1, angles))
    assert found.name == "torsion SER2-CA SER2-CB"
    assert np.degrees(found.start) == pytest.approx(130.5, abs=1)
    assert np.degrees(found.width) == pytest.approx(99, abs=1)
    start, end = np.degrees([found.start, found.start + found.width])
    assert str(found) == f"torsion SER2-CA SER2-CB ({start:.0f}° to {end - 360:.0f}°)"
    angles[:40] = 0.0
    positions = turned(serine, CHI1, angles)
    assert confined_torsions(serine, positions) == ()
    assert confined_torsions(serine, positions[40:], positions[:40]) == ()
    assert len(confined_torsions(serine, positions[30:])) == 1  # ten of 1970 are within the share left out


def test_wide_torsions_and_cvs_are_not_named(serine: MolecularSystem, alanine: MolecularSystem) -> None:
    """Those of alanine dipeptide that are no CV are peptide bonds and methyl groups."""
    rng = np.random.default_rng(2)
    angles = np.radians(rng.uniform(-100, 100, 500))
    assert confined_torsions(serine, turned(serine, CHI1, angles)) == ()
    still = np.repeat(alanine.positions[None], 50, axis=0)
    assert confined_torsions(alanine, still) == ()
    assert confined_torsions(alanine, np.zeros((0, 22, 3))) == ()


def test_a_hidden_phi_is_named() -> None:
    psi_alone = load_system(REPOSITORY / "systems" / "alanine_dipeptide_psi")
    found = confined_torsions(psi_alone, np.repeat(psi_alone.positions[None], 50, axis=0))
    assert [torsion.name for torsion in found] == ["torsion ALA2-N ALA2-CA"]
