"""Forces in a user's system that are no molecule's: a bias or a restraint on the CVs that is already there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
import openmm

from .cvs import CollectiveVariable
from .forces import describe_forces, energies_and_forces, only_force, shaken

__all__ = ["forces_along", "forces_that_look_like_biases", "warn_of_biases"]

_NAMES = re.compile(r"metad|opes|plumed|umbrella|bias|steer", re.IGNORECASE)
_ON_FEW_ATOMS = (
    openmm.CustomBondForce,
    openmm.CustomAngleForce,
    openmm.CustomTorsionForce,
    openmm.CustomCompoundBondForce,
    openmm.CustomCentroidBondForce,
    openmm.CustomCVForce,
)
"""Biases and restraints are made of these. A force field's own terms are, as a rule, others; and where it uses these it
has many terms, whose gradient is not along the CVs."""
_CONFIGURATIONS = 4
_LEAST_GRADIENT = 1e-3
"""kJ/mol/nm; below, a force is off at a configuration."""
_RESIDUAL = 1e-4


def forces_that_look_like_biases(system: openmm.System) -> list[int]:
    """Return the indices of forces with a table over CVs, as metadynamics has it, or with a bias's name or class."""
    found = []
    for k, force in enumerate(system.getForces()):
        table = isinstance(force, openmm.CustomCVForce) and force.getNumTabulatedFunctions() > 0
        if table or _NAMES.search(f"{type(force).__name__} {force.getName()}"):
            found.append(k)
    return found


def forces_along(system: openmm.System, cvs: Sequence[CollectiveVariable], positions: np.ndarray) -> list[int]:
    """Return the indices of custom forces that are functions of the CVs alone.

    Such a force has ∂U/∂x = Σ ∂U/∂ξ_k ∂ξ_k/∂x, which is looked for at `positions` and near them.

    Parameters
    ----------
    positions : float64, shape (n_atoms, 3), nm
    """
    candidates = [k for k, force in enumerate(system.getForces()) if isinstance(force, _ON_FEW_ATOMS)]
    if not candidates:
        return []
    x = np.concatenate([positions[None], shaken(positions, _CONFIGURATIONS - 1)])
    gradients = np.stack([energies_and_forces(_alone(cv, len(positions)), x)[1] for cv in cvs], axis=-1)
    gradients = gradients.reshape(len(x), -1, len(cvs))
    found = []
    for k in candidates:
        forces = energies_and_forces(only_force(system, k), x)[1].reshape(len(x), -1)
        sizes = np.linalg.norm(forces, axis=1)
        on = np.isfinite(sizes) & (sizes > _LEAST_GRADIENT)
        rests = [_outside(f, g) for f, g in zip(forces[on], gradients[on], strict=True)]
        if on.any() and (np.array(rests) <= _RESIDUAL * sizes[on]).all():
            found.append(k)
    return found


def warn_of_biases(system: openmm.System, indices: Sequence[int], stacklevel: int) -> None:
    """Warn that forces are part of the physics that is sampled, though they look like a bias; nothing for none."""
    if indices:
        warnings.warn(
            f"{describe_forces(system, indices)}: a bias or a restraint on collective variables that is in the system "
            "already is part of the physics that is sampled, and of the surface; if it should not be, remove it and "
            "make the Simulation anew, or leave its force group out with integrator.setIntegrationForceGroups",
            stacklevel=stacklevel + 1,
        )


def _outside(vector: np.ndarray, basis: np.ndarray) -> float:
    """Return the length of the part of a vector (n,) that is outside the span of a basis (n, m)."""
    return float(np.linalg.norm(vector - basis @ np.linalg.lstsq(basis, vector, rcond=None)[0]))


def _alone(cv: CollectiveVariable, n_atoms: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(1.0)
    system.addForce(cv.force())
    return system
