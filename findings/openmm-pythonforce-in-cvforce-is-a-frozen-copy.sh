#!/usr/bin/env bash
# A PythonForce that becomes a variable of a CustomCVForce is from then on a pickled copy.
# Seen with OpenMM 8.6.1: an object's attribute changed after addCollectiveVariable has no effect, although no Context
# existed at the time; the same object in a PythonForce of its own follows the change, and counts its calls. A closure
# works as a PythonForce and fails inside a CustomCVForce, since it cannot be pickled.
# Why it matters: the natural way to bias along a Python CV is this nesting; retraining the network, a counter, a cache
# or a log kept by the object are silently those of another object.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openmm==8.6.1
venv/bin/python - <<'PYTHON'
import numpy as np
import openmm


class Slope:
    def __init__(self):
        self.slope, self.calls = 1.0, 0

    def __call__(self, state):
        self.calls += 1
        x = state.getPositions(asNumpy=True)._value
        return self.slope * x[0, 0], np.array([[-self.slope, 0.0, 0.0]])


def nested(function):
    force = openmm.CustomCVForce("s")
    force.addCollectiveVariable("s", openmm.PythonForce(function, {}))
    return force


def context_of(force):
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions([[2, 0, 0]])
    return context


def energy(context):
    return context.getState(energy=True).getPotentialEnergy()._value


print("OpenMM", openmm.version.short_version)
own, inner = Slope(), Slope()
alone, inside = openmm.PythonForce(own, {}), nested(inner)
own.slope = inner.slope = 5.0
found = {"alone": energy(context_of(alone)), "inside": energy(context_of(inside))}
print("slope changed from 1 to 5 before there was a Context; energies at x = 2:", found)
print("calls that the objects saw:", own.calls, "and", inner.calls)
offset = 3.0
closure_alone = energy(context_of(openmm.PythonForce(lambda state: (offset, np.zeros((1, 3))), {})))
try:
    context_of(nested(lambda state: (offset, np.zeros((1, 3)))))
    refused = ""
except openmm.OpenMMException as error:
    refused = str(error)
print("a lambda alone:", closure_alone, "- inside:", refused)
assert found == {"alone": 10.0, "inside": 2.0} and own.calls == 1 and inner.calls == 0, "it no longer does so"
assert closure_alone == 3.0 and "pickle" in refused, "it no longer does so"
PYTHON
