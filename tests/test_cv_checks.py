"""CVs that cannot be meant are named before anything is run."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import openmm
import pytest
from analytic import BOND_NM, triatomic
from conftest import REPOSITORY
from openmm import app

from openmm_sgm.cli import main
from openmm_sgm.cv_checks import refuse_constant
from openmm_sgm.cvs import Angle, CollectiveVariable, ContactNumber, Distance, ExpressionCV, RadiusOfGyration, Torsion
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError


def chain(
    *cvs: CollectiveVariable, angles: tuple[float, float] = (110.0, 110.0), held_at: float = 110.0, rigid: bool = False
) -> MolecularSystem:
    """Return four carbons in a chain whose torsion is 60° at the start.

    angles : degrees, at the start; held_at : of both, by the force field; rigid : bonds, and bonds of a triangle
    """
    system, topology = openmm.System(), app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    atoms = [topology.addAtom(f"C{k}", app.element.carbon, residue) for k in range(4)]
    bends = openmm.HarmonicAngleForce()
    for _ in atoms:
        system.addParticle(12.0)
    for k in range(3):
        topology.addBond(atoms[k], atoms[k + 1])
        if rigid:
            system.addConstraint(k, k + 1, BOND_NM)
    for k in range(2):
        bends.addAngle(k, k + 1, k + 2, np.radians(held_at), 300.0)
    system.addForce(bends)
    first, last = np.radians(angles)
    turn = np.array([1.0, np.cos(np.pi / 3), np.sin(np.pi / 3)])
    x = np.array(
        [[np.cos(first), np.sin(first), 0], [0, 0, 0], [1, 0, 0], [1 - np.cos(last), *np.sin(last) * turn[1:]]]
    )
    return MolecularSystem("chain", topology, system, BOND_NM * x, cvs or (TAU,), 300.0)


TAU = Torsion("tau", (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("cv", "said"),
    [
        (
            Torsion("phi", (5, 7, 9, 15)),
            r"9, 15 are not bonded in a row: .* take 1 .* \(4, 6, 8, 14 are bonded so\)",
        ),
        (Torsion("far", (1, 6, 8, 14)), "atoms 1, 6, 8, 14 are not bonded in a row"),
        (Angle("a", (5, 7, 9), 0.5, 3.0), r"atoms 5, 7, 9 are not bonded in a row: .* \(4, 6, 8 are"),
        (Torsion("improper", (8, 14, 6, 10)), "unless the CV is meant as it is"),
    ],
)
def test_atoms_that_are_not_bonded_in_a_row_are_told(
    alanine: MolecularSystem, cv: CollectiveVariable, said: str
) -> None:
    """Indices that count from 1, as in a PDB file: the run was of another torsion, without a word."""
    with pytest.warns(UserWarning, match=said):
        replace(alanine, cvs=(cv,), bins=())


def test_what_is_meant_is_not_warned_of(alanine: MolecularSystem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cvs = (Torsion("phi", (14, 8, 6, 4)), Angle("a", (6, 8, 14), 1.0, 3.0), Distance("r", (1, 18), 0.1, 2.0))
        replace(alanine, cvs=cvs, bins=())
        chain(angles=(170.0, 110.0))


def test_a_torsion_along_a_line_is_refused_or_told() -> None:
    """A run ended with an empty surface, or began with a comparison of NaN."""
    for angles in ((180.0, 110.0), (110.0, 180.0)):
        with pytest.raises(InputError, match=r"atoms \d, \d, \d, which lie on a line at the start"):
            chain(angles=angles)
    with pytest.raises(InputError, match="which the force field holds on a line, as in a nitrile or an alkyne"):
        chain(held_at=179.0)
    with pytest.warns(UserWarning, match=r"nearly on a line at the start \(176 degrees\)"):
        chain(angles=(176.0, 110.0))
    chain(Distance("r", (0, 3), 0.1, 0.6), held_at=179.0)


@pytest.mark.parametrize(
    "cv",
    [
        Distance("constant", (1, 0), 0.1, 0.2),
        ContactNumber("constant", 0.15, 0, 2, pairs=[(0, 1), (2, 3)]),
        RadiusOfGyration("constant", (1, 2), 0.0, 0.2),
        ExpressionCV("constant", (2, 3), "log((x1-x2)^2+(y1-y2)^2+(z1-z2)^2)", -5, 0),
    ],
)
def test_cvs_that_constraints_hold_are_refused(cv: CollectiveVariable) -> None:
    """Distance on a constrained bond: every window but one was given up, and the surface was empty."""
    with pytest.raises(InputError, match="CV 'constant' never changes, as the constraints hold every distance"):
        chain(TAU, cv, rigid=True)
    chain(cv)


def test_what_constraints_leave_free_is_not_refused() -> None:
    """A straight start, where the gradient of the ends' distance is the sum of the bonds', is none that is constant."""
    ends = Distance("ends", (0, 2), 0.1, 0.4)
    chain(TAU, ends, RadiusOfGyration("rg", (0, 1, 2, 3), 0.0, 0.4), rigid=True)
    chain(ends, angles=(180.0, 110.0), rigid=True)
    triatomic(constrained=True, cvs=(Angle("theta", (0, 1, 2), 1.0, 2.8),))


def test_an_angle_of_a_rigid_triangle_is_constant() -> None:
    molecule = triatomic(cvs=(Angle("theta", (0, 1, 2), 1.0, 2.8),))
    triangle = [(i, j, BOND_NM) for i, j in ((0, 1), (1, 2), (0, 2))]
    with pytest.raises(InputError, match="'theta' never changes"):
        refuse_constant(triangle, molecule.positions, molecule.cvs, lambda x: molecule.cv_gradients(x, [0]))
    refuse_constant(triangle[:2], molecule.positions, molecule.cvs, lambda x: molecule.cv_gradients(x, [0]))


def test_the_command_line_tells_it_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(REPOSITORY / "systems" / "alanine_dipeptide_vacuum", folder)
    text = (folder / "system.toml").read_text()
    (folder / "system.toml").write_text(text.replace("atoms = [4, 6, 8, 14]", "atoms = [5, 7, 9, 15]"))
    assert main(["run", str(folder), "--output", str(tmp_path / "out"), "--force-evaluations", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: CV 'phi': atoms 5, 7, 9, 15 are not bonded in a row")
