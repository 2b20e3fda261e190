#!/usr/bin/env bash
# pymbar's detect_equilibration returns more effective samples than there are samples.
# Seen with pymbar 4.0.3: n independent numbers give t0 = 0, g = 1 and N_eff = n + 1.
# Why it matters: the count is (n - t0 + 1) / g. A short window gets too many samples, by a tenth of ten, and a check
# that N_eff is at most n fails.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet pymbar==4.0.3
venv/bin/python - <<'PYTHON'
import logging

logging.disable(logging.WARNING)
import numpy as np
import pymbar
from pymbar import timeseries

print("pymbar", pymbar.__version__)
excess = []
for n in (10, 100, 1000):
    for seed in range(50):
        start, g, effective = timeseries.detect_equilibration(np.random.default_rng(seed).normal(size=n))
        if start == 0 and g == 1:
            excess.append(float(effective) - n)
            break
    print(f"{n} independent numbers: t0 = {start}, g = {float(g)}, effective samples = {float(effective)}")
assert len(excess) == 3 and set(excess) == {1.0}, "it no longer does so"
PYTHON
