"""Simulations that a sampler's moves are made in: what must agree with the sampler's own, and what is left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openmm
import pytest
from analytic import BOND_NM, TEMPERATURE_K, triatomic
from openmm import app, unit
from openmm.mtsintegrator import MTSLangevinIntegrator

import openmm_sgm as sgm
from openmm_sgm.dynamics import force_groups, temperature_of, thermostats
from openmm_sgm.same_simulation import SameSimulation
from openmm_sgm.system import MolecularSystem

REFERENCE = openmm.Platform.getPlatformByName("Reference")


def simulated(
    molecule: MolecularSystem,
    integrator: openmm.Integrator | None = None,
    change: Callable[[openmm.System], object] | None = None,
) -> app.Simulation:
    """Return a simulation of the molecule, its system changed first."""
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(molecule.system))
    if change is not None:
        change(system)
    integrator = integrator or openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1, 0.001)
    simulation = app.Simulation(molecule.topology, system, integrator, REFERENCE)
    simulation.context.setPositions(molecule.positions)
    return simulation


def shaken(molecule: MolecularSystem) -> np.ndarray:
    return molecule.positions + np.random.default_rng(1).normal(scale=0.01, size=(4, molecule.n_atoms, 3))


def check(molecule: MolecularSystem, simulation: app.Simulation, *, dynamics: bool = True) -> None:
    SameSimulation(molecule).check(simulation, shaken(molecule), dynamics=dynamics)


def compound(*parts: openmm.Integrator) -> openmm.CompoundIntegrator:
    result = openmm.CompoundIntegrator()
    for part in parts:
        result.addIntegrator(part)
    return result


def chain_on_some(temperature_k: float) -> openmm.NoseHooverIntegrator:
    result = openmm.NoseHooverIntegrator(0.001)
    result.addSubsystemThermostat([0, 1, 2], [], temperature_k, 1, temperature_k, 1, 3, 3, 3)
    return result


INTEGRATORS: dict[str, tuple[Callable[[float], openmm.Integrator], bool]] = {
    "Langevin": (lambda t: openmm.LangevinMiddleIntegrator(t, 1, 0.001), False),
    "Brownian": (lambda t: openmm.BrownianIntegrator(t, 1, 0.001), False),
    "compound": (lambda t: compound(openmm.VerletIntegrator(0.001), openmm.LangevinIntegrator(t, 1, 0.001)), False),
    "Nose-Hoover": (lambda t: openmm.NoseHooverIntegrator(t, 1, 0.001), False),
    "Nose-Hoover on a part": (chain_on_some, False),
    "multiple time steps": (lambda t: MTSLangevinIntegrator(t, 1, 0.001, [(0, 1)]), False),
    "Verlet and Andersen": (lambda t: openmm.VerletIntegrator(0.001), True),
}


@pytest.mark.parametrize("name", INTEGRATORS)
def test_the_temperature_of_any_thermostat_must_be_the_sampler_s(name: str) -> None:
    """Only an integrator's own getTemperature was asked before: all but the first two were taken at 400 K."""
    make, andersen = INTEGRATORS[name]
    molecule = triatomic()
    for temperature in (TEMPERATURE_K, 400.0):

        def change(system: openmm.System, temperature: float = temperature) -> None:
            if andersen:
                system.addForce(openmm.AndersenThermostat(temperature, 1))

        simulation = simulated(molecule, make(temperature), change)
        assert dict(thermostats(simulation)).popitem()[1] == pytest.approx(temperature)
        if temperature == TEMPERATURE_K:
            check(molecule, simulation)
        else:
            for dynamics in (True, False):
                with pytest.raises(sgm.InputError, match=r"this simulation is at 400 K \([\w ]+\), the sampler at 300"):
                    check(molecule, simulation, dynamics=dynamics)


def test_an_andersen_thermostat_s_parameter_counts_and_not_its_default() -> None:
    molecule = triatomic()
    simulation = simulated(
        molecule, openmm.VerletIntegrator(0.001), lambda system: system.addForce(openmm.AndersenThermostat(300, 1))
    )
    check(molecule, simulation)
    simulation.context.setParameter(openmm.AndersenThermostat.Temperature(), 350)
    with pytest.raises(sgm.InputError, match="350 K"):
        check(molecule, simulation)


