#!/usr/bin/env bash
# deeptime's TICA takes a tuple of two trajectories for one trajectory and its time-lagged copy; a list for two.
# Seen with deeptime 0.4.5: of two independent trajectories of a process with a relaxation time of 100 steps, a list
# gives about 100, the same two in a tuple below 10 and a meaningless direction, whatever the lag time; no warning.
# Why it matters: (a, b) and [a, b] look alike, zip and * give tuples, and a tuple of three is an error, not three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet deeptime==0.4.5 numpy==2.4.6 scipy==1.17.1
venv/bin/python - <<'PYTHON'
import deeptime
import numpy as np
from deeptime.decomposition import TICA

rng = np.random.default_rng(0)


def trajectory(n=4000):
    noise, x = rng.normal(size=(n, 2)) * [1, 10], np.zeros((n, 2))
    for t in range(1, n):
        x[t] = [0.99, 0.5] * x[t - 1] + noise[t]
    return x


first, second = trajectory(), trajectory()
times = {}
for name, data in (("list", [first, second]), ("tuple", (first, second))):
    times[name] = float(TICA(lagtime=10, dim=1).fit(data).fetch_model().timescales(lagtime=10)[0])
print("deeptime", deeptime.__version__)
print("slowest time, exact:", -1 / np.log(0.99), "- found:", times)
assert 60 < times["list"] < 160 and times["tuple"] < 30, "it no longer does so"
PYTHON
