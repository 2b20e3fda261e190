#!/usr/bin/env bash
# A CustomCentroidBondForce makes one molecule of its groups; inside a CustomCVForce as well.
# Seen with OpenMM 8.6.1: Context.getMolecules() of six free particles counts the four of two groups as one molecule
# once a force on the groups' distance is added. A CustomCompoundBondForce on the same distance joins nothing.
# Why it matters: a bias on the distance of two molecules changes which atoms are wrapped together at a periodic
# boundary and scaled together by a barostat; the equivalent compound force does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openmm==8.6.1
venv/bin/python - <<'PYTHON'
import openmm


def molecules(force, inside):
    system = openmm.System()
    for _ in range(6):
        system.addParticle(12.0)
    if inside:
        outer = openmm.CustomCVForce("d")
        outer.addCollectiveVariable("d", force)
        force = outer
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    return [list(molecule) for molecule in context.getMolecules()]


def centroids():
    force = openmm.CustomCentroidBondForce(2, "distance(g1, g2)")
    force.addBond([force.addGroup([0, 1]), force.addGroup([4, 5])], [])
    return force


def compound():
    force = openmm.CustomCompoundBondForce(4, "pointdistance((x1+x2)/2, (y1+y2)/2, (z1+z2)/2, (x3+x4)/2, (y3+y4)/2, (z3+z4)/2)")
    force.addBond([0, 1, 4, 5], [])
    return force


print("OpenMM", openmm.version.short_version)
for inside in (False, True):
    where = "inside a CustomCVForce" if inside else "on its own"
    joined, free = molecules(centroids(), inside), molecules(compound(), inside)
    print(f"{where}: CustomCentroidBondForce {joined}; CustomCompoundBondForce {free}")
    assert [0, 1, 4, 5] in joined and len(free) == 6, "it no longer does so"
PYTHON