def test_dynamics_without_a_thermostat_is_no_dynamics_at_a_temperature() -> None:
    """But a configuration may be put there, to start it from."""
    molecule = triatomic()
    for integrator in (openmm.VerletIntegrator(0.001), compound(openmm.VariableVerletIntegrator(0.01))):
        simulation = simulated(molecule, integrator)
        with pytest.raises(sgm.InputError, match=r"Verlet.* without a thermostat keeps the energy between moves"):
            check(molecule, simulation)
        check(molecule, simulation, dynamics=False)
    with pytest.warns(UserWarning, match="temperature of CustomIntegrator cannot be read"):
        check(molecule, simulated(molecule, openmm.CustomIntegrator(0.001)))


def test_constraints_must_be_the_sampler_s() -> None:
    """They were not compared: moves of a sampler with rigid bonds put free ones at their constrained length."""
    free, rigid = triatomic(), triatomic(constrained=True, cvs=(sgm.Angle("theta", (0, 1, 2), 1.0, 2.8),))
    with pytest.raises(
        sgm.InputError,
        match=r"distance of atoms 0 and 1 is free in this simulation and constrained to 0.15 nm in the sampler's",
    ):
        check(rigid, simulated(free))
    with pytest.raises(sgm.InputError, match=r"is constrained to 0.15 nm in this simulation and free in the sampler's"):
        check(free, simulated(rigid))
    longer = simulated(rigid, change=lambda system: system.setConstraintParameters(1, 2, 1, 0.16))
    with pytest.raises(sgm.InputError, match=r"atoms 1 and 2 is constrained to 0.16 nm"):
        check(rigid, longer)
    check(rigid, simulated(rigid, change=lambda system: system.setConstraintParameters(0, 1, 0, BOND_NM)))


def test_another_energy_is_told_once_and_a_constant_is_none() -> None:
    molecule = triatomic()

    def stiffer(system: openmm.System) -> None:
        extra = openmm.CustomBondForce("scale*(r-0.3)^2")
        extra.addGlobalParameter("scale", 300.0)
        extra.addBond(0, 2, [])
        system.addForce(extra)

    simulation = simulated(molecule, change=stiffer)
    same = SameSimulation(molecule)
    with pytest.warns(UserWarning, match="weights use this simulation's own, so its ensemble stays right"):
        same.check(simulation, shaken(molecule))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same.check(simulation, shaken(molecule))  # nothing has changed since
        simulation.context.setParameter("scale", 0.0)
        same.check(simulation, shaken(molecule))
        constant = simulated(molecule, change=lambda system: add_constant(system, 50.0))
        same.check(constant, shaken(molecule))
    simulation.context.setParameter("scale", 100.0)
    with pytest.warns(UserWarning, match="energies of this simulation and of the sampler's molecule differ"):
        same.check(simulation, shaken(molecule))


def add_constant(system: openmm.System, energy: float) -> None:
    force = openmm.CustomBondForce(f"{energy}+0*r")
    force.addBond(0, 2, [])
    system.addForce(force)


def test_a_force_group_that_is_not_integrated_is_no_difference() -> None:
    molecule = triatomic()

    def hidden(system: openmm.System) -> None:
        extra = openmm.CustomBondForce("900*(r-0.3)^2")
        extra.addBond(0, 2, [])
        extra.setForceGroup(5)
        system.addForce(extra)

    own = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1, 0.001)
    own.setIntegrationForceGroups({0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(molecule, simulated(molecule, own, hidden))
        other = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1, 0.001)
        other.setIntegrationForceGroups({0})
        check(molecule, simulated(molecule, compound(other), hidden))
        check(molecule, simulated(molecule, MTSLangevinIntegrator(TEMPERATURE_K, 1, 0.001, [(0, 1)]), hidden))


def test_force_groups_are_those_that_move_the_particles() -> None:
    """The weights of moves took all groups where a part of a CompoundIntegrator, or f0 and f1, integrate some."""
    first, second = openmm.VerletIntegrator(0.001), openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1, 0.001)
    first.setIntegrationForceGroups({0})
    second.setIntegrationForceGroups({0, 2})
    both = compound(first, second)
    assert force_groups(both) == 0b001
    both.setCurrentIntegrator(1)
    assert force_groups(both) == force_groups(second) == 0b101
    assert force_groups(MTSLangevinIntegrator(TEMPERATURE_K, 1, 0.002, [(0, 1), (3, 2)])) == 0b1001
    custom = openmm.CustomIntegrator(0.001)
    custom.addComputePerDof("v", "v+dt*f/m")
    custom.setIntegrationForceGroups({1})
    assert force_groups(custom) == 0b10


