"""Integrators, and velocities for a configuration that has none, such that it stays in the ensemble it is in."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import openmm

from .units import thermal_energy

__all__ = ["INTEGRATORS", "IntegratorKind", "draw_velocities", "make_integrator"]

TOLERANCE = 1e-6
IntegratorKind: TypeAlias = Literal["langevin_middle", "brownian"]
INTEGRATORS: dict[str, type[openmm.Integrator]] = {
    "langevin_middle": openmm.LangevinMiddleIntegrator,
    "brownian": openmm.BrownianIntegrator,
}
"""Under either name, the constructor takes temperature (K), friction (1/ps) and time step (ps)."""
_HALF_STEP_EARLIER = tuple(
    getattr(openmm, name)
    for name in ("LangevinMiddleIntegrator", "VerletIntegrator", "QTBIntegrator", "DPDIntegrator")
    if hasattr(openmm, name)  # the last two are not in every OpenMM
)
"""Integrators whose velocities are those of half a step before the positions (`LangevinIntegrator` is a
LangevinMiddleIntegrator in OpenMM 8.6); all others of OpenMM hold both at the same time (measured: which ones
`Context.setVelocitiesToTemperature` moves back)."""


def make_integrator(
    kind: IntegratorKind, temperature_k: float, friction_per_ps: float, time_step_ps: float
) -> openmm.Integrator:
    """Return an integrator of the kind named."""
    return INTEGRATORS[kind](temperature_k, friction_per_ps, time_step_ps)


def draw_velocities(
    context: openmm.Context, temperature_k: float, rng: np.random.Generator, forces_of_groups: int = -1
) -> int:
    """Draw velocities for the positions that the context holds; return the force evaluations it took.

    `LangevinMiddleIntegrator` (Zhang et al. 2019, J. Phys. Chem. A 123, 6056) and other leapfrog integrators hold
    velocities of half a step earlier, and their stationary law correlates them with the positions. Maxwell–Boltzmann
    velocities u at the time of the positions, moved back by half a step, v = u − (Δt/2) M⁻¹ f(x), have too large a
    variance in a mode of frequency ω, by the factor 1 + (ωΔt)²/4. That is what `Context.setVelocitiesToTemperature`
    gives; with C–H bends at 2 fs it heats capped alanine by more than 1 kJ/mol for the first hundred femtoseconds
    (measured), and for good where there is no thermostat. With the force halfway back, v = u − (Δt/2) M⁻¹ f(x − uΔt/4),
    the factor is 1 + (ωΔt)⁴/64.

    A `BrownianIntegrator` has no velocities, and the context is left as it is; other integrators get
    `setVelocitiesToTemperature`.

    Parameters
    ----------
    forces_of_groups : the force groups that the integrator uses, as a bit mask
    """
    integrator = context.getIntegrator()
    if isinstance(integrator, openmm.BrownianIntegrator):
        return 0
    if not isinstance(integrator, _HALF_STEP_EARLIER):
        context.setVelocitiesToTemperature(temperature_k, int(rng.integers(1, 2**31 - 1)))
        return 1
    system = context.getSystem()
    masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])[:, None]
    inverse = np.divide(1.0, masses, out=np.zeros_like(masses), where=masses > 0)
    step = integrator.getStepSize()._value
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    context.setVelocities(rng.standard_normal(positions.shape) * np.sqrt(thermal_energy(temperature_k) * inverse))
    context.applyVelocityConstraints(TOLERANCE)
    velocities = context.getState(velocities=True).getVelocities(asNumpy=True)._value
    context.setPositions(positions - velocities * (step / 4))
    context.applyConstraints(TOLERANCE)
    context.computeVirtualSites()
    forces = context.getState(forces=True, groups=forces_of_groups).getForces(asNumpy=True)._value
    context.setPositions(positions)
    context.setVelocities(velocities - step / 2 * inverse * forces)
    context.applyVelocityConstraints(TOLERANCE)
    return 1
