"""The copy that is sampled is what the context simulates: forces, groups, parameters, place, biases, topology."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import mdtraj
import numpy as np
import openmm
import pytest
from analytic import triatomic
from conftest import energy, reference_context
from openmm import app, unit

import openmm_sgm as sgm
from openmm_sgm.dynamics import DEFAULT_FRICTION_PER_PS
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError

CHARGES = (0.8, -1.6, 0.8)
ANGLE = [sgm.Angle("theta", (0, 1, 2), 0.9, 2.8)]


def simulation(*extra: openmm.Force, integrator: openmm.Integrator | None = None) -> app.Simulation:
    """Return a simulation of a bent molecule of three atoms with further forces."""
    molecule = triatomic()
    for force in extra:
        molecule.system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    integrator = integrator or openmm.LangevinMiddleIntegrator(300, DEFAULT_FRICTION_PER_PS, 0.001)
    result = app.Simulation(molecule.topology, molecule.system, integrator, platform)
    result.context.setPositions(molecule.positions)
    return result


def taken(own: app.Simulation) -> sgm.MolecularSystem:
    return sgm.MolecularSystem.from_simulation(own, ANGLE)


def quietly_taken(own: app.Simulation) -> sgm.MolecularSystem:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return taken(own)


def on_the_angle(expression: str = "25*theta") -> openmm.CustomAngleForce:
    force = openmm.CustomAngleForce(expression)
    force.addAngle(0, 1, 2, [])
    return force


# What the integrator integrates


def test_a_force_group_that_the_integrator_leaves_out_is_left_out() -> None:
    ghost = on_the_angle()
    ghost.setForceGroup(5)
    own = simulation(ghost)
    own.integrator.setIntegrationForceGroups({0})
    with pytest.warns(UserWarning, match="^CustomAngleForce: the integrator leaves this force group out"):
        molecule = taken(own)
    x = molecule.positions + 0.01 * np.eye(3)
    assert energy(reference_context(molecule.system), x) == pytest.approx(energy(own.context, x, {0}), abs=1e-9)
    assert energy(own.context, x) > energy(own.context, x, {0}) + 1


def test_what_acts_outside_groups_is_kept() -> None:
    remover = openmm.CMMotionRemover()
    remover.setForceGroup(7)
    own = simulation(remover)
    own.integrator.setIntegrationForceGroups({0})
    assert any(isinstance(force, openmm.CMMotionRemover) for force in quietly_taken(own).system.getForces())


# The context and the system


@pytest.mark.parametrize("expression", ["25*theta", "300*(theta-1.9)^2"], ids=["slope", "zero and flat at the start"])
def test_a_force_added_after_the_context_was_made_is_named(expression: str) -> None:
    own = simulation()
    own.system.addForce(on_the_angle(expression))
    message = r"CustomAngleForce was added to the system after the context was made; call .*reinitialize"
    with pytest.raises(InputError, match=message) as caught:
        taken(own)
    assert "\n" not in str(caught.value)
    own.context.reinitialize(preserveState=True)
    with pytest.warns(UserWarning, match="a bias or a restraint"):
        taken(own)


def test_two_forces_added_later_are_both_named() -> None:
    own = simulation()
    bond = openmm.CustomBondForce("40*r")
    bond.addBond(0, 2, [])
    own.system.addForce(bond)
    own.system.addForce(on_the_angle())
    with pytest.raises(InputError, match="CustomBondForce and CustomAngleForce were added"):
        taken(own)


def test_parameters_changed_without_telling_the_context_are_named() -> None:
    own = simulation()
    own.system.getForce(1).setForceGroup(3)
    own.context.reinitialize(preserveState=True)
    angle = own.system.getForce(1)
    angle.setAngleParameters(0, 0, 1, 2, 1.6, 90.0)
    with pytest.raises(InputError, match="HarmonicAngleForce was changed, or another force removed or regrouped"):
        taken(own)
    angle.updateParametersInContext(own.context)
    quietly_taken(own)


def test_a_force_that_was_regrouped_or_removed_after_the_context_was_made() -> None:
    own = simulation()
    own.system.getForce(1).setForceGroup(4)
    own.integrator.setIntegrationForceGroups({0})
    message = "HarmonicBondForce was changed, or another force removed or regrouped"
    with pytest.warns(UserWarning, match="leaves this"), pytest.raises(InputError, match=message):
        taken(own)
    own = simulation(on_the_angle())
    own.system.removeForce(2)
    with pytest.raises(InputError, match="one of HarmonicBondForce and HarmonicAngleForce was changed, or another"):
        taken(own)


def test_constraints_changed_after_the_context_was_made() -> None:
    own = simulation()
    own.system.addConstraint(0, 1, 0.15)
    with pytest.raises(InputError, match="the constraint on atoms 0 and 1 was added after the context was made"):
        taken(own)
    own.context.reinitialize(preserveState=True)
    assert quietly_taken(own).constraints == ((0, 1, 0.15),)
    own.system.removeConstraint(0)
    with pytest.raises(InputError, match="the constraint on atom 0 was removed after the context was made"):
        taken(own)


def test_a_system_that_cannot_be_copied_is_refused() -> None:
    if not hasattr(openmm, "PythonForce"):
        pytest.skip("this OpenMM has no PythonForce")
    force = openmm.PythonForce(lambda state: (0.0, np.zeros((3, 3))))
    with pytest.raises(InputError, match=r"the system cannot be copied: .*[Cc]ould not"):
        taken(simulation(force))


def test_the_comparison_leaves_the_context_as_it_is() -> None:
    own = simulation()
    own.context.setVelocitiesToTemperature(300, 1)
    own.step(5)

    def state() -> str:
        return openmm.XmlSerializer.serialize(own.context.getState(positions=True, velocities=True, parameters=True))

    before = state()
    taken(own)
    assert state() == before


def test_single_precision_is_no_difference(alanine: sgm.MolecularSystem) -> None:
    own = app.Simulation(
        alanine.topology,
        copy.deepcopy(alanine.system),
        openmm.LangevinMiddleIntegrator(300, 1, 0.002),
        openmm.Platform.getPlatformByName("CPU"),
    )
    own.context.setPositions(alanine.positions + np.array([40.0, -30.0, 20.0]))
    sgm.MolecularSystem.from_simulation(own, alanine.cvs)


# Place and orientation


def centroid_restraint() -> openmm.Force:
    force = openmm.CustomCentroidBondForce(1, "0.5*3000*(x1^2+y1^2+z1^2)")
    force.addBond([force.addGroup([0])], [])
    return force


def compound_restraint() -> openmm.Force:
    force = openmm.CustomCompoundBondForce(1, "500*((x1-0.1)^2+y1^2+z1^2)")
    force.addBond([2], [])
    return force


def inside_cv_force() -> openmm.Force:
    inner = openmm.CustomExternalForce("x^2+y^2+z^2")
    inner.addParticle(1, [])
    force = openmm.CustomCVForce("700*r2")
    force.addCollectiveVariable("r2", inner)
    return force


def bare_field(charges: tuple[float, ...] = CHARGES) -> openmm.CustomExternalForce:
    force = openmm.CustomExternalForce("-150*q*x")
    force.addPerParticleParameter("q")
    for atom, charge in enumerate(charges):
        force.addParticle(atom, [charge])
    return force


def field_inside_cv_force() -> openmm.Force:
    moment = bare_field()
    outer = openmm.CustomCVForce("m")
    outer.addCollectiveVariable("m", moment)
    return outer


def field_as_compound() -> openmm.Force:
    force = openmm.CustomCompoundBondForce(3, "-150*(0.8*x1-1.6*x2+0.8*x3)")
    force.addBond([0, 1, 2], [])
    return force


def orientation_restraint() -> openmm.Force:
    if not hasattr(openmm, "OrientationRestraintForce"):
        pytest.skip("this OpenMM has no OrientationRestraintForce")
    return openmm.OrientationRestraintForce(500.0, triatomic().positions, [0, 1, 2])


@pytest.mark.parametrize("make", [centroid_restraint, compound_restraint, inside_cv_force])
def test_a_restraint_to_a_place_ties_whatever_force_it_hides_in(make: Callable[[], openmm.Force]) -> None:
    molecule = quietly_taken(simulation(make()))
    assert molecule.tied
    constrained = copy.deepcopy(molecule.system)
    constrained.addConstraint(0, 1, 0.15)
    message = rf"here by {make().getName()}\).*where constraints cannot be kept: build the system without constraints"
    with pytest.raises(InputError, match=message):
        sgm.MolecularSystem("m", molecule.topology, constrained, molecule.positions, molecule.cvs, 300.0)


@pytest.mark.parametrize("make", [bare_field, field_inside_cv_force, field_as_compound, orientation_restraint])
def test_dependence_on_the_orientation_is_refused(make: Callable[[], openmm.Force]) -> None:
    message = f"changes when the molecule is turned, .* by {make().getName()}, which internal coordinates cannot"
    with pytest.raises(InputError, match=message) as caught:
        taken(simulation(make()))
    assert "\n" not in str(caught.value)


def test_a_field_that_a_straight_start_does_not_feel_is_refused() -> None:
    """The dipole of the start is zero: it is felt when the atoms move."""
    molecule = triatomic()
    molecule.system.addForce(bare_field())
    straight = 0.15 * np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]])
    cv = (sgm.Distance("r", (0, 1), 0.08, 0.22),)
    with pytest.raises(InputError, match="changes when the molecule is turned"):
        sgm.MolecularSystem("m", molecule.topology, molecule.system, straight, cv, 300.0)


def test_a_field_with_a_restraint_is_sampled_as_tied() -> None:
    assert quietly_taken(simulation(bare_field(), centroid_restraint())).tied


@pytest.mark.parametrize(
    ("force", "free"),
    [
        (bare_field((1.0, 0.0, 0.0)), r"along \+x, -x, \+y, -y, \+z, -z|along \+x, \+y, -y, \+z, -z"),
        (openmm.CustomExternalForce("1000*z^2"), r"along \+x, -x, \+y, -y"),
    ],
    ids=["field on an ion", "plane"],
)
def test_a_force_that_depends_on_the_place_and_does_not_hold_is_refused(
    force: openmm.CustomExternalForce, free: str
) -> None:
    if not force.getNumParticles():
        force.addParticle(1, [])
    with pytest.raises(InputError, match=f"by CustomExternalForce, but nothing holds the molecule {free}:"):
        taken(simulation(force))


def test_a_system_folder_is_checked_as_well(tmp_path) -> None:
    molecule = triatomic()
    molecule.system.addForce(field_as_compound())
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(molecule.system))
    with (tmp_path / "topology.pdb").open("w") as file:
        app.PDBFile.writeFile(molecule.topology, molecule.positions * unit.nanometer, file)
    (tmp_path / "system.toml").write_text(
        'name = "m"\ntopology = "topology.pdb"\nsystem = "system.xml"\ntemperature_k = 300.0\ntime_step_fs = 1.0\n'
        'friction_per_ps = 1.0\n[[cv]]\nname = "a"\nkind = "angle"\natoms = [0, 1, 2]\nmin = 0.9\nmax = 2.8\n'
    )
    with pytest.raises(InputError, match=r"turned, .* by CustomCompoundBondForce"):
        load_system(tmp_path)
    molecule = triatomic()
    molecule.system.addForce(metadynamics())
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(molecule.system))
    with pytest.warns(UserWarning, match="CustomCVForce: a bias or a restraint"):
        load_system(tmp_path)


def test_a_restraint_that_is_switched_off_does_not_tie() -> None:
    restraint = openmm.CustomExternalForce("0.5*k*((x-x0)^2+y^2+z^2)")
    restraint.addGlobalParameter("k", 1000.0)
    restraint.addPerParticleParameter("x0")
    restraint.addParticle(1, [0.1])
    own = simulation(restraint)
    assert taken(own).tied
    own.context.setParameter("k", 0.0)
    with pytest.warns(UserWarning, match="CustomExternalForce is 0 at all places with k = 0 and is left out"):
        molecule = taken(own)
    assert not molecule.tied
    assert [type(force).__name__ for force in molecule.system.getForces()] == [
        "HarmonicBondForce",
        "HarmonicAngleForce",
    ]
    own.system.addConstraint(0, 1, 0.15)
    own.context.reinitialize(preserveState=True)
    with pytest.warns(UserWarning, match="is left out"):
        assert taken(own).constraints == ((0, 1, 0.15),)


def test_a_flat_restraint_ties_though_nothing_is_felt_at_the_start() -> None:
    wall = openmm.CustomExternalForce("1000*max(0, sqrt(x^2+y^2+z^2)-2)^2")
    wall.addParticle(0, [])
    assert quietly_taken(simulation(wall)).tied


# A bias that is there already


def metadynamics() -> openmm.Force:
    system = openmm.System()
    for _ in range(3):
        system.addParticle(1.0)
    variable = app.BiasVariable(on_the_angle("theta"), 0.9, 2.8, 0.1, False)
    app.Metadynamics(system, [variable], 300 * unit.kelvin, 8.0, 2.0, 50)
    return copy.deepcopy(system.getForce(0))


def umbrella() -> openmm.Force:
    force = openmm.CustomCVForce("0.5*k*(a-2.1)^2")
    force.addGlobalParameter("k", 80.0)
    force.addCollectiveVariable("a", on_the_angle("theta"))
    return force


@pytest.mark.parametrize("make", [metadynamics, umbrella, lambda: on_the_angle("10*(theta-2)^2")])
def test_a_bias_on_the_cvs_is_named(make: Callable[[], openmm.Force]) -> None:
    force = make()
    message = f"^{force.getName()}: a bias or a restraint .* is part of the physics .*setIntegrationForceGroups"
    with pytest.warns(UserWarning, match=message):
        taken(simulation(force))


def custom_bond() -> openmm.Force:
    force = openmm.CustomBondForce("900*(r-0.25)^2")
    force.addBond(0, 2, [])
    return force


def custom_angle_and_more() -> openmm.Force:
    force = openmm.CustomCompoundBondForce(3, "10*angle(p1,p2,p3)^2*distance(p1,p2)")
    force.addBond([0, 1, 2], [])
    return force


@pytest.mark.parametrize("make", [openmm.CMMotionRemover, custom_bond, custom_angle_and_more])
def test_a_force_fields_own_terms_are_not_taken_for_a_bias(make: Callable[[], openmm.Force]) -> None:
    """The harmonic angle of the molecule is its only term, and on the CV."""
    quietly_taken(simulation(make()))


def test_alanine_has_no_bias(alanine: sgm.MolecularSystem) -> None:
    platform = openmm.Platform.getPlatformByName("Reference")
    own = app.Simulation(
        alanine.topology, copy.deepcopy(alanine.system), openmm.LangevinMiddleIntegrator(300, 1, 0.002), platform
    )
    own.context.setPositions(alanine.positions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgm.MolecularSystem.from_simulation(own, alanine.cvs)


# Topologies of other programs


def test_an_mdtraj_topology_is_converted(tmp_path) -> None:
    bare = simulation()
    own = app.Simulation(
        mdtraj.Topology.from_openmm(bare.topology), bare.system, openmm.LangevinMiddleIntegrator(300, 5, 0.001)
    )
    own.context.setPositions(triatomic().positions)
    molecule = taken(own)
    assert isinstance(molecule.topology, app.Topology)
    np.testing.assert_array_equal(molecule.bonds, [[0, 1], [1, 2]])
    own.reporters.append(sgm.FrameReporter(tmp_path / "frames", 1, ANGLE))
    own.step(2)


@pytest.mark.parametrize("topology", [None, "topology.pdb"])
def test_something_that_is_no_topology_is_refused(topology: object) -> None:
    own = simulation()
    own.topology = topology
    with pytest.raises(InputError, match=r"must be an openmm\.app\.Topology, and a builtins\.\w+ cannot be converted"):
        taken(own)


def test_a_start_without_an_energy_is_refused() -> None:
    molecule = triatomic()
    repulsion = openmm.CustomBondForce("1/max(0, r-10)")
    repulsion.addBond(0, 2, [])
    molecule.system.addForce(repulsion)
    with pytest.raises(InputError, match="the energy at the starting positions is inf kJ/mol"):
        sgm.MolecularSystem("m", molecule.topology, molecule.system, molecule.positions, molecule.cvs, 300.0)
