"""Whether a context computes what its system says: they part when the system is changed after the context was made."""

from __future__ import annotations

import copy

import numpy as np
import openmm
from openmm import app

from .dynamics import force_groups
from .forces import (
    describe_forces,
    energies_and_forces,
    energies_of_each_force,
    set_default_parameters,
    shaken,
    without_forces,
)
from .supported import BAROSTATS, constraints_of
from .units import InputError, one_line

__all__ = ["context_system", "forces_left_out", "refuse_another_physics", "system_at_parameters"]

_CONSTRAINT_TOLERANCE = 1e-5
_IN_NO_GROUP = (openmm.AndersenThermostat, openmm.CMMotionRemover, *BAROSTATS)
"""Forces that act at every step, whatever the integrator's groups."""


def context_system(simulation: app.Simulation, groups: int | None = None) -> openmm.System:
    """Return a copy of the system with the context's parameters and the forces that the integrator integrates.

    Parameters
    ----------
    groups : force groups as a bit mask; by default the integrator's
    """
    mask = force_groups(simulation.integrator) if groups is None else groups
    left_out = forces_left_out(simulation.system, mask)
    return without_forces(system_at_parameters(simulation), lambda k, _: k in left_out)


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
    x, theirs, forces, constrained = _in_the_context(simulation.context, groups)
    _refuse_other_constraints(simulation.system, x[-1], constrained)
    system = system_at_parameters(simulation)
    left_out = forces_left_out(system, groups)
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
            blame = f"{describe_forces(system, computed[-n:])} {'was' if n == 1 else 'were'} added to"
            break
    else:
        by_group = _groups_that_differ(simulation.context, system, x[0], computed, most[0][0]) or computed
        one = "one of " if len(by_group) > 1 else ""
        among = describe_forces(system, by_group) if by_group else "a force"
        blame = f"{one}{among} was changed, or another force removed or regrouped, in"
    worst = int(np.nanargmax(np.abs(theirs - ours)))
    raise InputError(
        f"the energy is {theirs[worst]:.6g} kJ/mol in simulation.context and {ours[worst]:.6g} by simulation.system: "
        f"{blame} the system after the context was made; call simulation.context.reinitialize(preserveState=True) to "
        "use it, or undo it"
    )


def _in_the_context(context: openmm.Context, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return configurations (n, n_atoms, 3) in nm, and what the context makes of them: energies (n,), kJ/mol, forces
    (n, n_atoms, 3), kJ/mol/nm, and the last configuration (n_atoms, 3) after its constraints were applied."""
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
        context.applyConstraints(_CONSTRAINT_TOLERANCE)
        constrained = np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)
    finally:
        context.setPositions(start)
    return x, np.array(energies), np.array(forces), constrained


def _refuse_other_constraints(system: openmm.System, before: np.ndarray, after: np.ndarray) -> None:
    """Refuse a context that does not hold the system's constraints, or holds others.

    Parameters
    ----------
    before, after : float64, shape (n_atoms, 3), nm; shaken, and after the context has applied its constraints
    """
    rounding = 2e-4 + 1e-6 * np.abs(before).max()  # a hundredth of what the atoms were shaken by, and single precision
    constraints = constraints_of(system)
    lost = [(i, j) for i, j, length in constraints if abs(np.linalg.norm(after[i] - after[j]) - length) > rounding]
    held = {atom for i, j, _ in constraints for atom in (i, j)}
    moved = np.flatnonzero(np.linalg.norm(after - before, axis=1) > rounding)
    others = [int(atom) for atom in moved if atom not in held and system.getParticleMass(int(atom))._value > 0]
    if lost or others:
        which = f"atoms {lost[0][0]} and {lost[0][1]}" if lost else f"atom {others[0]}"
        raise InputError(
            f"the constraint on {which} was {'added' if lost else 'removed'} after the context was made: call "
            "simulation.context.reinitialize(preserveState=True) to use the system as it is, or undo it"
        )


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


def system_at_parameters(simulation: app.Simulation) -> openmm.System:
    """Return a copy of the system whose global parameters have the context's values as defaults."""
    try:
        system = copy.deepcopy(simulation.system)
    except openmm.OpenMMException as error:
        raise InputError(f"the system cannot be copied: {one_line(error)}") from error
    parameters = dict(simulation.context.getParameters())
    for force in system.getForces():
        set_default_parameters(force, parameters)
    return system


def forces_left_out(system: openmm.System, groups: int) -> list[int]:
    """Return the indices of forces outside the groups of a bit mask."""
    return [
        k
        for k, force in enumerate(system.getForces())
        if not (groups >> force.getForceGroup()) & 1 and not isinstance(force, _IN_NO_GROUP)
    ]
