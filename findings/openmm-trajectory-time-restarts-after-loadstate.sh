#!/usr/bin/env bash
# Trajectory reporters of OpenMM begin at time interval * dt after loadState, whatever the state's time is.
# Seen with OpenMM 8.6.1 and mdtraj 1.11.1.post2: a state saved at 2 ps, loaded and run on, is at 3, 4 and 5 ps by
# StateDataReporter; the XTC file says 1, 2 and 3 ps, the DCD header 500 as its first step instead of 1500. mdtraj gives
# the DCD's frames the times 0, 1 and 2, whatever its header says.
# Why it matters: parts of one run, joined or compared by their times, overlap, and an energy is matched with a
# structure 2 ps away.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openmm==8.6.1 mdtraj==1.11.1.post2
venv/bin/python - <<'PYTHON'
import os
import struct

import mdtraj
import openmm
from openmm import app


def simulation():
    topology = app.Topology()
    topology.addAtom("C", app.element.carbon, topology.addResidue("X", topology.addChain()))
    system, well = openmm.System(), openmm.CustomExternalForce("x^2+y^2+z^2")
    system.addParticle(12.0)
    well.addParticle(0, [])
    system.addForce(well)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
    made = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    made.context.setPositions([[0, 0, 0]])
    return made


class Times:
    def __init__(self):
        self.times = []

    def describeNextReport(self, simulation):
        return {"steps": 500 - simulation.currentStep % 500, "periodic": None, "include": []}

    def report(self, simulation, state):
        self.times.append(round(state.getTime()._value, 6))


first = simulation()
first.step(1000)
first.saveState("state.xml")
second, true = simulation(), Times()
second.loadState("state.xml")
second.reporters += [app.XTCReporter("x.xtc", 500), app.DCDReporter("x.dcd", 500), true]
second.step(1500)
second.reporters.clear()
topology = mdtraj.Topology.from_openmm(second.topology)
xtc, dcd = (mdtraj.load(name, top=topology).time.tolist() for name in ("x.xtc", "x.dcd"))
with open("x.dcd", "rb") as file:
    first_step = struct.unpack("<i4s2i", file.read(16))[3]
print("OpenMM", openmm.version.short_version, "mdtraj", mdtraj.__version__)
print("times in the simulation:", true.times, "ps")
print("in the XTC file:", xtc, "ps; first step in the DCD header:", first_step, "; mdtraj on the DCD:", dcd)
assert true.times == [3, 4, 5] and xtc == [1, 2, 3] and first_step == 500 and dcd == [0, 1, 2], "it no longer does so"
PYTHON
