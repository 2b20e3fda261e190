"""A user's `Simulation` read into what a `MolecularSystem` is made of; it is left as it is.

What the user simulates is what the context does: the forces of the integrator's groups, at the context's parameters.
The copy that is sampled is compared with it, energies and forces, before anything else.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from .biases import forces_along, forces_that_look_like_biases, warn_of_biases
from .cvs import CollectiveVariable
from .dynamics import force_groups, read_integrator, thermostats
from .forces import (
    describe_forces,
    energies_and_forces,
    energies_of_each_force,
    set_default_parameters,
    shaken,
    without_forces,
)
from .supported import BAROSTATS, check_size_and_box
from .units import InputError, one_line, strip_units
from .velocities import IntegratorKind

__all__ = ["SimulationReading", "context_system", "openmm_topology", "read_simulation", "refuse_another_physics"]

TEMPERATURE_TOLERANCE_K = 0.01
_IN_NO_GROUP = (openmm.AndersenThermostat, openmm.CMMotionRemover, *BAROSTATS)
"""Forces that act at every step, whatever the integrator's groups."""


@dataclass(frozen=True)
class SimulationReading:
    """What a simulation says of itself.

    Attributes
    ----------
    topology : converted where it was another program's
    system : a copy with the integrator's force groups, whose global parameters have the context's values as defaults
    positions : float64, shape (n_atoms, 3), nm
    temperature_k, time_step_fs, friction_per_ps, integrator : as in `MolecularSystem`
    """

    topology: app.Topology
    system: openmm.System
    positions: np.ndarray
    temperature_k: float
    time_step_fs: float
    friction_per_ps: float
    integrator: IntegratorKind


def read_simulation(
    simulation: app.Simulation, cvs: Sequence[CollectiveVariable], temperature: Any = None, time_step: Any = None
) -> SimulationReading:
    """Read a simulation, and warn of what it leaves out or brings along; see `MolecularSystem.from_simulation`."""
    topology = openmm_topology(simulation.topology)
    check_size_and_box(topology, simulation.system, cvs)
    dynamics = read_integrator(simulation.integrator, time_step)
    temperature_k = _temperature(simulation, temperature)
    state = simulation.context.getState(positions=True)
    positions = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    everything = simulation.system
    left_out = _left_out(everything, dynamics.groups)
    if left_out:
        warnings.warn(
            f"{describe_forces(everything, left_out)}: the integrator leaves this force group out, and so does the "
            "sampling; see integrator.setIntegrationForceGroups if it should be part of the physics",
            stacklevel=4,
        )
    if len(positions) == 1 or np.ptp(positions, axis=0).any():  # positions that were never set are refused later
        refuse_another_physics(simulation, dynamics.groups)
        with_parameters = _with_parameters(simulation)
        biases = {*forces_that_look_like_biases(everything), *forces_along(with_parameters, cvs, positions)}
        warn_of_biases(everything, sorted(biases.difference(left_out)), stacklevel=4)
    return SimulationReading(
        topology=topology,
        system=context_system(simulation, dynamics.groups),
        positions=positions,
        temperature_k=temperature_k,
        time_step_fs=dynamics.time_step_fs,
        friction_per_ps=dynamics.friction_per_ps,
        integrator=dynamics.kind,
    )


def openmm_topology(topology: Any) -> app.Topology:
    """Return a simulation's topology as OpenMM's, converted where it is mdtraj's or another with `to_openmm`.

    Raises
    ------
    InputError
        for anything else.
    """
    if isinstance(topology, app.Topology):
        return topology
    kind = f"{type(topology).__module__.partition('.')[0]}.{type(topology).__name__}"
    try:
        converted = topology.to_openmm()
    except Exception as error:
        reason = "" if isinstance(error, AttributeError) else f" ({one_line(error)})"
        raise InputError(
            f"the topology of the Simulation must be an openmm.app.Topology, and a {kind} cannot be converted{reason}"
        ) from None
    if not isinstance(converted, app.Topology):
        raise InputError(f"the topology of the Simulation must be an openmm.app.Topology, not a {kind}")
    return converted


def context_system(simulation: app.Simulation, groups: int | None = None) -> openmm.System:
    """Return a copy of the system with the context's parameters and the forces that the integrator integrates.

    Parameters
    ----------
    groups : force groups as a bit mask; by default the integrator's
    """
    mask = force_groups(simulation.integrator) if groups is None else groups
    left_out = _left_out(simulation.system, mask)
    return without_forces(_with_parameters(simulation), lambda k, _: k in left_out)


