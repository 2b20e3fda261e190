#!/usr/bin/env bash
# mdtraj.compute_rg with masses measures from the unweighted centre.
# Seen with mdtraj 1.11.1.post2: squared distances are weighted by mass, but taken from the mean of the positions, not
# the centre of mass. Of two light atoms and one heavy one it gives about twice the radius of gyration.
# Why it matters: the value is always too large, by the distance of the two centres, and differs from every other
# program's and from sqrt(sum m |r - r_com|^2 / M); a CV in OpenMM built by the definition disagrees with it.
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
residue = topology.add_residue("X", topology.add_chain())
for k in range(3):
    topology.add_atom(f"C{k}", carbon, residue)
trajectory = mdtraj.Trajectory(np.array([[[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]]), topology)
masses, x = np.array([20.0, 1.0, 1.0]), trajectory.xyz[0].astype(float)
found = float(mdtraj.compute_rg(trajectory, masses=masses)[0])


def radius(centre):
    return float(np.sqrt(masses @ ((x - centre) ** 2).sum(axis=1) / masses.sum()))


of_mass, of_place = radius(masses @ x / masses.sum()), radius(x.mean(axis=0))
print("mdtraj", mdtraj.__version__)
print(f"compute_rg: {found:.5f} nm; about the centre of mass: {of_mass:.5f}; about the mean position: {of_place:.5f}")
assert abs(found - of_place) < 1e-6 and found > 1.1 * of_mass, "it no longer does so"
PYTHON
