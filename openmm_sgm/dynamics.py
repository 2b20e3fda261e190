"""What a user's integrator and thermostats stand for: the dynamics, the step and the temperature to sample with.

Everything here is sampled by Langevin or Brownian dynamics at one temperature and one time step. An integrator with the
same stationary law of the positions stands for that; any other is refused by name.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openmm
from openmm import app, unit

from .units import BOLTZMANN_KJ_MOL_K, InputError, strip_units
from .velocities import IntegratorKind

__all__ = [
    "DEFAULT_FRICTION_PER_PS",
    "Dynamics",
    "force_groups",
    "parts_of",
    "read_integrator",
    "refuse_another_ensemble",
    "temperature_of",
    "thermostats",
]

DEFAULT_FRICTION_PER_PS = 1.0
TEMPERATURE_TOLERANCE_K = 0.01
_OTHER_PHYSICS = {
    "RPMDIntegrator": "samples quantum particles as rings of copies",
    "QTBIntegrator": "gives vibrations their quantum energies",
    "DPDIntegrator": "keeps the angular momentum of a molecule in free space",
    "AMDIntegrator": "flattens the potential by a boost",
    "AMDForceGroupIntegrator": "flattens the potential by a boost",
    "DualAMDIntegrator": "flattens the potential by a boost",
    "DrudeLangevinIntegrator": "keeps Drude particles at a temperature of their own",
    "DrudeNoseHooverIntegrator": "keeps Drude particles at a temperature of their own",
    "DrudeSCFIntegrator": "holds Drude particles at their minimum",
}
"""Integrators whose positions do not follow exp(-U/kT); classes of newer versions of OpenMM may be missing here."""
_LANGEVIN = (openmm.LangevinMiddleIntegrator, openmm.LangevinIntegrator, openmm.VariableLangevinIntegrator)
_NO_FRICTION = (openmm.VerletIntegrator, openmm.VariableVerletIntegrator, openmm.NoseHooverIntegrator)
_VARIABLE = (openmm.VariableLangevinIntegrator, openmm.VariableVerletIntegrator)
_PER_DOF = openmm.CustomIntegrator.ComputePerDof
_WAY_OUT = "make the Simulation with a LangevinMiddleIntegrator"


@dataclass(frozen=True)
class Dynamics:
    """The dynamics that an integrator stands for.

    Attributes
    ----------
    kind : "brownian" for a BrownianIntegrator, else "langevin_middle"
    time_step_fs : the shortest of a multiple-time-step integrator
    friction_per_ps : 1/ps where the integrator has none
    groups : the force groups it integrates, as a bit mask (bit g set for group g)
    """

    kind: IntegratorKind
    time_step_fs: float
    friction_per_ps: float
    groups: int


def read_integrator(integrator: openmm.Integrator, time_step: Any = None) -> Dynamics:
    """Return the dynamics that an integrator stands for; a CompoundIntegrator stands for its current one.

    Of a CustomIntegrator the step, the groups and, where it has the multiple-time-step form of OpenMM's own, the
    number of inner steps are read from its computations; what else it does cannot be read, and a warning says so.

    Parameters
    ----------
    time_step : Quantity or fs, instead of the integrator's

    Raises
    ------
    InputError
        for an integrator of another physics or of an unknown kind, or without a fixed time step where none is given.
    """
    if isinstance(integrator, openmm.CompoundIntegrator):
        return read_integrator(integrator.getIntegrator(integrator.getCurrentIntegrator()), time_step)
    refuse_another_ensemble(integrator)
    name, custom = type(integrator).__name__, isinstance(integrator, openmm.CustomIntegrator)
    if time_step is None and isinstance(integrator, _VARIABLE):
        raise InputError(
            f"{name} has no fixed time step: give one, as in MolecularSystem.from_simulation(simulation, cvs, "
            f"time_step=1.0) (fs), or {_WAY_OUT}"
        )
    steps = _velocity_computations(integrator) if custom else []
    inner = max((int(n) for step in steps for n in re.findall(r"\(dt/(\d+)\)\*f\d*/m", step)), default=0)
    own_step = integrator.getStepSize().value_in_unit(unit.femtosecond) / max(inner, 1)
    step_fs = own_step if time_step is None else float(strip_units(time_step, unit.femtosecond))
    if step_fs <= 0:
        raise InputError(f"the time step of {name} must be set before it can be used")
    if custom and not inner:
        warnings.warn(
            f"what {name} computes cannot be read: Langevin dynamics in the system's own potential, with a time step "
            f"of {step_fs:g} fs, is taken in its place; {_WAY_OUT} if that is not meant",
            stacklevel=4,
        )
    if hasattr(integrator, "getFriction"):
        friction = float(strip_units(integrator.getFriction(), unit.picosecond**-1))
    else:
        friction = _respa_friction(integrator, own_step / 1000) if inner else DEFAULT_FRICTION_PER_PS
    return Dynamics(
        kind="brownian" if isinstance(integrator, openmm.BrownianIntegrator) else "langevin_middle",
        time_step_fs=step_fs,
        friction_per_ps=friction,
        groups=force_groups(integrator),
    )


def refuse_another_ensemble(integrator: openmm.Integrator) -> None:
    """Raise `InputError` for an integrator, or a part of a CompoundIntegrator, whose positions do not follow the
    classical law exp(−U/kT) of the system's potential, or of which that is not known."""
    for part in parts_of(integrator):
        name = type(part).__name__
        for ancestor in type(part).__mro__:
            if ancestor.__name__ in _OTHER_PHYSICS:
                raise InputError(
                    f"{name} {_OTHER_PHYSICS[ancestor.__name__]}, which is not the classical ensemble at one "
                    f"temperature: {_WAY_OUT}"
                )
        custom = isinstance(part, openmm.CustomIntegrator)
        if not (custom or isinstance(part, (*_LANGEVIN, *_NO_FRICTION, openmm.BrownianIntegrator))):
            raise InputError(f"{name} is not known, nor which ensemble it samples: {_WAY_OUT}")
        steps = _velocity_computations(part) if custom else []
        if any(re.search(r"\benergy\d*\b", step) for step in steps):
            raise InputError(
                f"{name} changes the forces by the energy, as accelerated dynamics does, which is not the ensemble of "
                f"the system's potential: {_WAY_OUT}"
            )


