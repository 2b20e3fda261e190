#!/usr/bin/env bash
# deeptime's MaximumLikelihoodMSM drops states that are not connected, and numbers the others anew.
# Seen with deeptime 0.4.5: fitted to two trajectories, one in states 0 and 1 and one in 2, 3 and 4, the model has three
# states; mfpt([0], [2]) is then the passage from state 2 to state 4, and the stationary probabilities are of 2, 3 and 4
# and add up to 1. Only count_model.state_symbols tells; there is no warning.
# Why it matters: indices of one's own clustering applied to the model are answered, for other states; runs that never
# meet look like one equilibrium of the longer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet deeptime==0.4.5 numpy==2.4.6 scipy==1.17.1
venv/bin/python - <<'PYTHON'
import warnings

import deeptime
import numpy as np
from deeptime.markov.msm import MaximumLikelihoodMSM

rng = np.random.default_rng(0)
trajectories = [rng.integers(0, 2, 200), rng.integers(2, 5, 2000)]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    model = MaximumLikelihoodMSM(lagtime=1).fit_fetch(trajectories)
symbols = model.count_model.state_symbols.tolist()
print("deeptime", deeptime.__version__)
print("states in the data: 0 to 4; states of the model:", model.n_states, "which are", symbols)
print("stationary probabilities:", model.stationary_distribution, "sum", model.stationary_distribution.sum())
print("mean first passage asked for, 0 to 2:", float(model.mfpt([0], [2])), "- warnings:", len(told))
assert model.n_states == 3 and symbols == [2, 3, 4] and not told, "it no longer does so"
assert np.isfinite(model.mfpt([0], [2])) and abs(model.stationary_distribution.sum() - 1) < 1e-9, "it no longer does so"
PYTHON
