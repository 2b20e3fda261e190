#!/usr/bin/env bash
# app.Metadynamics.getFreeEnergy returns its array with the last variable first.
# Seen with OpenMM 8.6.1: with variables (a, b) of 11 and 17 grid points the array has the shape (17, 11), and the bias
# around a = 0.22, b = 0.5 lies at index [8, 1]. (Index i stands for minimum + i (maximum - minimum) / (n - 1), both
# ends included; the docstring divides by n.)
# Why it matters: phi and psi have the same grid, so that plotting it as F[phi, psi] gives the mirrored map of a
# molecule that does not exist, without any error. Transpose it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openmm==8.6.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import openmm
from openmm import app

topology = app.Topology()
residue = topology.addResidue("X", topology.addChain())
system = openmm.System()
for k in range(3):
    topology.addAtom(f"C{k}", app.element.carbon, residue)
    system.addParticle(12.0)


def distance(a, b):
    force = openmm.CustomBondForce("r")
    force.addBond(a, b, [])
    return force


variables = [
    app.BiasVariable(distance(0, 1), 0.2, 0.4, 0.01, False, gridWidth=11),
    app.BiasVariable(distance(1, 2), 0.1, 0.9, 0.02, False, gridWidth=17),
]
sampler = app.Metadynamics(system, variables, 300, 5, 1.0, 1)
platform = openmm.Platform.getPlatformByName("Reference")
simulation = app.Simulation(topology, system, openmm.LangevinMiddleIntegrator(300, 1, 1e-6), platform)
simulation.context.setPositions([[0, 0, 0], [0.22, 0, 0], [0.22, 0.5, 0]])
sampler.step(simulation, 5)
surface = sampler.getFreeEnergy()._value
lowest = tuple(int(i) for i in np.unravel_index(surface.argmin(), surface.shape))
print("OpenMM", openmm.version.short_version)
print("grid points of the variables: 11 and 17; shape of the surface:", surface.shape)
print("hills at a = 0.22 (index 1) and b = 0.5 (index 8); the lowest point is at index", lowest)
assert surface.shape == (17, 11) and lowest == (8, 1), "it no longer does so"
PYTHON
