#!/usr/bin/env bash
# Modeller.addHydrogens starts hydrogens at places from Python's global `random`, and has no seed of its own.
# Seen with OpenMM 8.6.1: the same heavy atoms get hydrogens up to 0.1 to 0.2 nm apart in two calls, and the same ones
# after random.seed(7); numpy.random.seed changes nothing.
# Why it matters: a preparation script with all of OpenMM's seeds set gives another start each time; methyl and amine
# groups end in other rotamers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openmm==8.6.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import random

import numpy as np
import openmm
from openmm import app, unit

HEAVY = {
    "ACE": {"CH3": (2.0, 2.1, 0.0), "C": (3.4, 2.6, 0.0), "O": (4.4, 1.9, 0.0)},
    "ALA": {"N": (3.6, 4.0, 0.0), "CA": (4.9, 4.6, 0.0), "CB": (5.7, 4.2, -1.2), "C": (5.7, 4.2, 1.2), "O": (6.2, 3.1, 1.3)},
    "NME": {"N": (5.7, 5.1, 2.2), "C": (6.5, 4.9, 3.4)},
}
field, reference = app.ForceField("amber14-all.xml"), openmm.Platform.getPlatformByName("Reference")


def hydrogenated():
    topology, positions = app.Topology(), []
    strand = topology.addChain()
    for residue_name, atoms in HEAVY.items():
        residue = topology.addResidue(residue_name, strand)
        for name, place in atoms.items():
            topology.addAtom(name, app.element.Element.getBySymbol(name[0]), residue)
            positions.append(openmm.Vec3(*place) * 0.1)
    topology.createStandardBonds()
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.addHydrogens(field, platform=reference)
    return np.array(modeller.positions.value_in_unit(unit.nanometer))


def apart(seed):
    found = []
    for _ in range(2):
        seed()
        found.append(hydrogenated())
    return float(np.linalg.norm(found[0] - found[1], axis=1).max())


print("OpenMM", openmm.version.short_version)
distances = [apart(lambda: None), apart(lambda: np.random.seed(7)), apart(lambda: random.seed(7))]
for words, distance in zip(("no seed", "numpy.random.seed(7)", "random.seed(7)"), distances):
    print(f"{words}: the hydrogens of two calls are up to {distance:.4f} nm apart")
assert distances[0] > 0.01 and distances[1] > 0.01 and distances[2] < 1e-9, "it no longer does so"
PYTHON
