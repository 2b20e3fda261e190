"""Collective variables that cannot be meant: atoms not bonded in a row, torsions along a line, constants."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import openmm
from openmm import app, unit
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr

from .cvs import Angle, CollectiveVariable, Torsion
from .units import InputError

__all__ = ["check_bonds_and_lines", "refuse_constant"]

LINEAR, COLLINEAR = np.radians(175), np.radians(179.5)
"""From the first on three atoms are nearly on a line, where a torsion through them turns wildly; from the second, on
one, where it has no value."""
SHAKE_NM = 1e-3
CONSTANT = 1e-8
"""Share of a CV's gradient that no constraint takes up, below which it is a function of constrained distances."""


def check_bonds_and_lines(
    topology: app.Topology, system: openmm.System, positions: np.ndarray, cvs: Sequence[CollectiveVariable]
) -> None:
    """Look at the atoms of torsions and angles, at the start of everything.

    Parameters
    ----------
    positions : float64, shape (n_atoms, 3), nm; the start

    Raises
    ------
    InputError
        for a torsion through three atoms that lie on a line, by the force field's HarmonicAngleForce or at the start.

    Warns
    -----
    UserWarning
        for a torsion or an angle whose atoms are not bonded in a row, which is how indices that count from 1 show, and
        for a torsion through three atoms that are nearly on a line at the start.
    """
    bonded = {frozenset((bond.atom1.index, bond.atom2.index)) for bond in topology.bonds()}
    straight = _straight_angles(system)
    for cv in cvs:
        if isinstance(cv, Torsion | Angle) and bonded:
            _check_bonded(cv, bonded)
        if isinstance(cv, Torsion):
            _check_line(cv, positions, straight)


def _check_bonded(cv: CollectiveVariable, bonded: set[frozenset[int]]) -> None:
    def in_a_row(shift: int) -> bool:
        return all(frozenset((i - shift, j - shift)) in bonded for i, j in pairwise(cv.atoms))

    if in_a_row(0):
        return
    found = f" ({', '.join(str(i - 1) for i in cv.atoms)} are bonded so)" if in_a_row(1) else ""
    warnings.warn(
        f"CV '{cv.name}': atoms {', '.join(map(str, cv.atoms))} are not bonded in a row: atoms count from 0, so take 1 "
        f"from each number of a PDB file{found}, unless the CV is meant as it is",
        stacklevel=5,
    )


def _check_line(cv: Torsion, positions: np.ndarray, straight: set[tuple[int, frozenset[int]]]) -> None:
    for i, j, k in (cv.atoms[:3], cv.atoms[1:]):
        through = f"CV '{cv.name}' is a torsion through atoms {i}, {j}, {k}, which"
        if (j, frozenset((i, k))) in straight:
            raise InputError(
                f"{through} the force field holds on a line, as in a nitrile or an alkyne, where it has no value: "
                "choose atoms on both sides of the linear group, or another CV"
            )
        angle = _angle(positions[[i, j, k]])
        off = max(angle, np.pi - angle)  # as far from a bend either way
        if off >= COLLINEAR:
            raise InputError(
                f"{through} lie on a line at the start, where it has no value: start from another structure, or choose "
                "other atoms"
            )
        if off >= LINEAR:
            warnings.warn(
                f"{through} are nearly on a line at the start ({np.degrees(angle):.0f} degrees), where it turns "
                "wildly: choose other atoms if they stay so",
                stacklevel=5,
            )


def _straight_angles(system: openmm.System) -> set[tuple[int, frozenset[int]]]:
    """Return (the middle atom, the other two) of the angles that the force field holds within 5 degrees of 180."""
    found = set()
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                i, j, k, angle, constant = force.getAngleParameters(index)
                stiff = constant.value_in_unit(unit.kilojoule_per_mole / unit.radian**2) > 0
                if stiff and angle.value_in_unit(unit.radian) >= LINEAR:
                    found.add((j, frozenset((i, k))))
    return found


def _angle(points: np.ndarray) -> float:
    """Return the angle at the second of three points (3, 3), radians; NaN where two are at one place."""
    first, last = points[0] - points[1], points[2] - points[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.arccos(np.clip(first @ last / np.sqrt(first @ first * (last @ last)), -1, 1)))


def refuse_constant(
    constraints: Sequence[tuple[int, int, float]],
    positions: np.ndarray,
    cvs: Sequence[CollectiveVariable],
    gradients: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Refuse a CV that the constraints hold at one value, such as the length of a constrained bond.

    It is a function of constrained distances alone where its gradient is made of theirs. The start is shaken for that:
    at a start that is straight, flat or symmetric gradients may agree by chance.

    Parameters
    ----------
    constraints : (i, j, distance); positions : float64, shape (n_atoms, 3), nm
    gradients : gives ∂CV/∂x (1, n_cvs, n_atoms, 3) of positions (1, n_atoms, 3)

    Raises
    ------
    InputError
        with the CV's name.
    """
    if not constraints:
        return
    pairs = np.array([(i, j) for i, j, _ in constraints])
    shaken = positions + np.random.default_rng(1).normal(scale=SHAKE_NM, size=positions.shape)
    arms = shaken[pairs[:, 0]] - shaken[pairs[:, 1]]
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    columns = np.repeat(np.arange(len(pairs)), 3)
    rows = [(3 * ends[:, None] + np.arange(3)).ravel() for ends in pairs.T]
    matrix = csr_matrix(
        (np.concatenate([arms.ravel(), -arms.ravel()]), (np.concatenate(rows), np.tile(columns, 2))),
        shape=(positions.size, len(pairs)),
    )
    for cv, gradient in zip(cvs, gradients(shaken[None])[0], strict=True):
        flat = gradient.ravel()
        size = float(np.linalg.norm(flat))
        if not (np.isfinite(size) and size > 0):
            continue
        if lsqr(matrix, flat, atol=1e-13, btol=1e-13, iter_lim=100 * len(pairs))[3] <= CONSTANT * size:
            raise InputError(
                f"CV '{cv.name}' never changes, as the constraints hold every distance that it is made of: choose "
                "another CV, or make the system without these constraints"
            )