def parts_of(integrator: openmm.Integrator) -> list[openmm.Integrator]:
    """Return the integrators of a CompoundIntegrator, or the one that there is."""
    if isinstance(integrator, openmm.CompoundIntegrator):
        return [integrator.getIntegrator(k) for k in range(integrator.getNumIntegrators())]
    return [integrator]


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
    known = thermostats(simulation)
    if given is not None:
        known.append(("the temperature given", float(strip_units(given, unit.kelvin))))
    values = [value for _, value in known]
    if known and max(values) - min(values) > TEMPERATURE_TOLERANCE_K:
        listed = " and ".join(f"{value:g} K ({source})" for source, value in known)
        raise InputError(f"temperatures contradict each other: {listed}")
    return values[0] if known and values[0] > 0 else None


def force_groups(integrator: openmm.Integrator) -> int:
    """Return the force groups that an integrator integrates, as a bit mask.

    A CustomIntegrator may ask for groups one by one, as f0 or f1, as those for multiple time steps do.
    """
    if isinstance(integrator, openmm.CompoundIntegrator):
        return force_groups(integrator.getIntegrator(integrator.getCurrentIntegrator()))
    if isinstance(integrator, openmm.CustomIntegrator):
        names = {name for step in _velocity_computations(integrator) for name in re.findall(r"\bf\d*\b", step)}
        if names and "f" not in names:
            return sum(1 << int(name[1:]) for name in names)
    return int(integrator.getIntegrationForceGroups())


def thermostats(simulation: app.Simulation) -> list[tuple[str, float]]:
    """Return (what sets it, temperature in K) of everything in a simulation that sets a temperature.

    Raises
    ------
    InputError
        for an AndersenThermostat that the context does not have.
    """
    found = list(_temperatures(simulation.integrator))
    if any(isinstance(force, openmm.AndersenThermostat) for force in simulation.system.getForces()):
        name = openmm.AndersenThermostat.Temperature()
        if name not in simulation.context.getParameters():
            raise InputError(
                "an AndersenThermostat was added after the context was made, which does not have it: call "
                "simulation.context.reinitialize(preserveState=True), or remove it"
            )
        found.append(("AndersenThermostat", simulation.context.getParameter(name)))
    return found


def _temperatures(integrator: openmm.Integrator) -> Iterator[tuple[str, float]]:
    name = type(integrator).__name__
    if isinstance(integrator, openmm.CompoundIntegrator):
        for k in range(integrator.getNumIntegrators()):
            for source, temperature in _temperatures(integrator.getIntegrator(k)):
                yield f"{source} in the CompoundIntegrator", temperature
    elif isinstance(integrator, openmm.NoseHooverIntegrator):
        for k in range(integrator.getNumThermostats()):
            yield name, float(strip_units(integrator.getTemperature(k), unit.kelvin))
    elif hasattr(integrator, "getTemperature"):
        yield name, float(strip_units(integrator.getTemperature(), unit.kelvin))
    elif isinstance(integrator, openmm.CustomIntegrator) and _uses_noise(integrator):
        variables = [integrator.getGlobalVariableName(k) for k in range(integrator.getNumGlobalVariables())]
        if "kT" in variables:
            yield f"kT of {name}", integrator.getGlobalVariableByName("kT") / BOLTZMANN_KJ_MOL_K


# CustomIntegrators


def _computations(integrator: openmm.CustomIntegrator) -> list[tuple[int, str, str]]:
    """Return (type, variable, expression without spaces) of every computation."""
    steps = (integrator.getComputationStep(k) for k in range(integrator.getNumComputations()))
    return [(kind, variable, expression.replace(" ", "")) for kind, variable, expression in steps]


def _velocity_computations(integrator: openmm.CustomIntegrator) -> list[str]:
    """Return the expressions that are evaluated for each coordinate: there the forces enter."""
    return [expression for kind, _, expression in _computations(integrator) if kind == _PER_DOF]


def _uses_noise(integrator: openmm.CustomIntegrator) -> bool:
    return any(re.search(r"\bgaussian\b", expression) for _, _, expression in _computations(integrator))


def _respa_friction(integrator: openmm.CustomIntegrator, inner_step_ps: float) -> float:
    """Return the friction of an MTSLangevinIntegrator from its damping a = exp(-friction * inner step)."""
    if "a*v+b*sqrt(kT/m)*gaussian" not in _velocity_computations(integrator):
        return DEFAULT_FRICTION_PER_PS
    return -math.log(integrator.getGlobalVariableByName("a")) / inner_step_ps
