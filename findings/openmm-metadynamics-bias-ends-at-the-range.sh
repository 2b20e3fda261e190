#!/usr/bin/env bash
# The bias of app.Metadynamics is a cliff at the ends of a variable's range: outside it is 0, without a wall.
# Seen with OpenMM 8.6.1: with hills at the upper end of the range (0.4 nm) the bias energy is that of the hills at
# 0.3999 nm, and 0 at 0.4001 nm. Hills deposited out there are not tempered, as the bias is 0 there, and pile up at the
# end of the range: 50 hills of 1 kJ/mol add 50 kJ/mol, where the 50 before them added 18.
# Why it matters: the bias itself pushes the system out of the range, each passage of the step changes the energy by
# many kT in one time step, and what is outside is never pushed back: add walls inside the range yourself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openmm==8.6.1
venv/bin/python - <<'PYTHON'
import openmm
from openmm import app

topology = app.Topology()
residue = topology.addResidue("X", topology.addChain())
system = openmm.System()
for k in range(2):
    topology.addAtom(f"C{k}", app.element.carbon, residue)
    system.addParticle(12.0)
bond = openmm.CustomBondForce("r")
bond.addBond(0, 1, [])
sampler = app.Metadynamics(system, [app.BiasVariable(bond, 0.2, 0.4, 0.05, False)], 300, 5, 1.0, 1)
platform = openmm.Platform.getPlatformByName("Reference")
simulation = app.Simulation(topology, system, openmm.LangevinMiddleIntegrator(300, 1, 1e-6), platform)
context = simulation.context


def bias(r):
    context.setPositions([[0, 0, 0], [r, 0, 0]])
    return context.getState(energy=True).getPotentialEnergy()._value


context.setPositions([[0, 0, 0], [0.39, 0, 0]])
sampler.step(simulation, 50)
inside, outside = bias(0.3999), bias(0.4001)
print("OpenMM", openmm.version.short_version)
print(f"bias at r = 0.3999 nm: {inside:.2f} kJ/mol; at 0.4001 nm: {outside:.2f}")
sampler.step(simulation, 50)
after = bias(0.3999)
print(f"after 50 hills outside: {after:.2f} at 0.3999 nm; {bias(0.4001):.2f} at 0.4001 nm")
assert inside > 5 and outside == 0 and bias(0.4001) == 0 and after > inside, "it no longer does so"
PYTHON