@pytest.mark.parametrize("expression", ["40*x1", "500*(x1-0.1)^2", "20*(x2-x1)/sqrt((x1-x2)^2+(y1-y2)^2+(z1-z2)^2)"])
def test_forces_that_depend_on_place_or_orientation_are_refused(expression: str) -> None:
    """Generated configurations stand in one place, in one orientation: a move would put the molecule there."""
    molecule = triatomic()

    def field(system: openmm.System) -> None:
        force = openmm.CustomCompoundBondForce(2, expression)
        force.addBond([0, 2], [])
        system.addForce(force)

    with pytest.raises(sgm.InputError, match="when the molecule is moved and turned as a whole"):
        check(molecule, simulated(molecule, change=field))


def test_the_simulation_is_left_as_it_was() -> None:
    molecule = triatomic()
    simulation = simulated(molecule, change=lambda system: add_constant(system, 1.0))
    simulation.context.setVelocitiesToTemperature(TEMPERATURE_K, 1)
    simulation.step(7)

    def everything() -> str:
        state = simulation.context.getState(
            positions=True, velocities=True, forces=True, energy=True, parameters=True, integratorParameters=True
        )
        return openmm.XmlSerializer.serialize(state)

    before = everything()
    check(molecule, simulation)
    assert everything() == before
    assert simulation.currentStep == 7
    assert simulation.context.getTime() == 0.007 * unit.picosecond


def test_frames_and_bursts_are_of_the_thermostat_s_temperature(tmp_path: Path) -> None:
    """An AndersenThermostat was not seen: frames of 400 K were recorded as of no temperature, and a generator of 300 K
    was trained from them; bursts took velocities of a temperature that the thermostat then changed."""
    molecule = triatomic()
    simulation = simulated(
        molecule, openmm.VerletIntegrator(0.001), lambda system: system.addForce(openmm.AndersenThermostat(400, 1))
    )
    simulation.context.setVelocitiesToTemperature(400, 1)
    simulation.reporters.append(sgm.FrameReporter(tmp_path, 5, molecule.cvs))
    simulation.step(10)
    simulation.reporters.pop().close()
    assert sgm.load_frames(tmp_path).temperature_k == 400
    starts, cvs = molecule.positions[None], molecule.cvs
    with pytest.raises(sgm.InputError, match=r"400 K \(AndersenThermostat\) and 300 K \(the temperature given\)"):
        sgm.run_bursts(simulation, starts, cvs, steps=10, interval=5, seed=1, temperature=300)
    assert np.isfinite(sgm.run_bursts(simulation, starts, cvs, steps=10, interval=5, seed=1).values).all()
    without = simulated(molecule, openmm.VerletIntegrator(0.001))
    assert temperature_of(without) is None
    with pytest.raises(sgm.InputError, match="VerletIntegrator has no temperature: give it as temperature="):
        sgm.run_bursts(without, starts, cvs, steps=10, interval=5, seed=1)


def test_a_thermostat_that_the_context_does_not_have_is_refused() -> None:
    molecule = triatomic()
    simulation = simulated(molecule, openmm.VerletIntegrator(0.001))
    simulation.system.addForce(openmm.AndersenThermostat(400, 1))
    with pytest.raises(sgm.InputError, match="AndersenThermostat was added after the context was made"):
        thermostats(simulation)
