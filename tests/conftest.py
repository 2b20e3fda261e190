"""Molecules that many tests use, and a context to ask them for energies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest

from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def alanine() -> MolecularSystem:
    """Capped alanine in vacuum; CVs φ and ψ."""
    return load_system(REPOSITORY / "systems" / "alanine_dipeptide_vacuum")


@pytest.fixture(scope="session")
def proline() -> MolecularSystem:
    """Capped proline in vacuum, a molecule with a ring; CVs ψ and a distance."""
    return load_system(REPOSITORY / "tests" / "data" / "capped_proline")


@pytest.fixture(scope="session")
def alanine_conformations(alanine: MolecularSystem) -> np.ndarray:
    """Shape (24, 22, 3), nm: capped alanine with each of φ and ψ turned at random, and every atom shaken by 5 pm."""
    rng = np.random.default_rng(20240531)
    result = []
    for _ in range(24):
        x = alanine.positions.copy()
        for (_, b, c, _), moved in (((4, 6, 8, 14), range(9, 22)), ((6, 8, 14, 16), range(15, 22))):
            axis = (x[c] - x[b]) / np.linalg.norm(x[c] - x[b])
            angle = rng.uniform(-np.pi, np.pi)
            v = x[list(moved)] - x[c]
            cross = np.cross(axis, v)  # Rodrigues' formula
            x[list(moved)] = (
                x[c] + v * np.cos(angle) + cross * np.sin(angle) + np.outer(v @ axis, axis) * (1 - np.cos(angle))
            )
        result.append(x + rng.normal(scale=0.005, size=x.shape))
    return np.array(result)


def reference_context(system: openmm.System) -> openmm.Context:
    """Return a context on the Reference platform: double precision, and no start-up time."""
    platform = openmm.Platform.getPlatformByName("Reference")
    return openmm.Context(system, openmm.VerletIntegrator(0.001), platform)


def energy(context: openmm.Context, positions: np.ndarray, groups: int = -1) -> float:
    """Return the potential energy of positions (n_atoms, 3) in kJ/mol."""
    context.setPositions(positions)
    return context.getState(energy=True, groups=groups).getPotentialEnergy()._value


def forces(context: openmm.Context, positions: np.ndarray, groups: int = -1) -> np.ndarray:
    """Return the forces on positions (n_atoms, 3) in kJ/mol/nm."""
    context.setPositions(positions)
    return context.getState(forces=True, groups=groups).getForces(asNumpy=True)._value
