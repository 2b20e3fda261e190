#!/usr/bin/env bash
# pymbar's MBAR gives states that share no configurations a finite difference, exactly 0 if they are far apart.
# Seen with pymbar 4.0.3: two harmonic states with a difference of 3 kT, 30 standard deviations apart: 0.0, with an error
# of NaN, by both solver protocols and without an exception; 12 apart: between 0 and 3, with an error of NaN or thousands.
# Why it matters: 0 looks like a result (the starting guess comes back), is among the numbers that one hopes for, and
# a plot of values without their errors shows two equally stable states. Look at compute_overlap() first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet pymbar==4.0.3 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import logging
import warnings

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
import numpy as np
import pymbar

print("pymbar", pymbar.__version__)
rng = np.random.default_rng(0)
found = []
for apart in (3, 12, 30):
    x = np.concatenate([rng.normal(0, 1, 500), rng.normal(apart, 1, 500)])
    energies = np.array([0.5 * x**2, 0.5 * (x - apart) ** 2 + 3])
    for protocol in ("default", "robust"):
        mbar = pymbar.MBAR(energies, [500, 500], solver_protocol=None if protocol == "default" else protocol)
        result = mbar.compute_free_energy_differences()
        found.append((apart, float(result["Delta_f"][0, 1]), float(result["dDelta_f"][0, 1])))
        print("%d standard deviations apart, %s protocol: %.3f +- %.3f kT, 3 is right" % (apart, protocol, *found[-1][1:]))
assert all(abs(f - 3) < 1 for apart, f, _ in found if apart == 3), "it no longer does so"
assert all(f == 0 and np.isnan(e) for apart, f, e in found if apart == 30), "it no longer does so"
assert all(np.isfinite(f) and not e < 100 for apart, f, e in found if apart == 12), "it no longer does so"
PYTHON
