"""Drawn velocities: they keep the ensemble that positions are in, obey constraints, and leave positions alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openmm
import pytest

from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import thermal_energy
from openmm_sgm.velocities import draw_velocities

TEMPERATURE_K, TIME_STEP_PS, MASS, OMEGA_DT = 300.0, 0.002, 12.0, 0.6
PARTICLES, DRAWS, STEPS = 2000, 20, 40
KT = thermal_energy(TEMPERATURE_K)


def excess_energy(
    draw: Callable[[openmm.Context, int], object], integrator: openmm.Integrator | None = None
) -> tuple[float, float]:
    """Return the mean potential energy of harmonic oscillators in the steps after a draw over ½kT, minus 1, and its
    standard error; their positions are drawn from the exact ensemble."""
    constant = MASS * (OMEGA_DT / TIME_STEP_PS) ** 2
    system, well = openmm.System(), openmm.CustomExternalForce("0.5*k*(x^2+y^2+z^2)")
    well.addGlobalParameter("k", constant)
    for index in range(PARTICLES):
        system.addParticle(MASS)
        well.addParticle(index, [])
    system.addForce(well)
    if integrator is None:
        integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1.0, TIME_STEP_PS)
        integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    rng = np.random.default_rng(7)
    means = []
    for k in range(DRAWS):
        context.setPositions(rng.normal(scale=np.sqrt(KT / constant), size=(PARTICLES, 3)))
        draw(context, k)
        energies = []
        for _ in range(STEPS):
            integrator.step(1)
            energies.append(context.getState(energy=True).getPotentialEnergy()._value)
        means.append(np.mean(energies) / (1.5 * KT * PARTICLES) - 1)
    return float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(DRAWS))


def test_harmonic_oscillators_stay_in_their_ensemble() -> None:
    """OpenMM's own draw heats them, by about (ωΔt)²/8 = 4.5 % of the potential energy: the test can fail."""
    mean, error = excess_energy(lambda context, k: draw_velocities(context, TEMPERATURE_K, np.random.default_rng(k)))
    assert abs(mean) < 4 * error
    assert error < 0.005
    mean, error = excess_energy(lambda context, k: context.setVelocitiesToTemperature(TEMPERATURE_K, k + 1))
    assert mean > 5 * error
    assert mean == pytest.approx(OMEGA_DT**2 / 8, rel=0.3)


def test_leapfrog_without_a_thermostat_keeps_its_ensemble() -> None:
    """A VerletIntegrator holds velocities of half a step earlier as well; over whole periods it remembers them."""
    steps = openmm.VerletIntegrator(TIME_STEP_PS)
    mean, error = excess_energy(
        lambda context, k: draw_velocities(context, TEMPERATURE_K, np.random.default_rng(k)), steps
    )
    assert abs(mean) < 4 * error
    assert error < 0.005


def test_velocities_of_a_molecule(alanine: MolecularSystem) -> None:
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1.0, TIME_STEP_PS)
    context = openmm.Context(alanine.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(alanine.positions)
    context.applyConstraints(1e-8)
    before = context.getState(positions=True).getPositions(asNumpy=True)._value
    rng = np.random.default_rng(2)
    kinetic = []
    for _ in range(300):
        assert draw_velocities(context, TEMPERATURE_K, rng) == 1
        state = context.getState(positions=True, velocities=True, energy=True)
        np.testing.assert_array_equal(state.getPositions(asNumpy=True)._value, before)
        v = state.getVelocities(asNumpy=True)._value
        for i, j, _ in alanine.constraints:
            bond = before[int(i)] - before[int(j)]
            assert abs(bond @ (v[int(i)] - v[int(j)])) / np.linalg.norm(bond) < 1e-4
        kinetic.append(0.5 * (alanine.masses[:, None] * v**2).sum())
    degrees = 3 * alanine.n_atoms - len(alanine.constraints)
    # the positions are those of a minimum, where the half step back changes little
    np.testing.assert_allclose(np.mean(kinetic), degrees * KT / 2, rtol=0.05)


def test_other_integrators_get_openmms_own(alanine: MolecularSystem) -> None:
    integrator = openmm.NoseHooverIntegrator(TEMPERATURE_K, 1.0, TIME_STEP_PS)
    context = openmm.Context(alanine.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(alanine.positions)
    draw_velocities(context, TEMPERATURE_K, np.random.default_rng(3))
    ours = context.getState(velocities=True).getVelocities(asNumpy=True)._value
    context.setVelocitiesToTemperature(TEMPERATURE_K, int(np.random.default_rng(3).integers(1, 2**31 - 1)))
    np.testing.assert_array_equal(ours, context.getState(velocities=True).getVelocities(asNumpy=True)._value)


def test_a_particle_without_mass_rests() -> None:
    system = openmm.System()
    for mass in (0.0, 12.0):
        system.addParticle(mass)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1.0, TIME_STEP_PS)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([[0, 0, 0], [1, 0, 0]])
    draw_velocities(context, TEMPERATURE_K, np.random.default_rng(4))
    v = context.getState(velocities=True).getVelocities(asNumpy=True)._value
    assert (v[0] == 0).all()
    assert (v[1] != 0).all()
