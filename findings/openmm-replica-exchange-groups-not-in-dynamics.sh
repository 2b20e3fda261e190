#!/usr/bin/env bash
# The `groups` of a state of app.ReplicaExchangeSampler decide exchanges, and never reach the dynamics.
# Seen with OpenMM 8.6.1: of a particle in two springs, 100 and 10,000 kJ/mol/nm^2, in a force group each, the state
# {"groups": {0}} should have <x^2> = 0.0249 nm^2 and has 0.00025, that of both springs, as the other state.
# Why it matters: all replicas run with all force groups (or the integrator's own) while exchanges are accepted by
# energies of a part of them: neither state is sampled, and no error says so. Context parameters work.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openmm==8.6.1
venv/bin/python - <<'PYTHON'
import openmm
import numpy as np
from openmm import app

topology = app.Topology()
topology.addAtom("C", app.element.carbon, topology.addResidue("X", topology.addChain()))
system = openmm.System()
system.addParticle(12.0)
for group, constant in enumerate((100, 10_000)):
    spring = openmm.CustomExternalForce(f"0.5*{constant}*(x^2+y^2+z^2)")
    spring.addParticle(0, [])
    spring.setForceGroup(group)
    system.addForce(spring)
integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.002)
integrator.setRandomNumberSeed(3)
simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions([[0, 0, 0]])
sampler = app.ReplicaExchangeSampler([{"groups": {0}}, {"groups": {0, 1}}], simulation, 100)
squares = [[], []]


def report(sampler):
    for state, conformation in zip(sampler.replicaStateIndex, sampler.replicaConformation):
        squares[state].append((conformation.getPositions(asNumpy=True)._value ** 2).mean())


sampler.reporters.append(report)
sampler.simulate(2000)
kt = 0.00831446 * 300
soft, stiff = (float(np.mean(values)) for values in squares)
print("OpenMM", openmm.version.short_version)
print(f"<x^2> of the state of the soft spring alone: {soft:.5f} nm^2, kT/k = {kt / 100:.5f}")
print(f"<x^2> of the state of both springs: {stiff:.5f} nm^2, kT/k = {kt / 10_100:.5f}")
assert soft < 0.002 and abs(stiff / (kt / 10_100) - 1) < 0.2, "it no longer does so"
PYTHON
