#!/usr/bin/env bash
# mdtraj.compute_dihedrals gives a planar trans torsion as a number above pi.
# Seen with mdtraj 1.11.1.post2: float32 3.14159274, which as a double is 8.7e-8 larger than pi, so that a histogram
# over (-pi, pi) does not count it; moving one atom by 1e-9 nm gives -3.14159274, which falls out at the other end.
# Why it matters: frames with a flat peptide bond or an anti chain vanish from histograms, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet mdtraj==1.11.1.post2
venv/bin/python - <<'PYTHON'
import mdtraj
import numpy as np
from mdtraj.core.element import carbon

topology = mdtraj.Topology()
residue = topology.add_residue("CHN", topology.add_chain())
for name in ("C1", "C2", "C3", "C4"):
    topology.add_atom(name, carbon, residue)
positions = np.array([[0, 0.15, 0], [0, 0, 0], [0.15, 0, 0], [0.15, -0.15, 0]])
shifted = positions + np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, -1e-9]])
torsions = mdtraj.compute_dihedrals(mdtraj.Trajectory(np.array([positions, shifted]), topology), [[0, 1, 2, 3]])[:, 0]
counted = np.histogram(torsions, np.linspace(-np.pi, np.pi, 37))[0].sum()
print("mdtraj", mdtraj.__version__)
print("trans:", float(torsions[0]), "pi:", np.pi)
print("the same, an atom 1e-9 nm lower:", float(torsions[1]))
print("frames counted by a histogram over (-pi, pi):", counted, "of 2")
assert float(torsions[0]) > np.pi and float(torsions[1]) < -np.pi and counted == 0, "it no longer does so"
PYTHON
