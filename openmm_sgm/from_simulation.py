"""A user's `Simulation` read into what a `MolecularSystem` is made of; it is not changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from .forces import set_default_parameters
from .units import InputError, strip_units
from .velocities import IntegratorKind

__all__ = ["DEFAULT_FRICTION_PER_PS", "SimulationReading", "read_simulation"]

DEFAULT_FRICTION_PER_PS = 1.0
TEMPERATURE_TOLERANCE_K = 0.01


@dataclass(frozen=True)
class SimulationReading:
    """What a simulation says of itself.

    Attributes
    ----------
    system : a copy, whose global parameters have the context's values as defaults
    positions : float64, shape (n_atoms, 3), nm
    temperature_k, time_step_fs, friction_per_ps, integrator : as in `MolecularSystem`
    """

    system: openmm.System
    positions: np.ndarray
    temperature_k: float
    time_step_fs: float
    friction_per_ps: float
    integrator: IntegratorKind


def read_simulation(simulation: app.Simulation, temperature: Any = None) -> SimulationReading:
    """Read a simulation; see `MolecularSystem.from_simulation`."""
    integrator, context = simulation.integrator, simulation.context
    known = dict(thermostats(simulation))
    if temperature is not None:
        known["the temperature given"] = float(strip_units(temperature, unit.kelvin))
    if not known:
        raise InputError(
            f"{type(integrator).__name__} has no thermostat: give a temperature, or use LangevinMiddleIntegrator"
        )
    if max(known.values()) - min(known.values()) > TEMPERATURE_TOLERANCE_K:
        listed = " and ".join(f"{value:g} K ({source})" for source, value in known.items())
        raise InputError(f"temperatures contradict each other: {listed}")
    time_step = integrator.getStepSize().value_in_unit(unit.femtosecond)
    if time_step <= 0:
        raise InputError(f"the time step of {type(integrator).__name__} must be set before it can be used")
    friction = getattr(integrator, "getFriction", None)
    system = copy.deepcopy(simulation.system)
    parameters = dict(context.getParameters())
    for force in system.getForces():
        set_default_parameters(force, parameters)
    state = context.getState(positions=True)
    return SimulationReading(
        system=system,
        positions=state.getPositions(asNumpy=True).value_in_unit(unit.nanometer),
        temperature_k=next(iter(known.values())),
        time_step_fs=time_step,
        friction_per_ps=strip_units(friction(), unit.picosecond**-1) if friction else DEFAULT_FRICTION_PER_PS,
        integrator="brownian" if isinstance(integrator, openmm.BrownianIntegrator) else "langevin_middle",
    )


def thermostats(simulation: app.Simulation) -> Iterator[tuple[str, float]]:
    """Yield (what sets it, temperature in K) of everything in a simulation that sets a temperature."""
    integrator = simulation.integrator
    if hasattr(integrator, "getTemperature"):
        try:
            temperature = strip_units(integrator.getTemperature(), unit.kelvin)
        except openmm.OpenMMException:  # a NoseHooverIntegrator without a chain on the whole system
            temperature = 0.0
        if temperature > 0:
            yield type(integrator).__name__, temperature
    if any(isinstance(force, openmm.AndersenThermostat) for force in simulation.system.getForces()):
        yield "AndersenThermostat", simulation.context.getParameter(openmm.AndersenThermostat.Temperature())
