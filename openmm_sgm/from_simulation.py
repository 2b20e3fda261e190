"""A user's `Simulation` read into what a `MolecularSystem` is made of; it is left as it is.

What the user simulates is what the context does: the forces of the integrator's groups, at the context's parameters.
The system that is copied is compared with it first.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from .agreement import context_system, forces_left_out, refuse_another_physics, system_at_parameters
from .biases import forces_along, forces_that_look_like_biases, warn_of_biases
from .cvs import CollectiveVariable
from .dynamics import read_integrator, temperature_of
from .forces import describe_forces
from .supported import check_size_and_box
from .units import InputError, one_line
from .velocities import IntegratorKind

__all__ = ["SimulationReading", "openmm_topology", "read_simulation"]


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
    left_out = forces_left_out(everything, dynamics.groups)
    if left_out:
        warnings.warn(
            f"{describe_forces(everything, left_out)}: the integrator leaves this force group out, and so does the "
            "sampling; see integrator.setIntegrationForceGroups if it should be part of the physics",
            stacklevel=4,
        )
    if len(positions) == 1 or np.ptp(positions, axis=0).any():  # positions that were never set are refused later
        refuse_another_physics(simulation, dynamics.groups)
        system = system_at_parameters(simulation)
        biases = {*forces_that_look_like_biases(everything), *forces_along(system, cvs, positions)}
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


def _temperature(simulation: app.Simulation, given: Any) -> float:
    temperature = temperature_of(simulation, given)
    if temperature is None:
        raise InputError(
            f"{type(simulation.integrator).__name__} has no thermostat: give a temperature, or use "
            "LangevinMiddleIntegrator"
        )
    return temperature
