"""A three-atom molecule whose free energies are known in closed form, and laws to compare samples with."""

from __future__ import annotations

import itertools

import numpy as np
import openmm
from openmm import app, unit
from scipy.integrate import quad

from openmm_sgm.cvs import CollectiveVariable, Distance
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import thermal_energy

BOND_NM, BOND_CONSTANT = 0.15, 4_000.0
"""Length (nm) and force constant (kJ/mol/nm²) of both bonds: soft, so that r² in the volume element shows."""
ANGLE_RAD, ANGLE_CONSTANT = 1.9, 20.0
TEMPERATURE_K = 300.0
RANGE_NM = (0.08, 0.22)


def triatomic(
    masses: tuple[float, float, float] = (12.0, 12.0, 12.0),
    constrained: bool = False,
    angle_constant: float = ANGLE_CONSTANT,
    cvs: tuple[CollectiveVariable, ...] | None = None,
) -> MolecularSystem:
    """Return 0–1–2 with harmonic bonds (or constrained ones) and a harmonic angle; CV: the distance 0–1."""
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for i, j in ((0, 1), (1, 2)):
        if constrained:
            system.addConstraint(i, j, BOND_NM)
        else:
            bonds.addBond(i, j, BOND_NM, BOND_CONSTANT)
    angles.addAngle(0, 1, 2, ANGLE_RAD, angle_constant)
    system.addForce(bonds)
    system.addForce(angles)
    topology = app.Topology()
    residue = topology.addResidue("TRI", topology.addChain())
    atoms = [topology.addAtom(name, app.element.carbon, residue) for name in ("A", "B", "C")]
    topology.addBond(atoms[0], atoms[1])
    topology.addBond(atoms[1], atoms[2])
    bend = np.pi - ANGLE_RAD
    positions = BOND_NM * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0 + np.cos(bend), np.sin(bend), 0.0]])
    if cvs is None:
        cvs = (Distance("r", (0, 1), *RANGE_NM, windows=10),)
    return MolecularSystem(
        name="triatomic",
        topology=topology,
        system=system,
        positions=positions,
        cvs=cvs,
        temperature_k=TEMPERATURE_K,
        time_step_fs=1.0,
        bins=(28,) * len(cvs),
    )


def triatomic_simulation() -> app.Simulation:
    """Return a user's `Simulation` of the molecule, with a Langevin integrator on the Reference platform."""
    molecule = triatomic()
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 5.0, 0.001)
    integrator.setRandomNumberSeed(11)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, platform)
    simulation.context.setPositions(molecule.positions * unit.nanometer)
    return simulation


def bond_density(r: np.ndarray | float) -> np.ndarray:
    """Return the (not normalised) density of the distance 0–1: r² exp(−βk(r − r₀)²/2)."""
    r = np.asarray(r, dtype=float)
    return r**2 * np.exp(-0.5 * BOND_CONSTANT * (r - BOND_NM) ** 2 / thermal_energy(TEMPERATURE_K))


def exact_surface(edges: np.ndarray) -> np.ndarray:
    """Return −kT log of the probability of each bin, kJ/mol, minimum 0."""
    masses = [quad(bond_density, a, b)[0] for a, b in itertools.pairwise(edges)]
    surface = -thermal_energy(TEMPERATURE_K) * np.log(masses)
    return np.asarray(surface - surface.min())


def bond_distribution(r: np.ndarray) -> np.ndarray:
    """Return the cumulative distribution of the distance 0–1 at r."""
    grid = np.linspace(0.02, 0.3, 4001)
    density = bond_density(grid)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    return np.asarray(np.interp(r, grid, cumulative / cumulative[-1]))
