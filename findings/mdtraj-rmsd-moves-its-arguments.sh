#!/usr/bin/env bash
# mdtraj.rmsd without atom_indices centres both trajectories that it is given, in place.
# Seen with mdtraj 1.11.1.post2: after the call the mean position of target and reference is 0; with atom_indices (even
# if these are all atoms) both are left where they were. The docstring says "center in place" of all calls.
# Why it matters: positions, distances to a wall or to a second molecule in another array, and whatever is written out
# afterwards are those of a moved molecule; whether this happens depends on an unrelated argument.
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
for k in range(5):
    topology.add_atom(f"C{k}", carbon, residue)
positions = np.random.default_rng(0).normal(scale=0.2, size=(4, 5, 3))
print("mdtraj", mdtraj.__version__)
moved = {}
for words, options in {"no atom_indices": {}, "atom_indices of all atoms": {"atom_indices": np.arange(5)}}.items():
    target, reference = mdtraj.Trajectory(positions + 3, topology), mdtraj.Trajectory(positions[:1] + 2, topology)
    mdtraj.rmsd(target, reference, **options)
    moved[words] = float(target.xyz.mean()), float(reference.xyz.mean())
    print(f"{words}: mean coordinates of target and reference, 3 and 2 before: %.3f %.3f" % moved[words])
assert np.allclose(moved["no atom_indices"], 0, atol=1e-5), "it no longer does so"
assert np.allclose(moved["atom_indices of all atoms"], (3, 2), atol=0.2), "it no longer does so"
PYTHON
