"""Populations and averages: do independent runs scatter as each run's own errors say, about the exact value?

    python benchmarks/populations.py [--seeds 12] [--budget 10000]

A double well along a bent valley, whose populations and averages are known by quadrature, with a generator as it is
trained, and with ones that are spoiled on purpose: a constant is added to what the network puts out after each
training, by `SHIFTS`. Per run the population of x > 0 and the mean of y², with their standard errors by the bootstrap,
and the exact values. The spread over runs divided by the RMS reported error should be 1; with n runs its own
standard error is 1/sqrt(2n - 2). `off` is the mean deviation in reported errors, known to 1/sqrt(n).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import openmm_sgm as sgm
from openmm_sgm import campaign

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fast_slow import SYSTEMS, fast_of  # noqa: E402

NAME = "bent_double_well"
SHIFTS = (0.34, 0.72, 1.06)
"""Of the score network's output: for effective sample sizes of some 0.7, 0.2 and 0.03."""
_train = campaign.train


def spoil(shift: float) -> None:
    """Let every generator that is trained from now on be a bad one, whose density is as exact as ever."""

    def train(*arguments: Any, **options: Any) -> Any:
        result = _train(*arguments, **options)
        network = copy.deepcopy(result.generator.network).requires_grad_(False)
        network.heads.bias[-(network.n_linear + network.n_rotors) :] += shift
        return replace(result, generator=replace(result.generator, network=network))

    campaign.train = train  # type: ignore[assignment]


def run(seed: int, budget: int) -> dict[str, Any]:
    (known,) = (system for system in SYSTEMS if system.name == NAME)
    molecule = sgm.load_system(ROOT / "systems" / NAME)
    sampler = sgm.ScoreSampler(molecule, seed=seed, workers=0, options=sgm.SamplerOptions(learning_ess=0.0))
    sampler.run(budget)
    assert sampler.campaign is not None
    estimate = sampler.estimate()
    x = estimate.samples.column("cvs")[:, 0]
    share, share_error = estimate.average(x > 0)
    y = fast_of(NAME, estimate.samples.take().positions)
    mean, error = estimate.average(y**2)
    density = known.density()
    exact = float((density * known.fast**2).sum() / density.sum())
    return {
        "seed": seed,
        "force_evaluations": sampler.campaign.cost.total,
        "ess": float(np.nanmedian(sampler.campaign.ess)),
        "right": float(share),
        "right_error": float(share_error),
        "right_exact": float(density[known.slow > 0].sum() / density.sum()),
        "y2": float(mean),
        "y2_error": float(error),
        "y2_exact": exact,
    }


def summary(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    value, error, exact = (np.array([row[name + part] for row in rows]) for part in ("", "_error", "_exact"))
    known = np.isfinite(value) & np.isfinite(error)
    off, rms = (value - exact)[known], float(np.sqrt(np.mean(error[known] ** 2)))
    return {
        "runs_with_a_number": int(known.sum()),
        "reported_rms": rms,
        "spread_over_reported": float(off.std(ddof=1)) / rms,
        "off": float(off.mean()) / rms,
        "within_2_std_errors": float(np.mean(np.abs(off) < 2 * error[known])),
    }


def main(seeds: int, budget: int) -> None:
    warnings.simplefilter("ignore")
    results: list[dict[str, Any]] = []
    for shift in SHIFTS:
        spoil(shift)
        rows = []
        for seed in range(1, seeds + 1):
            rows.append(run(seed, budget))
            print(json.dumps(rows[-1]), flush=True)
        result = {
            "shift": shift,
            "ess": float(np.median([row["ess"] for row in rows])),
            "right": summary(rows, "right"),
            "y2": summary(rows, "y2"),
            "rows": rows,
        }
        print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1), flush=True)
        results.append(result)
        content = {"system": NAME, "budget": budget, "results": results}
        (ROOT / "benchmarks" / "results" / "populations.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--budget", type=int, default=10_000)
    options = parser.parse_args()
    main(options.seeds, options.budget)
