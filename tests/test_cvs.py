"""One contract for every kind of CV, and what their constructors refuse."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import mdtraj
import numpy as np
import openmm
import pytest
from conftest import energy, forces, reference_context
from openmm import unit
from openmm.app.metadynamics import BiasVariable

from openmm_sgm.cvs import (
    CV_KINDS,
    RMSD,
    Angle,
    CollectiveVariable,
    ContactNumber,
    CustomCV,
    Distance,
    ExpressionCV,
    Position,
    RadiusOfGyration,
    Torsion,
    as_cvs,
    from_bias_variable,
    strip_values,
)
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError

HEAVY = (1, 4, 5, 6, 8, 10, 14, 15, 16, 18)


def log_distance(trajectory: mdtraj.Trajectory) -> np.ndarray:
    return np.log(mdtraj.compute_distances(trajectory, [[1, 18]], periodic=False)[:, 0])


def phi_values(trajectory: mdtraj.Trajectory) -> np.ndarray:
    return mdtraj.compute_dihedrals(trajectory, [[4, 6, 8, 14]], periodic=False)


def _custom(alanine: MolecularSystem) -> CollectiveVariable:
    force = openmm.CustomBondForce("log(r)")
    force.addBond(1, 18, [])
    return CustomCV("log_r", force, log_distance, minimum=-2, maximum=0)


def _custom_periodic(alanine: MolecularSystem) -> CollectiveVariable:
    """Twice φ with a period of 2π, which neither side wraps."""
    force = openmm.CustomTorsionForce("2*theta")
    force.addTorsion(4, 6, 8, 14, [])
    return CustomCV("twice_phi", force, lambda t: 2 * phi_values(t), period=360 * unit.degree, unit="rad")


def _bias_variable(alanine: MolecularSystem) -> CollectiveVariable:
    """φ from 0 to 2π, as a BiasVariable may have it."""
    force = openmm.CustomTorsionForce("theta")
    force.addTorsion(4, 6, 8, 14, [])
    variable = BiasVariable(force, 0 * unit.degree, 360 * unit.degree, 20 * unit.degree, periodic=True)
    return from_bias_variable("phi", variable, phi_values, unit="rad")


# (constructor, tolerance of the value: mdtraj is in single precision)
CVS: dict[str, tuple[Callable[[MolecularSystem], CollectiveVariable], float]] = {
    "torsion": (lambda _: Torsion("phi", (4, 6, 8, 14)), 5e-6),
    "position": (lambda _: Position("y", (8,), "y", -1, 1), 1e-7),
    "distance": (lambda _: Distance("r", (1, 18), 0.3, 0.9), 5e-7),
    "angle": (lambda _: Angle("angle", (4, 8, 16), 0, 180 * unit.degree), 5e-6),
    "radius_of_gyration": (lambda _: RadiusOfGyration("rg", HEAVY, 1 * unit.angstrom, 4 * unit.angstrom), 5e-7),
    "rmsd": (lambda alanine: RMSD("rmsd", HEAVY, alanine.positions * unit.nanometer, 0, 0.3), 2e-5),
    "contact_number": (lambda _: ContactNumber("contacts", 0.4, 0, 9, groups=((1, 5, 6), (15, 16, 18))), 1e-5),
    "contact_pairs": (lambda _: ContactNumber("contacts", 3 * unit.angstrom, 0, 2, pairs=[(5, 17), (1, 18)]), 1e-5),
    "expression": (
        lambda _: ExpressionCV("log_r", (1, 18), "log(d)^2-s; d=sqrt(s); s=(x1-x2)^2+(y1-y2)^2+(z1-z2)^2", 0, 2),
        5e-6,
    ),
    "expression_periodic": (
        lambda _: ExpressionCV("turn", (1, 18), "2*atan2(y1-y2, x1-x2)", unit="rad", period=360 * unit.degree),
        5e-6,
    ),
    "custom": (_custom, 1e-6),
    "custom_periodic": (_custom_periodic, 1e-5),
    "bias_variable": (_bias_variable, 5e-6),
}


@pytest.fixture(params=CVS)
def cv_and_tolerance(request: pytest.FixtureRequest, alanine: MolecularSystem) -> tuple[CollectiveVariable, float]:
    make, tolerance = CVS[request.param]
    return make(alanine), tolerance


@pytest.fixture
def cv(cv_and_tolerance: tuple[CollectiveVariable, float]) -> CollectiveVariable:
    return cv_and_tolerance[0]


def context_of(force: openmm.Force, n_atoms: int) -> openmm.Context:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(1.0)
    system.addForce(force)
    return reference_context(system)


def test_every_kind_is_under_the_contract():
    assert set(CV_KINDS) <= set(CVS)


def test_mdtraj_value_is_openmm_energy(cv_and_tolerance, alanine, alanine_conformations):
    cv, tolerance = cv_and_tolerance
    values = cv.evaluate(alanine.trajectory(alanine_conformations))
    assert values.shape == (len(alanine_conformations),)
    assert values.dtype == np.float64
    context = context_of(cv.force(), alanine.n_atoms)
    energies = [energy(context, x) for x in alanine_conformations]
    assert np.ptp(energies) > 100 * tolerance
    np.testing.assert_allclose(cv.difference(values, energies), 0, atol=tolerance)


def test_bias_is_the_umbrella_and_its_force_the_gradient(cv, alanine, alanine_conformations):
    context = context_of(cv.bias_force("window"), alanine.n_atoms)
    values = cv.evaluate(alanine.trajectory(alanine_conformations))
    assert energy(context, alanine_conformations[0]) == 0, "the umbrella must be off until it is switched on"
    k = 100.0
    context.setParameter("window_force_constant", k)
    step = 1e-5
    for x, value in zip(alanine_conformations[:3], values[:3], strict=True):
        center = value + 0.1
        context.setParameter("window_center", center)
        d = cv.difference(value, center)
        # k d times the tolerance of the value
        assert energy(context, x) == pytest.approx(0.5 * k * d**2, abs=2e-4)
        numerical = np.zeros_like(x)
        for index in itertools.product(cv.atoms or range(alanine.n_atoms), range(3)):
            ends = []
            for sign in (1, -1):
                moved = x.copy()
                moved[index] += sign * step
                ends.append(energy(context, moved))
            numerical[index] = -(ends[0] - ends[1]) / (2 * step)
        # Central differences at 1e-5 nm: relative error about 1e-7, absolute about 1e-10 kJ/mol / step.
        np.testing.assert_allclose(forces(context, x), numerical, rtol=1e-5, atol=1e-4)
        assert np.abs(numerical).max() > 0.1


@pytest.mark.parametrize("name", ["torsion", "custom_periodic", "bias_variable"])
def test_umbrella_does_not_notice_whole_periods(name, alanine, alanine_conformations):
    cv = CVS[name][0](alanine)
    values = cv.evaluate(alanine.trajectory(alanine_conformations))
    assert (values >= -math.pi).all()
    assert (values < math.pi).all()
    context = context_of(cv.bias_force("w"), alanine.n_atoms)
    context.setParameter("w_force_constant", 50.0)
    for x, value in zip(alanine_conformations, values, strict=True):
        energies = []
        for turns in (-1, 0, 1, 2):
            context.setParameter("w_center", value - 0.2 + turns * cv.period)
            energies.append(energy(context, x))
        np.testing.assert_allclose(energies, 0.5 * 50 * 0.2**2, atol=1e-4)


def test_umbrella_reaches_across_pi(alanine):
    """A torsion of 179° under an umbrella at −179° is 2° away, and pushed on through 180°."""
    x = np.zeros((22, 3))
    angle = math.radians(179)
    x[[4, 6, 8, 14]] = [[0.1, 0, 0], [0, 0, 0], [0, 0, 0.1], [0.1 * math.cos(angle), -0.1 * math.sin(angle), 0.1]]
    cv = Torsion("phi", (4, 6, 8, 14))
    (value,) = cv.evaluate(alanine.trajectory(x))
    assert abs(value) == pytest.approx(angle, abs=1e-6)
    context = context_of(cv.bias_force("w"), 22)
    context.setParameter("w_force_constant", 100.0)
    context.setParameter("w_center", -math.copysign(angle, value))
    assert energy(context, x) == pytest.approx(50 * math.radians(2) ** 2, rel=1e-5)


def test_wrap_is_half_open():
    cv = Torsion("phi", (0, 1, 2, 3))
    edge = np.array([-math.pi, math.pi, np.nextafter(math.pi, 0), np.nextafter(-math.pi, -4), 3 * math.pi, 7.0, 0.0])
    wrapped = cv.wrap(edge)
    assert (wrapped >= -math.pi).all()
    assert (wrapped < math.pi).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * edge), atol=1e-14)
    np.testing.assert_allclose(cv.difference(3.1, -3.1), 6.2 - 2 * math.pi, atol=1e-14)
    line = Distance("r", (0, 1), 0, 1)
    np.testing.assert_array_equal(line.wrap(edge), edge)
    assert line.difference(3.0, -3.0) == 6.0


def test_contact_number_at_the_cutoff(alanine):
    x = np.zeros((22, 3))
    x[1, 0] = 0.3
    cv = ContactNumber("contacts", 0.3, 0, 1, pairs=[(0, 1)])
    np.testing.assert_allclose(cv.evaluate(alanine.trajectory(x)), 0.5, atol=1e-6)
    assert energy(context_of(cv.force(), 22), x) == pytest.approx(0.5)


def test_rmsd_ignores_motion_as_a_whole_and_leaves_the_trajectory_alone(alanine, alanine_conformations):
    cv = RMSD("rmsd", HEAVY, alanine.positions, 0, 0.3)
    trajectory = alanine.trajectory(alanine_conformations)
    before = trajectory.xyz.copy()
    values = cv.evaluate(trajectory)
    np.testing.assert_array_equal(trajectory.xyz, before)
    rotation = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    moved = alanine.trajectory(alanine_conformations @ rotation + [1, 2, 3])
    np.testing.assert_allclose(cv.evaluate(moved), values, atol=2e-5)
    # Near zero single precision leaves the square root of a rounding error.
    assert cv.evaluate(alanine.trajectory(alanine.positions))[0] < 3e-4


def test_no_frames_give_no_values(cv, alanine):
    assert cv.evaluate(alanine.trajectory(np.zeros((0, 22, 3)))).shape == (0,)


@pytest.mark.parametrize("name", sorted(set(CVS) - {"custom_periodic"}))
def test_cvs_can_be_sent_to_a_process(name, alanine):
    cv = CVS[name][0](alanine)
    trajectory = alanine.trajectory(alanine.positions)
    assert pickle.loads(pickle.dumps(cv)).evaluate(trajectory) == cv.evaluate(trajectory)


def test_quantities_are_converted_once():
    cv = Angle(
        "a",
        (0, 1, 2),
        30 * unit.degree,
        2.0,
        windows=9,
        force_constant=1 * unit.kilocalorie_per_mole / unit.radian**2,
    )
    assert (cv.minimum, cv.maximum, cv.windows) == (pytest.approx(math.pi / 6), 2.0, 9)
    assert cv.force_constant == pytest.approx(4.184)
    assert Distance("r", (0, 1), 3 * unit.angstrom, 1).minimum == pytest.approx(0.3)
    phi = Torsion("phi", np.array([4, 6, 8, 14]))
    assert (phi.minimum, phi.maximum, phi.period) == (-math.pi, math.pi, 2 * math.pi)
    assert phi.atoms == (4, 6, 8, 14)
    assert all(type(atom) is int for atom in phi.atoms)


BAD = {
    "three atoms": (lambda: Torsion("phi", (1, 2, 3)), "needs 4 atoms, got 3"),
    "one atom": (lambda: RadiusOfGyration("rg", (1,), 0, 1), "needs 2 atoms or more, got 1"),
    "same atom": (lambda: Torsion("phi", (1, 2, 2, 3)), "distinct"),
    "negative atom": (lambda: Torsion("phi", (-1, 2, 1, 3)), "count from 0"),
    "half an atom": (lambda: Torsion("phi", (1, 2.5, 3, 4)), "whole number, got 2.5"),
    "boolean atom": (lambda: Torsion("phi", (True, 2, 3, 4)), "whole number, got True"),
    "atoms no list": (lambda: Torsion("phi", 3), "must be a list"),
    "no range": (lambda: Distance("r", (0, 1)), "needs a minimum and a maximum"),
    "half a range": (lambda: Distance("r", (0, 1), 0.3), "needs a minimum and a maximum"),
    "empty range": (lambda: Distance("r", (0, 1), 0.3, 0.3), "minimum must be below"),
    "wrong unit": (lambda: Distance("r", (0, 1), 0, 1 * unit.kelvin), "maximum must be a number or a Quantity"),
    "text": (lambda: Distance("r", (0, 1), "0.1", 1), "minimum must be a number"),
    "infinite": (lambda: Distance("r", (0, 1), 0, math.inf), "maximum must be finite"),
    "no windows": (lambda: Torsion("phi", (0, 1, 2, 3), windows=0), "windows must be 1 or more"),
    "part window": (lambda: Torsion("phi", (0, 1, 2, 3), windows=2.5), "windows must be a whole number"),
    "negative k": (lambda: Torsion("phi", (0, 1, 2, 3), force_constant=-1), "force constant must be positive"),
    "name": (lambda: Torsion("phi, psi", (0, 1, 2, 3)), "the name of a CV"),
    "reserved name": (lambda: Torsion("log_weight", (0, 1, 2, 3)), "a column of the output"),
    "small reference": (
        lambda: RMSD("d", (0, 1, 5), np.zeros((4, 3)), 0, 1),
        "must hold all atoms of the system or the 3",
    ),
    "flat reference": (lambda: RMSD("d", (0, 1, 5), np.zeros(12), 0, 1), r"shape \(n_atoms, 3\)"),
    "no pairs": (lambda: ContactNumber("n", 0.3, 0, 1), "either pairs of atoms or two groups"),
    "three groups": (lambda: ContactNumber("n", 0.3, 0, 1, groups=((1,), (2,), (3,))), "groups must be two lists"),
    "flat groups": (lambda: ContactNumber("n", 0.3, 0, 1, groups=(1, 2)), "must be a list"),
    "flat pairs": (lambda: ContactNumber("n", 0.3, 0, 1, pairs=(1, 2)), "must be a list"),
    "overlap": (lambda: ContactNumber("n", 0.3, 0, 1, groups=((1, 2), (2, 3))), "distinct"),
    "pair twice": (lambda: ContactNumber("n", 0.3, 0, 1, pairs=((1, 2), (2, 1))), "given twice"),
    "triple": (lambda: ContactNumber("n", 0.3, 0, 1, pairs=((1, 2, 3),)), "pair of two atoms"),
    "cutoff": (lambda: ContactNumber("n", 0, 0, 1, pairs=((1, 2),)), "cutoff must be positive"),
    "no force": (lambda: CustomCV("c", "theta", phi_values, minimum=0, maximum=1), "must be an openmm.Force"),
    "no function": (lambda: CustomCV("c", openmm.CustomBondForce("r"), None, minimum=0, maximum=1), "a function"),
    "custom range": (lambda: CustomCV("c", openmm.CustomBondForce("r"), phi_values), "needs a minimum and a maximum"),
    "both": (lambda: CustomCV("c", openmm.CustomBondForce("r"), phi_values, period=1, minimum=0), "is periodic"),
    "period": (lambda: CustomCV("c", openmm.CustomBondForce("r"), phi_values, period=-1), "period must be positive"),
    "unit": (
        lambda: CustomCV("c", openmm.CustomBondForce("r"), phi_values, unit="pm", minimum=0, maximum=1),
        "unit must be",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    make, message = BAD[case]
    with pytest.raises(InputError, match=message):
        make()


def test_a_function_of_the_wrong_shape_is_refused(alanine, alanine_conformations):
    cv = CustomCV("c", openmm.CustomBondForce("r"), lambda t: t.xyz, minimum=0, maximum=1)
    with pytest.raises(InputError, match="one value per frame"):
        cv.evaluate(alanine.trajectory(alanine_conformations))


def test_as_cvs():
    phi, psi = Torsion("phi", (4, 6, 8, 14)), Torsion("psi", (6, 8, 14, 16))
    assert as_cvs([phi, psi]) == (phi, psi)
    with pytest.raises(InputError, match="different names, got phi, phi"):
        as_cvs([phi, Torsion("phi", (6, 8, 14, 16))])
    with pytest.raises(InputError, match="one to 3 CVs are supported, got 0"):
        as_cvs([])
    with pytest.raises(InputError, match="one to 3 CVs are supported, got 4"):
        as_cvs([Torsion(name, (4, 6, 8, 14)) for name in "abcd"])
    with pytest.raises(InputError, match="from_bias_variable"):
        as_cvs([BiasVariable(openmm.CustomBondForce("r"), 0.0, 1.0, 0.1)])
    with pytest.raises(InputError, match="got str"):
        as_cvs(["phi"])
    with pytest.raises(InputError, match="must be a list of collective variables, got Torsion"):
        as_cvs(phi)


def test_a_full_turn_is_the_limit_unless_the_range_is_wider() -> None:
    """Of an angle that is not periodic, and of one whose range goes beyond a turn, as a sum of torsions may."""
    angle = Angle("a", (0, 1, 2), 1.0, 2.8)
    with pytest.raises(InputError, match=r"CV 'a': 109.5 is more than a full turn: .* radians, or Quantities"):
        angle.strip_units(109.5)
    assert angle.strip_units(109.5 * unit.degree) == pytest.approx(np.radians(109.5))
    wound = ExpressionCV("wound", (0,), "x1", -20, 20, unit="rad")
    assert wound.strip_units(-15) == -15
    assert Distance("r", (0, 1), 0, 100).strip_units(90) == 90
    assert strip_values([angle, wound], [4.0, 5.0]) == (4.0, 5.0)  # neither is a torsion


def test_a_reference_of_the_selected_atoms_alone(alanine, alanine_conformations):
    """It was refused: 'the reference must hold all atoms of the system'. In the order of `atoms`, whichever it is:
    with one that does not ascend, a reference of all atoms gave other values, since mdtraj slices in ascending order.
    """
    whole = RMSD("d", HEAVY, alanine.positions, 0, 0.3)
    trajectory = alanine.trajectory(alanine_conformations)
    expected = whole.evaluate(trajectory)
    np.testing.assert_allclose(
        RMSD("d", HEAVY[::-1], alanine.positions, 0, 0.3).evaluate(trajectory), expected, atol=1e-6
    )
    for atoms in (HEAVY, HEAVY[::-1]):
        part = RMSD("d", atoms, alanine.positions[list(atoms)], 0, 0.3)
        np.testing.assert_allclose(part.evaluate(trajectory), expected, atol=1e-6)
        with pytest.raises(InputError, match=r"must know how many atoms the system has: take the force of for_system"):
            part.force()
        molecule = replace(alanine, cvs=(part,), bins=())
        context = context_of(molecule.cvs[0].force(), alanine.n_atoms)
        np.testing.assert_allclose([energy(context, x) for x in alanine_conformations], expected, atol=2e-5)
    first = RMSD("d", range(8), alanine.positions[:8], 0, 0.3)  # as many rows as the largest index asks for
    whole = RMSD("d", range(8), alanine.positions, 0, 0.3)
    np.testing.assert_allclose(first.evaluate(trajectory), whole.evaluate(trajectory), atol=1e-6)
    assert replace(alanine, cvs=(first,), bins=()).biased_system()


def test_mdtraj_s_trans_lies_within_the_period():
    """Its π is 3.14159274, above π, and falls out of a histogram over (−π, π)."""
    zigzag = np.array([[-0.04, 0.1, 0], [0, 0, 0], [0.15, 0, 0], [0.19, -0.1, 0]])
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for _ in zigzag:
        topology.add_atom("C", mdtraj.element.carbon, residue)
    trajectory = mdtraj.Trajectory(zigzag, topology)
    assert abs(float(mdtraj.compute_dihedrals(trajectory, [[0, 1, 2, 3]], periodic=False)[0, 0])) > np.pi
    value = Torsion("tau", (0, 1, 2, 3)).evaluate(trajectory)
    assert -np.pi <= value[0] < np.pi
    assert np.histogram(value, np.linspace(-np.pi, np.pi, 37))[0].sum() == 1


def centring(trajectory: mdtraj.Trajectory) -> np.ndarray:
    """A function as users write it: mdtraj.rmsd without atom_indices centres both of its arguments in place."""
    return mdtraj.rmsd(trajectory, trajectory)


def test_a_function_that_changes_the_frames_changes_no_other_cv(alanine):
    """The frames were centred for every CV after it: a position became another."""
    x = alanine.positions + np.array([1.0, 2.0, 3.0])
    trajectory = alanine.trajectory(x[None])
    rmsd = CustomCV("rmsd", openmm.RMSDForce(x, range(alanine.n_atoms)), centring, minimum=0, maximum=1)
    before = trajectory.xyz.copy()
    assert rmsd.evaluate(trajectory)[0] == pytest.approx(0, abs=1e-3)
    np.testing.assert_array_equal(trajectory.xyz, before)
    assert Position("y", (8,), "y", -9, 9).evaluate(trajectory)[0] == pytest.approx(x[8, 1], abs=1e-6)
    kept = x.copy()
    alanine.trajectory(kept[None]).center_coordinates()
    np.testing.assert_array_equal(kept, x)
