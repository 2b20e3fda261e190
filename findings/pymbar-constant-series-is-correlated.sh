#!/usr/bin/env bash
# pymbar's statistical inefficiency of a constant series is n or an error, as the constant's rounding decides.
# Seen with pymbar 4.0.3: 100 times 0.1 gives g = 99.98, 100 times 0.5 raises ParameterError: the mean of the first is
# rounded, and its variance of 1e-34 passes the test "is it 0?". detect_equilibration then discards 97 of the 100.
# Why it matters: an observable that does not change (a locked distance, a state index) decides how many samples of
# all others are kept, or the analysis fails, by the last bit of a number. Leave constant series out yourself.
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
rounded = float(timeseries.statistical_inefficiency(np.full(100, 0.1)))
print("100 times 0.1: g =", rounded)
try:
    print("100 times 0.5: g =", timeseries.statistical_inefficiency(np.full(100, 0.5)))
    refused = False
except pymbar.utils.ParameterError as error:
    print("100 times 0.5:", error)
    refused = True
start = int(timeseries.detect_equilibration(np.full(100, 0.1))[0])
print("100 times 0.1 is in equilibrium from frame", start)
assert rounded > 99 and refused and start > 90, "it no longer does so"
PYTHON
