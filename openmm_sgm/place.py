"""Whether a system's energy depends on where the molecule is, and how it lies: found by moving and turning it.

Whatever force the dependence hides in, the energy shows it: a rigid motion changes nothing else.
"""

from __future__ import annotations

import numpy as np
import openmm
from scipy.spatial.transform import Rotation

from .forces import describe_forces, energies_and_forces, energies_of_each_force, shaken
from .units import InputError

__all__ = ["forces_that_tie", "is_tied", "switched_off"]

TOLERANCE = (0.01, 1e-6)
"""kJ/mol, and relative to the energy: changes below are rounding, and matter to no result."""
SHIFTS_NM = (0.5, 10.0)
TURNS = 3
REACHES_NM = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
HELD_KJ_MOL = 25.0
"""So far must the energy rise on the way out in each direction: ten times kT at room temperature."""


def is_tied(system: openmm.System, positions: np.ndarray) -> bool:
    """Return whether forces hold the particles at a place; a molecule in free space is not held.

    Parameters
    ----------
    positions : float64, shape (n_atoms, 3), nm

    Raises
    ------
    InputError
        for an energy that is not finite, one that changes with the orientation alone, and one that changes with the
        place and does not hold the molecule there.
    """
    bases = np.concatenate([positions[None], shaken(positions, 1)])
    moved, turned = _moved(bases), _turned(bases)
    energies = energies_and_forces(system, np.concatenate([bases, moved, turned]))[0]
    start, by_place, by_turn = np.split(energies, [len(bases), len(bases) + len(moved)])
    if not np.isfinite(start).all():
        odd = start[~np.isfinite(start)][0]
        raise InputError(f"the energy at the starting positions is {odd:g} kJ/mol: give a structure without clashes")
    if _change(start, by_place).any():
        _refuse_half_held(system, positions)
        return True
    if _change(start, by_turn).any():
        blame, change = _blame(system, bases, turned)
        raise InputError(
            f"the energy changes when the molecule is turned{change}, by {blame}, which internal coordinates cannot "
            "describe: remove that force, or tie the molecule to a place as well with a CustomExternalForce"
        )
    return False


def switched_off(system: openmm.System, positions: np.ndarray) -> list[int]:
    """Return the indices of CustomExternalForces whose energy is zero at all places that were tried."""
    candidates = [k for k, force in enumerate(system.getForces()) if isinstance(force, openmm.CustomExternalForce)]
    if not candidates:
        return []
    bases = np.concatenate([positions[None], shaken(positions, 1)])
    each = energies_of_each_force(system, np.concatenate([bases, _moved(bases), _turned(bases)]), candidates)
    return [k for k in candidates if (np.abs(each[k]) <= TOLERANCE[0]).all()]


def forces_that_tie(system: openmm.System, positions: np.ndarray) -> str:
    """Return the forces whose energies change with the place, in words."""
    return _blame(system, positions[None], _moved(positions[None]))[0]


def _moved(bases: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(len(SHIFTS_NM), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shifts = directions * np.array(SHIFTS_NM)[:, None]
    return (bases + shifts[:, None, None]).reshape(-1, *bases.shape[1:])


def _turned(bases: np.ndarray) -> np.ndarray:
    """Return the configurations turned about their centres."""
    turns = Rotation.from_rotvec(np.random.default_rng(3).normal(size=(TURNS, 3))).as_matrix()
    centres = bases.mean(axis=1, keepdims=True)
    return np.concatenate([(bases - centres) @ turn.T + centres for turn in turns])


def _change(start: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Return whether energies, those of `start` in turn under one motion after the other, differ from it."""
    start = np.tile(start, len(energies) // len(start))
    return ~(np.abs(energies - start) <= TOLERANCE[0] + TOLERANCE[1] * np.abs(start))


def _blame(system: openmm.System, bases: np.ndarray, motions: np.ndarray) -> tuple[str, str]:
    """Return the forces whose own energies change under motions of the bases, and by how much in words."""
    each = energies_of_each_force(system, np.concatenate([bases, motions]))
    start, after = each[:, : len(bases)], each[:, len(bases) :]
    found = [k for k in range(len(each)) if _change(start[k], after[k]).any() and not np.isnan(start[k]).any()]
    if not found:
        return "a force that cannot be computed alone", ""
    worst = np.nanmax(np.abs(after[found] - np.tile(start[found], after.shape[1] // start.shape[1])))
    return describe_forces(system, found), f", by up to {worst:.3g} kJ/mol"


def _refuse_half_held(system: openmm.System, positions: np.ndarray) -> None:
    """Refuse forces that change with the place and let the molecule go in one direction or more."""
    ways = {sign + axis: float(sign + "1") * np.eye(3)[k] for k, axis in enumerate("xyz") for sign in "+-"}
    steps = [positions + reach * way for way in ways.values() for reach in REACHES_NM]
    energies = energies_and_forces(system, np.concatenate([positions[None], steps]))[0]
    rise = (energies[1:] - energies[0]).reshape(len(ways), len(REACHES_NM))
    free = [name for name, row in zip(ways, rise, strict=True) if not ((row > HELD_KJ_MOL) | np.isnan(row)).any()]
    if free:
        blame, _ = _blame(system, positions[None], np.array(steps))
        raise InputError(
            f"the energy depends on the place, by {blame}, but nothing holds the molecule along {', '.join(free)}: "
            "hold it in all directions with a CustomExternalForce, or remove that force"
        )
