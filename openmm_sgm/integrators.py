"""What a user's simulation is driven by: its temperatures, by whatever keeps them, and its forces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import openmm
from openmm import app, unit

from .units import BOLTZMANN_KJ_MOL_K, InputError, strip_units

__all__ = ["groups_of", "parts_of", "temperature_of", "thermostats_of"]

TOLERANCE_K = 0.01


def temperature_of(simulation: app.Simulation, given: Any = None) -> float | None:
    """Return the one temperature of a simulation in K, None where nothing sets one above 0 and none is given.

    Parameters
    ----------
    given : Quantity or K, by the user besides

    Raises
    ------
    InputError
        where temperatures differ.
    """
    known = list(thermostats_of(simulation))
    if given is not None:
        known.append(("the temperature given", float(strip_units(given, unit.kelvin))))
    values = [value for _, value in known]
    if known and max(values) - min(values) > TOLERANCE_K:
        listed = " and ".join(f"{value:g} K ({source})" for source, value in known)
        raise InputError(f"temperatures contradict each other: {listed}")
    return values[0] if known and values[0] > 0 else None


def thermostats_of(simulation: app.Simulation) -> Iterator[tuple[str, float]]:
    """Yield (what sets it, temperature in K) of everything in a simulation that sets a temperature.

    The integrator or the parts of a CompoundIntegrator, the chains of a NoseHooverIntegrator, the global variable kT
    of a CustomIntegrator (OpenMM's own and openmmtools' have it), and AndersenThermostat forces by their parameter.
    """
    for part in parts_of(simulation.integrator):
        name = type(part).__name__
        if isinstance(part, openmm.NoseHooverIntegrator):
            for k in range(part.getNumThermostats()):
                yield name, strip_units(part.getThermostat(k).getTemperature(), unit.kelvin)
        elif hasattr(part, "getTemperature"):
            yield name, strip_units(part.getTemperature(), unit.kelvin)
        elif isinstance(part, openmm.CustomIntegrator):
            variables = [part.getGlobalVariableName(k) for k in range(part.getNumGlobalVariables())]
            if "kT" in variables:
                yield name, part.getGlobalVariableByName("kT") / BOLTZMANN_KJ_MOL_K
    if any(isinstance(force, openmm.AndersenThermostat) for force in simulation.system.getForces()):
        parameters, name = simulation.context.getParameters(), openmm.AndersenThermostat.Temperature()
        if name in parameters:  # not where the force was added after the context was made, which is then without it
            yield "AndersenThermostat", parameters[name]


def parts_of(integrator: openmm.Integrator) -> list[openmm.Integrator]:
    """Return the integrators of a CompoundIntegrator, or the one that there is."""
    if isinstance(integrator, openmm.CompoundIntegrator):
        return [integrator.getIntegrator(k) for k in range(integrator.getNumIntegrators())]
    return [integrator]


def groups_of(integrator: openmm.Integrator) -> int:
    """Return the force groups that move the particles, as a bit mask: group g is bit 2^g.

    Those of a CompoundIntegrator are its current part's. A CustomIntegrator may ask for groups one by one, as f0 and f1
    of multiple time steps, and then no other counts, whatever groups it was told to integrate.
    """
    if isinstance(integrator, openmm.CompoundIntegrator):
        return groups_of(integrator.getIntegrator(integrator.getCurrentIntegrator()))
    if isinstance(integrator, openmm.CustomIntegrator):
        steps = (integrator.getComputationStep(k) for k in range(integrator.getNumComputations()))
        asked = {
            name
            for kind, _, expression in steps
            if kind == openmm.CustomIntegrator.ComputePerDof
            for name in re.findall(r"\bf\d*\b", expression)
        }
        if asked and "f" not in asked:
            return sum(1 << int(name[1:]) for name in asked)
    return int(integrator.getIntegrationForceGroups())
