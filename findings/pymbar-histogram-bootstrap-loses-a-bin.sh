#!/usr/bin/env bash
# pymbar's FES of histogram type fails where a bootstrap sample misses a bin that the data fill.
# Seen with pymbar 4.0.3: with one sample in an outer bin, generate_fes(..., n_bootstraps=20) raises IndexError;
# without that sample, or without bootstraps, it works.
# Why it matters: every real umbrella run has bins with one or two samples at its edges; the message names neither the
# bin nor the bootstrap, and it depends on the random numbers whether it comes.
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

print("pymbar", pymbar.__version__)
seen = []
for words, outlier, bootstraps in (
    ("all samples in the middle, 20 bootstraps", 0.0, 20),
    ("one sample in an outer bin, no bootstraps", 2.5, 0),
    ("one sample in an outer bin, 20 bootstraps", 2.5, 20),
):
    x = np.random.default_rng(0).normal(scale=0.3, size=200)
    x[0] = outlier
    surface = pymbar.FES(np.zeros((1, 200)), np.array([200]))
    bins = {"bin_edges": np.linspace(-3, 3, 13)}
    try:
        surface.generate_fes(
            np.zeros(200), x, fes_type="histogram", histogram_parameters=bins, n_bootstraps=bootstraps, seed=1
        )
        seen.append("works")
    except IndexError as error:
        seen.append(f"IndexError: {error}")
    print(f"{words}: {seen[-1]}")
assert seen[:2] == ["works", "works"] and seen[2].startswith("IndexError"), "it no longer does so"
PYTHON
