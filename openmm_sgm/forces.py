"""Forces of an OpenMM system: their names and parameters, and what each contributes to the energy."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import openmm

from .units import InputError, one_line

__all__ = [
    "default_parameters",
    "describe_force",
    "describe_forces",
    "energies_and_forces",
    "energies_of_each_force",
    "only_force",
    "parameter_names",
    "set_default_parameters",
    "shaken",
    "without_forces",
]

SHAKE_NM = 0.005


def describe_force(system: openmm.System, index: int) -> str:
    """Return a force's class, its name where the user gave one, and its index where others are called the same."""

    def called(force: openmm.Force) -> str:
        kind, name = type(force).__name__, force.getName()
        return kind if name in ("", kind) else f"{kind} '{name}'"

    names = [called(force) for force in system.getForces()]
    return names[index] if names.count(names[index]) == 1 else f"{names[index]} (force {index})"


def describe_forces(system: openmm.System, indices: Iterable[int]) -> str:
    """Return several forces as a list in words."""
    *first, last = (describe_force(system, index) for index in indices)
    return f"{', '.join(first)} and {last}" if first else last


def without_forces(system: openmm.System, unwanted: Callable[[int, openmm.Force], bool]) -> openmm.System:
    """Return a copy without the forces for which `unwanted(index, force)` holds."""
    system = copy.deepcopy(system)
    for k in reversed(range(system.getNumForces())):
        if unwanted(k, system.getForce(k)):
            system.removeForce(k)
    return system


def shaken(positions: np.ndarray, count: int) -> np.ndarray:
    """Return copies of positions (n_atoms, 3), float64, shape (count, n_atoms, 3), nm, each atom moved by some 5 pm.

    The same for the same positions, every time.
    """
    rng = np.random.default_rng(1)
    return np.asarray(positions + rng.normal(scale=SHAKE_NM, size=(count, *positions.shape)))


def energies_and_forces(
    system: openmm.System, configurations: Sequence[np.ndarray] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return energies (n,), kJ/mol, and forces (n, n_atoms, 3), kJ/mol/nm, on OpenMM's Reference platform.

    Parameters
    ----------
    configurations : float64, shape (n, n_atoms, 3), nm; virtual sites are placed anew

    Raises
    ------
    InputError
        where OpenMM cannot compute the system, with its own words.
    """
    try:
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
        energies, forces = [], []
        for configuration in configurations:
            context.setPositions(np.ascontiguousarray(configuration, dtype=float))
            context.computeVirtualSites()
            state = context.getState(energy=True, forces=True)
            energies.append(state.getPotentialEnergy()._value)
            forces.append(np.array(state.getForces(asNumpy=True)._value))
    except openmm.OpenMMException as error:
        raise InputError(f"OpenMM cannot compute the system: {one_line(error)}") from error
    return np.array(energies), np.array(forces).reshape(len(energies), -1, 3)


def energies_of_each_force(
    system: openmm.System, configurations: Sequence[np.ndarray] | np.ndarray, which: Iterable[int] | None = None
) -> np.ndarray:
    """Return float64, shape (n_forces, n), kJ/mol: each force alone, those of `which` if given.

    NaN for the others, and for one that OpenMM cannot compute alone.
    """
    result = np.full((system.getNumForces(), len(configurations)), np.nan)
    for k in range(len(result)) if which is None else which:
        with contextlib.suppress(InputError):
            result[k] = energies_and_forces(only_force(system, k), configurations)[0]
    return result


def only_force(system: openmm.System, index: int) -> openmm.System:
    """Return a copy of the particles with one force."""
    return without_forces(system, lambda k, _: k != index)


def parameter_names(force: openmm.Force) -> list[str]:
    """Return the names of a force's global parameters."""
    if not hasattr(force, "getNumGlobalParameters"):
        return []
    return [force.getGlobalParameterName(k) for k in range(force.getNumGlobalParameters())]


def default_parameters(force: openmm.Force) -> dict[str, float]:
    """Return the default values of a force's global parameters."""
    return {name: force.getGlobalParameterDefaultValue(k) for k, name in enumerate(parameter_names(force))}


def set_default_parameters(force: openmm.Force, values: dict[str, float]) -> None:
    """Make a context's current global parameters the defaults of a force, and of those inside a CustomCVForce."""
    for k, name in enumerate(parameter_names(force)):
        if name in values:
            force.setGlobalParameterDefaultValue(k, values[name])
    if isinstance(force, openmm.CustomCVForce):
        for k in range(force.getNumCollectiveVariables()):
            set_default_parameters(force.getCollectiveVariable(k), values)