def refuse_another_physics(simulation: app.Simulation, groups: int) -> None:
    """Refuse a simulation whose context computes other energies or forces than its system says.

    A force that was added to the system, or changed in it, after the context was made is not part of the dynamics.
    Both are computed at the context's positions and twice near them; the context's positions are put back as they were.

    Parameters
    ----------
    groups : the force groups that count, as a bit mask

    Raises
    ------
    InputError
        with the force that is to blame where it can be found, and else with those among which it is.
    """
    x, theirs, forces = _in_the_context(simulation.context, groups)
    system = _with_parameters(simulation)
    left_out = _left_out(system, groups)
    ours, our_forces = energies_and_forces(without_forces(system, lambda k, _: k in left_out), x)
    most = _tolerance(simulation.context, x, ours, our_forces)
    finite = np.isfinite(theirs) & np.isfinite(ours)
    differ = np.abs(theirs - ours) > most[0]
    differ |= np.abs(forces - our_forces).max(axis=(1, 2), initial=0) > most[1]
    if not (differ & finite).any():
        return
    kept = [k for k in range(system.getNumForces()) if k not in left_out]
    each = energies_of_each_force(system, x, kept)
    computed = [k for k in kept if np.isfinite(each[k]).all() and each[k].any()]
    for n in range(1, len(computed) + 1):  # new forces come last
        excess = theirs + each[computed[-n:]].sum(axis=0) - ours
        if (np.abs(excess) <= most[0])[finite].all():
            blame = f"{describe_forces(system, computed[-n:])} was added to"
            break
    else:
        by_group = _groups_that_differ(simulation.context, system, x[0], computed, most[0][0]) or computed
        among = describe_forces(system, by_group) if by_group else "a force"
        blame = f"{'one of ' if len(by_group) > 1 else ''}{among} was changed, or another force removed, in"
    raise InputError(
        f"the energy is {theirs[0]:.6g} kJ/mol in simulation.context and {ours[0]:.6g} by simulation.system: {blame} "
        "the system after the context was made; call simulation.context.reinitialize(preserveState=True) to use it, or "
        "undo it"
    )


def _in_the_context(context: openmm.Context, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return configurations (n, n_atoms, 3) in nm, and what the context computes for them; kJ/mol, kJ/mol/nm."""
    start = context.getState(positions=True).getPositions(asNumpy=True)
    x = np.concatenate([start._value[None], shaken(start._value, 2)])
    energies, forces = [], []
    try:
        for k, configuration in enumerate(x):
            if k:
                context.setPositions(configuration)
                context.computeVirtualSites()
            state = context.getState(energy=True, forces=True, groups=groups)
            energies.append(state.getPotentialEnergy()._value)
            forces.append(np.array(state.getForces(asNumpy=True)._value))
    finally:
        context.setPositions(start)
    return x, np.array(energies), np.array(forces)


def _tolerance(context: openmm.Context, x: np.ndarray, energies: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Return shape (2, n): how far energies (kJ/mol) and forces (kJ/mol/nm) may differ by rounding.

    Reference computes in double precision, other platforms may compute in single: their sums are of terms of some 100
    kJ/mol an atom, and the positions of a molecule that has drifted far lose digits.
    """
    largest = np.abs(forces).max(axis=(1, 2))
    if context.getPlatform().getName() == "Reference":
        return np.stack([1e-4 + 1e-8 * np.abs(energies), 1e-3 + 1e-6 * largest])
    far = np.abs(x).max()
    return np.stack(
        [0.05 + 2e-5 * (np.abs(energies) + 100 * x.shape[1]) * (1 + far / 10), 2 + 1e-3 * largest + 0.06 * far]
    )


def _groups_that_differ(
    context: openmm.Context, system: openmm.System, positions: np.ndarray, computed: list[int], most: float
) -> list[int]:
    """Return those of the forces that lie in groups whose energies differ from the context's."""
    each = energies_of_each_force(system, positions[None], computed)[:, 0]
    found = []
    for group in {system.getForce(k).getForceGroup() for k in computed}:
        members = [k for k in computed if system.getForce(k).getForceGroup() == group]
        theirs = context.getState(energy=True, groups=1 << group).getPotentialEnergy()._value
        if abs(theirs - each[members].sum()) > most:
            found.extend(members)
    return sorted(found)


def _with_parameters(simulation: app.Simulation) -> openmm.System:
    system = copy.deepcopy(simulation.system)
    parameters = dict(simulation.context.getParameters())
    for force in system.getForces():
        set_default_parameters(force, parameters)
    return system


def _left_out(system: openmm.System, groups: int) -> list[int]:
    """Return the indices of forces outside the groups of a bit mask."""
    return [
        k
        for k, force in enumerate(system.getForces())
        if not (groups >> force.getForceGroup()) & 1 and not isinstance(force, _IN_NO_GROUP)
    ]


def _temperature(simulation: app.Simulation, given: Any) -> float:
    known = thermostats(simulation)
    if given is not None:
        known.append(("the temperature given", float(strip_units(given, unit.kelvin))))
    if not known:
        raise InputError(
            f"{type(simulation.integrator).__name__} has no thermostat: give a temperature, or use "
            "LangevinMiddleIntegrator"
        )
    values = [value for _, value in known]
    if max(values) - min(values) > TEMPERATURE_TOLERANCE_K:
        listed = " and ".join(f"{value:g} K ({source})" for source, value in known)
        raise InputError(f"temperatures contradict each other: {listed}")
    return values[0]
