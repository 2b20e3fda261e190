"""What the method can treat, and one refusal for each thing that it cannot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openmm
from openmm import app, unit

from .cvs import CollectiveVariable, Position, as_cvs
from .place import forces_that_tie, is_tied
from .units import InputError

__all__ = ["BAROSTATS", "bonded_pairs", "check_size_and_box", "check_supported", "constraints_of", "particle_masses"]

BAROSTATS = (
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloMembraneBarostat,
    openmm.MonteCarloFlexibleBarostat,
)


def check_size_and_box(topology: app.Topology, system: openmm.System, cvs: Sequence[CollectiveVariable]) -> None:
    """Refuse a barostat, periodic boundary conditions, and a topology, system and CVs of different sizes."""
    as_cvs(cvs)
    n = system.getNumParticles()
    for force in system.getForces():
        if isinstance(force, BAROSTATS):
            raise InputError(f"constant volume (NVT) is meant: remove the barostat ({type(force).__name__})")
    if system.usesPeriodicBoundaryConditions():
        raise InputError(
            "periodic boundary conditions are not supported yet: use NoCutoff (vacuum or implicit solvent)"
        )
    if topology.getNumAtoms() != n:
        raise InputError(f"the topology has {topology.getNumAtoms()} atoms and the system {n} particles")
    for cv in cvs:
        if cv.atoms and max(cv.atoms) >= n:
            raise InputError(
                f"CV '{cv.name}' asks for atom {max(cv.atoms)}, but the system has {n} atoms, counted from 0"
            )


def check_supported(
    topology: app.Topology, system: openmm.System, cvs: Sequence[CollectiveVariable], positions: np.ndarray
) -> bool:
    """Refuse what the method cannot treat at constant temperature; return whether forces tie the particles to a place.

    Supported is one bonded molecule in free space; virtual sites may be attached to it. A CMMotionRemover is harmless:
    it acts on no internal coordinate. Particles that a CustomExternalForce, or any other force, ties to a place are
    supported as well, bonded or not. Which it is, energies tell, see `is_tied`.

    Parameters
    ----------
    positions : float64, shape (n_atoms, 3), nm

    Raises
    ------
    InputError
        for a barostat, periodic boundary conditions, a topology without bonds or of another size, several pieces,
        particles without mass that are no virtual sites, constraints other than on bonds, a CV on atoms that do not
        exist, an energy that changes with the orientation alone; and in a tied system for constraints, virtual sites
        or a CMMotionRemover.
    """
    check_size_and_box(topology, system, cvs)
    if is_tied(system, positions):
        _check_tied(system, positions)
        return True
    for cv in cvs:
        if isinstance(cv, Position):
            raise InputError(
                f"CV '{cv.name}' is a position, which a molecule in free space does not keep: tie the system to a "
                "place with a CustomExternalForce, or choose an internal coordinate"
            )
    bonds = bonded_pairs(topology)
    if not len(bonds):
        raise InputError("the topology has no bonds: give a PDB of standard residues, CONECT records, or add bonds")
    masses = particle_masses(system)
    _check_masses(system, masses)
    pieces = _count_pieces(masses, bonds)
    if pieces > 1:
        raise InputError(
            f"the atoms form {pieces} pieces, but one bonded molecule (virtual sites may be attached) is supported"
        )
    bonded = {frozenset(pair) for pair in bonds.tolist()}
    for i, j, _ in constraints_of(system):
        if frozenset((i, j)) not in bonded:
            raise InputError(
                f"atoms {i} and {j} are constrained but not bonded (a rigid angle or rigid water): "
                "only bonds may be constrained, as with constraints = 'HBonds'"
            )
    return False


def _check_masses(system: openmm.System, masses: np.ndarray) -> None:
    for i, mass in enumerate(masses):
        if mass == 0 and not system.isVirtualSite(i):
            raise InputError(f"particle {i} has no mass and is no virtual site: frozen atoms are not supported")


def _check_tied(system: openmm.System, positions: np.ndarray) -> None:
    """Refuse what cannot be sampled in Cartesian coordinates."""
    _check_masses(system, particle_masses(system))
    if any(system.isVirtualSite(i) for i in range(system.getNumParticles())):
        what, instead = "virtual sites", "use a model without them"
    elif system.getNumConstraints():
        what, instead = "constraints", "build the system without constraints and with a shorter time step"
    elif any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces()):
        what, instead = "a CMMotionRemover", "build the system with removeCMMotion=False"
    else:
        return
    raise InputError(
        f"particles that are tied to a place (here by {forces_that_tie(system, positions)}) are sampled in Cartesian "
        f"coordinates, each on its own, where {what} cannot be kept: {instead}, or remove what ties them"
    )


# Small readers of OpenMM objects


def particle_masses(system: openmm.System) -> np.ndarray:
    """Return float64, shape (n_particles,), amu; 0 for virtual sites."""
    return np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())])


def bonded_pairs(topology: app.Topology) -> np.ndarray:
    """Return int64, shape (n_bonds, 2)."""
    pairs = [(bond.atom1.index, bond.atom2.index) for bond in topology.bonds()]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def constraints_of(system: openmm.System) -> tuple[tuple[int, int, float], ...]:
    """Return (i, j, distance in nm) of every constraint."""
    found = (system.getConstraintParameters(k) for k in range(system.getNumConstraints()))
    return tuple((i, j, distance.value_in_unit(unit.nanometer)) for i, j, distance in found)


def _count_pieces(masses: np.ndarray, bonds: np.ndarray) -> int:
    """Return the number of connected pieces of the bond graph of atoms with mass."""
    left = set(np.flatnonzero(masses > 0).tolist())
    neighbours: dict[int, list[int]] = {i: [] for i in left}
    for i, j in bonds.tolist():
        if i in left and j in left:
            neighbours[i].append(j)
            neighbours[j].append(i)
    pieces = 0
    while left:
        pieces += 1
        stack = [left.pop()]
        while stack:
            reached = left.intersection(neighbours[stack.pop()])
            left -= reached
            stack.extend(reached)
    return pieces
